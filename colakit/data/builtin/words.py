"""Words of the built-in corpus: before the bar for train and id_dev, after it for ood_dev only.

`lexicon` derives regular forms; irregular ones are given, as singular/plural for nouns and as
base/past/participle[/gerund] for verbs. `a`/`an` is chosen by spelling, so words like "hour" are excluded.
"""

NOUNS = {  # by kind
    "person": "nurse doctor teacher student farmer lawyer soldier sailor painter singer dancer writer poet "
    "driver baker butcher judge guest neighbor friend child/children visitor tourist banker scientist artist "
    "engineer pilot captain mayor senator reporter servant priest thief/thieves prisoner patient customer "
    "worker manager clerk player musician author editor professor pupil cousin "
    "| plumber carpenter librarian surgeon detective gardener shepherd merchant hunter miner dentist tailor "
    "translator journalist historian chemist traveler stranger burglar tenant beggar knight monk",
    "man": "boy king uncle brother father grandfather waiter prince gentleman/gentlemen "
    "| man/men husband nephew son duke grandson policeman/policemen",
    "woman": "girl queen aunt sister mother grandmother waitress princess lady actress "
    "| woman/women wife/wives niece daughter duchess granddaughter policewoman/policewomen",
    "animal": "dog cat horse cow bird wolf/wolves fox rabbit monkey lion tiger bear mouse/mice duck goat pig "
    "| donkey elephant kitten goose/geese squirrel hawk turtle camel puppy",
    "food": "cake sandwich apple pie egg potato/potatoes biscuit banana sausage pancake orange carrot "
    "| muffin pear tomato/tomatoes peach onion dumpling",
    "document": "book letter report poem novel article message story diary map contract newspaper essay "
    "| magazine manuscript pamphlet telegram memoir notebook leaflet",
    "vehicle": "car truck bus boat bicycle train tractor ship wagon taxi "
    "| van motorcycle canoe ferry carriage",
    "thing": "lamp table chair cup plate bottle box key mirror basket clock knife/knives candle window door "
    "picture toy ladder vase bucket piano guitar machine radio "
    "| kettle bench hammer shovel curtain pillow spoon violin statue telescope umbrella jar bell tray",
    "clothing": "coat hat shirt scarf/scarves sweater glove shoe | jacket boot skirt apron cap sock",
    "place": "garden kitchen library office house school station park church village hotel museum hospital "
    "street hall room forest theater castle shop "
    "| barn cellar harbor attic palace bakery courtyard meadow tavern temple factory bedroom",
    "idea": "plan idea problem rule secret decision mistake theory "
    "| scheme proposal discovery solution procedure",
    "mass": "furniture advice luggage money bread milk rice coffee "
    "| traffic homework flour sugar equipment butter",
}
NAMES = {
    "man": "John Peter Thomas David James Robert Henry George Paul Daniel Simon Richard Jack Adam "
    "| William Charles Edward Michael Frank Arthur Oliver Walter",
    "woman": "Mary Anna Susan Sarah Emma Alice Helen Laura Julia Karen Jane Ruth Sophie Maria "
    "| Elizabeth Margaret Catherine Lucy Emily Martha Charlotte Rachel",
}
VERBS = {  # by complement; `transitive.K` takes an object of kind K
    "intransitive": "laugh smile sleep/slept/slept cry dance swim/swam/swum/swimming cough wait shout sneeze "
    "dream frown complain faint bow argue "
    "| yawn giggle weep/wept/wept kneel/knelt/knelt shiver snore blush pray chatter",
    "vanishing": "vanish disappear arrive fall/fell/fallen | emerge rise/rose/risen",
    "alternating": "break/broke/broken move burn crack | shatter rotate bend/bent/bent",
    "reflexive": "blame praise admire hurt/hurt/hurt defend protect hate trust forgive/forgave/forgiven "
    "introduce describe save respect "
    "| criticize congratulate punish despise injure comfort distrust",
    "social": "meet/met/met visit invite follow greet hire marry thank "
    "| hug/hugged/hugged/hugging interview escort dismiss welcome",
    "transitive.food": "devour buy/bought/bought | consume crave",
    "transitive.document": "destroy examine receive complete | obtain discover acquire",
    "transitive.vehicle": "repair damage abandon | purchase inspect fix",
    "transitive.thing": "carry find/found/found use touch remove "
    "| grab/grabbed/grabbed/grabbing discard polish locate",
    "transitive.clothing": "wear/wore/worn mend | select fasten",
    "transitive.idea": "discuss reject | analyze oppose",
    "stative": "own know/knew/known like need prefer/preferred/preferred/preferring "
    "| possess resemble deserve envy",
    "psych": "surprise frighten annoy amuse disappoint bore | astonish delight terrify embarrass",
    "dative": "give/gave/given lend/lent/lent show/showed/shown offer/offered/offered/offering hand "
    "| sell/sold/sold bring/brought/brought mail",
    "to.thing": "return donate | contribute surrender",
    "to.idea": "explain reveal mention | confess announce",
    "that": "think/thought/thought believe claim hope | suspect suppose assume",
    "whether": "wonder ask question | inquire investigate",
    "infinitive": "decide refuse want agree decline | vow hesitate pretend consent",
    "gerund": "enjoy suggest avoid keep/kept/kept | postpone resent dislike",
    "raising": "seem appear | tend prove",
    "expecting": "expect | intend",
    "forcing": "force persuade | convince urge compel/compelled/compelled/compelling",
    "bare": "make/made/made let/let/let/letting | watch notice",
}
PARTICLES = (
    "pick:up throw/threw/thrown:away put/put/put/putting:down | cut/cut/cut/cutting:off wipe:off lock:up"
)
ADJECTIVES = {  # for people (comparative with -er or more), for all things, for solid things, for ideas
    "short": "tall old young strong brave rich kind poor weak smart | thin shy lazy rude bold wise",
    "long": "careful famous honest nervous curious intelligent "
    "| generous stubborn arrogant talented ambitious",
    "plain": "new small large expensive cheap | tiny huge ugly ancient",
    "thing": "new small large expensive cheap dirty heavy blue red wooden broken white "
    "| tiny huge ugly ancient shiny dusty rusty green black",
    "idea": "simple strange important | foolish brilliant absurd",
}
ADVERBS = "quickly quietly carefully slowly suddenly happily | softly eagerly calmly abruptly reluctantly"
VERB_PREPOSITIONS = (  # verb:right:wrong
    "listen:to:from rely:on:from wait:for:from respond:to:of apologize:to:of look:at:of depend:on:from "
    "| stare:at:of react:to:from object:to:from lie:to:of sympathize:with:of glance:at:of"
)
ADJECTIVE_PREPOSITIONS = (  # adjective:right:wrong
    "afraid:of:at proud:of:at jealous:of:to angry:with:of "
    "| fond:of:at suspicious:of:with envious:of:to loyal:to:of devoted:to:at"
)
CLOSED = (  # function words and all others shared by both pools
    "a an the this that these those all both every each many much several most few little some any no not "
    "one ones two three more than as such too enough either neither or and but nor so "
    "i me my myself you your yourself he him his himself she her herself it its itself we us our ourselves "
    "they them their themselves who whom whose which what whether if because although when while before "
    "after there in on at of to from with for by near behind beside up down away off since until without "
    "be is are was were been being have has had having do does did doing will would can could must might "
    "should didn't hasn't wasn't never ever yet often rarely hardly always just now very then only even also "
    "yesterday tomorrow last next week month year someone something "
    "say said hear heard saw news rumor clear"
)
