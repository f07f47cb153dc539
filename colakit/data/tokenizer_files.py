"""Files of tokenizers: tokenizer.json, vocab.json, merges.txt, and their special tokens."""

from __future__ import annotations

import base64
import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, RootModel, model_validator
from tokenizers import AddedToken

from colakit.utils.documents import (
    Bounds,
    Document,
    DocumentError,
    check_plain,
    read_bounded,
    read_document,
    read_text,
)

MAX_ADDED = 2**10  # each one added slows down the next
MAX_TOKEN = 2**10  # characters
VOCABULARY = Bounds(2**24, 2**21, 2**21)
MAX_ID = 2**24
MAX_GROWTH = 64
MAX_TEMPLATE = 2**8  # values, of which each adds tokens to a text
MAX_REPEATS = 2
MAX_WAYS = 2**10
PARTS = re.compile(  # of a pattern: escapes, classes, groups, repeats; a second sign makes a repeat lazy
    r"\\.|\[(?:\\.|[^\]\\])*\]|\(\??|\)|\||(?P<repeat>[*+]|\{\d*,\})[?+]?"
    r"|(?P<option>\?|\{(?P<least>\d*),(?P<most>\d+)\})[?+]?"
)
CLASS = re.compile(r"(?<!\\)\[(?:\\.|[^\]\\])*\]")
BACKTRACKING = re.compile(r"\)[*+{]|\\[1-9kg]")  # a repeated group, or a reference to one
END_OF_TEXT = "<|endoftext|>"


def _checked_vocabulary(vocab: Any) -> Any:
    """Check a vocabulary; pydantic would list a million faults. That of Unigram is a list."""
    if not isinstance(vocab, dict):
        if isinstance(vocab, list) and len(vocab) <= MAX_ID:
            return vocab
        raise ValueError("must be an object of ids")
    for token, number in vocab.items():
        if type(number) is not int or not 0 <= number < MAX_ID or len(token) > MAX_TOKEN:
            raise ValueError(
                f"{token[:40]!r} must have at most {MAX_TOKEN} characters and an id below {MAX_ID} "
                f"(got {str(number)[:40]})"
            )
    return vocab


def pairs_of(merges: list[Any]) -> list[tuple[str, str]]:
    """Return merges, each written as text or as a pair, as pairs."""
    pairs = [tuple(merge.split(" ")) if isinstance(merge, str) else merge for merge in merges]
    for pair in pairs:
        if not isinstance(pair, (list, tuple)) or [type(part) for part in pair] != [str, str]:
            raise ValueError(f"must be pairs of tokens (got {str(pair)[:60]})")
    return [tuple(pair) for pair in pairs]


def _children(node: Any) -> Any:
    return node.values() if isinstance(node, dict) else node


def _check_precompiled(table: Any) -> None:
    """Raise `ValueError` unless a table is SentencePiece's: the library panics on others."""
    try:
        raw = base64.b64decode(table, validate=True)
        size = int.from_bytes(raw[:4], "little")
        if size % 4 or not 4 <= size <= len(raw) - 4:
            raise ValueError("wrong length")
        raw[4 + size :].decode("utf-8")
        if max(map(len, raw[4 + size :].split(b"\0"))) > MAX_GROWTH:
            raise ValueError(f"it replaces a character by more than {MAX_GROWTH} bytes")
    except (TypeError, ValueError) as error:
        raise ValueError(f"precompiled_charsmap is not a table of SentencePiece ({error})") from None


def _cost(pattern: str) -> tuple[int, int]:
    """Return (repeats, ways) of a pattern: the most parts without limit in one alternative, and the number of
    ways to match the others.
    """
    groups = [[[0, 1]]]  # of nested groups, their alternatives
    for part in PARTS.finditer(pattern):
        alternative = groups[-1][-1]
        if part.group().startswith("("):
            groups.append([[0, 1]])
        elif part.group() == "|":
            groups[-1].append([0, 1])
        elif part["repeat"]:
            alternative[0] += 1
        elif part["option"]:
            alternative[1] *= 2 if part["most"] is None else int(part["most"]) - int(part["least"] or 0) + 1
        if part.group() == ")" and len(groups) > 1:
            inner = groups.pop()
            groups[-1][-1][0] += max(repeats for repeats, _ in inner)
            groups[-1][-1][1] *= sum(ways for _, ways in inner)
    return max(repeats for repeats, _ in groups[0]), sum(ways for _, ways in groups[0])


def _matches_nothing(replaced: Any) -> bool:
    """Return whether a regular expression matches the empty text; False if its syntax is unknown."""
    import regex  # imported here because students need none

    pattern = replaced.get("Regex") if isinstance(replaced, dict) else None
    try:
        return isinstance(pattern, str) and regex.match(pattern, "", timeout=1) is not None
    except (regex.error, TimeoutError):
        return False


def check_rules(rules: dict[str, Any]) -> dict[str, Any]:
    """Raise `ValueError` if a normalizer, pre-tokenizer or decoder may take far more than the text's length.

    A pattern takes exponential time if a group repeats, otherwise polynomial time whose degree is the number
    of its repeats, times the ways to match its options. Rules that lengthen text multiply.
    """
    growth = 1.0
    pending: list[Any] = [rules]
    while pending:
        node = pending.pop()
        pending += [each for each in _children(node) if isinstance(each, (dict, list))]
        if not isinstance(node, dict):
            continue
        match node.get("type"):
            case "Precompiled":
                _check_precompiled(node.get("precompiled_charsmap"))
                growth *= 8  # several would replace what the others wrote
            case "ByteLevel":  # writes a byte as up to two
                growth *= 2
            case "Prepend":
                growth *= max(1, len(str(node.get("prepend"))))
            case "Strip" if node.get("stop"):  # the library panics on a token that is shorter
                raise ValueError("a decoder must not strip the end of tokens")
        if isinstance(pattern := node.get("Regex"), str):
            repeats, ways = _cost(pattern) if len(pattern) <= MAX_TOKEN else (0, MAX_WAYS + 1)
            is_unbounded = BACKTRACKING.search(CLASS.sub("", pattern)) is not None
            if is_unbounded or repeats > MAX_REPEATS or ways > MAX_WAYS:
                raise ValueError(
                    f"the pattern {pattern[:60]!r} may take exponential time: groups must not repeat, and "
                    f"alternatives have at most {MAX_REPEATS} repeats and {MAX_WAYS:,} ways to match options"
                )
        if node.get("type") == "Replace":
            replaced = node.get("pattern")
            if _matches_nothing(replaced):  # the library panics on some texts
                raise ValueError("a replaced pattern must not match the empty text")
            length = len(str(replaced.get("String", ""))) if isinstance(replaced, dict) else 0
            growth *= max(1.0, (len(str(node.get("content"))) + (not length)) / max(1, length))
        if growth > MAX_GROWTH:
            raise ValueError(f"rules may lengthen a text more than {MAX_GROWTH} times")
    return rules


def _checked_template(rules: dict[str, Any]) -> dict[str, Any]:
    check_plain(rules, max_items=MAX_TEMPLATE)
    return rules


Rules = Annotated[dict[str, Any], AfterValidator(check_rules)]
Vocabulary = Annotated[Any, AfterValidator(_checked_vocabulary)]
TokenText = Annotated[str, Field(min_length=1, max_length=MAX_TOKEN)]


class AddedTokenEntry(Document):
    """A token that is matched before the text is split."""

    id: Annotated[int, Field(ge=0, lt=2**24)]
    content: TokenText
    single_word: bool = False
    lstrip: bool = False
    rstrip: bool = False
    normalized: bool = False
    special: bool = False

    def token(self) -> AddedToken:
        """Return it as the library's type."""
        return AddedToken(**self.model_dump(exclude={"id"}))


class TokenizerModel(Document, extra="allow"):
    """The part that maps pieces of text to ids; its other fields are checked by the library."""

    type: Literal["BPE", "Unigram", "WordLevel", "WordPiece"] = "BPE"
    dropout: None = None  # random tokens
    vocab: Vocabulary
    merges: list[Any] = Field([])  # checked by the library, or by `pairs_of`
    max_input_chars_per_word: Annotated[int, Field(ge=1, le=1000)] = 100  # time grows with its square


class TokenizerFile(Document):
    """tokenizer.json."""

    added_tokens: Annotated[list[AddedTokenEntry], Field(max_length=MAX_ADDED, fail_fast=True)] = Field([])
    normalizer: Rules | None = None
    pre_tokenizer: Rules | None = None
    decoder: Rules | None = None
    post_processor: Annotated[dict[str, Any], AfterValidator(_checked_template)] | None = None
    model: TokenizerModel

    @property
    def has_template(self) -> bool:
        """Whether it adds tokens to each text."""
        rules = self.post_processor or {}
        return bool(rules.get("special_tokens")) or rules.get("type", "ByteLevel") not in (
            "ByteLevel",
            "TemplateProcessing",
        )


class VocabularyFile(RootModel[Vocabulary]):
    """vocab.json: token -> id."""

    model_config = ConfigDict(strict=True)


class TokenizerState(Document):
    """A tokenizer in a model file."""

    json_: str = Field(alias="json")
    end_of_text_id: Annotated[int, Field(ge=0)]
    start_id: Annotated[int, Field(ge=0)]
    prefix: bool
    suffix: bool
    template: bool = False


TOKEN_FIELDS = {*AddedTokenEntry.model_fields, "special", "__type"}


def _content(token: Any) -> Any:
    return token.get("content") if isinstance(token, dict) else token


class SpecialTokens(Document):
    """What tokenizer_config.json or special_tokens_map.json says."""

    bos_token: Annotated[TokenText | None, BeforeValidator(_content)] = None
    eos_token: Annotated[TokenText, BeforeValidator(_content)] = END_OF_TEXT
    sentence_start: TokenText | None = None  # written by colakit
    add_bos_token: bool | None = None
    add_eos_token: bool | None = None
    add_prefix_space: bool = False
    split_special_tokens: Literal[False] = False
    tokenizer_class: str | None = None
    added_tokens_decoder: Annotated[dict[str, Any], Field(max_length=MAX_ADDED)] = Field({})
    additional_special_tokens: Annotated[list[Any], Field(max_length=MAX_ADDED)] = Field([])

    @model_validator(mode="before")
    @classmethod
    def _has_known_tokens(cls, value: Any) -> Any:
        """Refuse unknown fields of tokens: the library prints their names as they are."""
        pending = [value]
        while pending:
            node = pending.pop()
            if isinstance(node, (dict, list)):
                pending += _children(node)
            if isinstance(node, dict) and "content" in node and (wrong := node.keys() - TOKEN_FIELDS):
                raise ValueError(f"{min(wrong)[:40]!r} is not a field of a token")
        return value

    @property
    def is_gpt2(self) -> bool:
        """Whether transformers would build GPT-2's tokenizer, whatever rules tokenizer.json has."""
        if self.add_bos_token or self.add_eos_token:
            return False
        return (self.tokenizer_class or "GPT2").removesuffix("Fast").removesuffix("Tokenizer") == "GPT2"


def read_special_tokens(folder: Path) -> SpecialTokens:
    """Return the special tokens of a base's folder; those of GPT-2 if no file names any."""
    tokens = SpecialTokens()
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        if (folder / name).is_file():
            given = read_document(folder / name, SpecialTokens)
            tokens = tokens.model_copy(update=given.model_dump(exclude_unset=True))
    return tokens


class AnyDocument(Document):
    """A JSON object of any content."""


def check_files(folder: Path) -> None:
    """Check the bounds of all files from which transformers may make a tokenizer.

    Raises:
        DocumentError: if one is too large, or not JSON where it must be.
    """
    for path in sorted(folder.iterdir()):
        if path.suffix == ".json":
            read_document(path, AnyDocument, VOCABULARY)
        elif (
            path.suffix in (".txt", ".model")
            and read_bounded(path, VOCABULARY.bytes).count(b"\n") > VOCABULARY.values
        ):
            raise DocumentError(f"{path}: more than {VOCABULARY.values:,} lines")


def read_merges(path: Path) -> list[str]:
    """Return the merges of merges.txt.

    Raises:
        DocumentError: if it is missing, too large or not text.
    """
    text = read_text(path, VOCABULARY.bytes)
    lines = [line for line in text.split("\n") if line and not line.startswith("#version")]
    return [line.rstrip("\r") for line in lines]
