"""Sentences that a language model writes: whole ones, and single words in sentences of others."""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from typing_extensions import Self

from colakit.data.corruption import join_words, split_words
from colakit.data.running_text import sentences
from colakit.data.tokenizer import SentenceTokenizer
from colakit.inference.generation import generate_tokens
from colakit.models.gpt.model import GPT
from colakit.runtime.device import Compute

FORMAT = 1  # raise it when a seed gives other sentences, so that rounds are written anew
SENTENCE_TOKENS = 32  # sampled for a sentence at most, where most of train are no longer
LENGTHS = 2000  # sentences of train that are looked at for that
WORD_TOKENS = 5  # sampled for a word at most
BATCH_SIZE = 512  # samples computed at a time
WHOLE_WORD = re.compile(r" ([^\W\d_]+)(?=[\s.,;:?!])")  # the space before it is the first token's
AHEAD = 16  # batches' worth of prompts in a round, which are sorted by length together


class Gap(NamedTuple):
    """A sentence's words, the place of the one to be written anew, and the mark that ends it."""

    words: list[str]
    place: int
    end: str

    def filled(self, word: str) -> str:
        """Return the sentence with `word` in the gap."""
        return join_words(
            self.words, [*self.words[: self.place], word, *self.words[self.place + 1 :]], self.end
        )


class Dice(NamedTuple):
    """What a round draws with: `rng` what is to be continued, `generator` the tokens."""

    rng: random.Random
    generator: torch.Generator

    @classmethod
    def seeded(cls, seed: str) -> Self:
        """Return the dice of a seed."""
        rng = random.Random(seed)
        return cls(rng, torch.Generator().manual_seed(rng.getrandbits(63)))


class SentenceSampler:
    """A language model that samples sentences, and words inside sentences, in rounds.

    Args:
        model: in place, on the device of `compute`.
        temperature: divides the logits.
        batch_size: samples computed at a time; a round has `AHEAD` times as many, `round_size`.
    """

    def __init__(
        self,
        model: GPT,
        tokenizer: SentenceTokenizer,
        compute: Compute,
        *,
        temperature: float,
        batch_size: int = BATCH_SIZE,
    ) -> None:
        self.model, self.tokenizer, self.compute = model, tokenizer, compute
        self.temperature, self.batch_size = temperature, batch_size
        self.round_size = AHEAD * batch_size
        self.least = max(1, self.round_size // 100)  # sentences of a round, or it was the last

    def continuations(self, beginnings: Sequence[str], seed: str) -> Iterator[str]:
        """Yield a round of sampled sentences.

        Each begins after the end-of-text token, with up to half of the words of one of `beginnings`. It is
        complete where the model ends the text, or begins another sentence; one that is not is left out.
        """
        dice = Dice.seeded(seed)
        lengths = self.tokenizer.encode(beginnings[:LENGTHS]).lengths
        room = min(self.model.config.num_positions, max(SENTENCE_TOKENS, int(np.quantile(lengths, 0.95))))
        heads = [_beginning(dice.rng.choice(beginnings), dice.rng) for _ in range(self.round_size)]
        for _, prompts, added in self._continued(heads, room, dice, self.tokenizer.end_of_text_id):
            for prompt, new in zip(prompts, added, strict=True):
                if text := self._first_sentence(prompt[1:], new):
                    yield text

    def resampled(self, originals: Sequence[str], seed: str) -> Iterator[str]:
        """Yield a round of sentences of `originals` in which one word is another, sampled in its place.

        The model has read what stands left of the word, not what stands right: much of what fits there does
        not fit the rest.
        """
        dice = Dice.seeded(seed)
        drawn = (_gap(dice.rng.choice(originals), dice.rng) for _ in range(self.round_size))
        gaps = [gap for gap in drawn if gap is not None]
        heads = [" ".join(gap.words[: gap.place]) for gap in gaps]
        for rows, _, added in self._continued(heads, WORD_TOKENS, dice):
            for row, new in zip(rows, added, strict=True):
                gap, word = gaps[row], self._first_word(new)
                if word is not None and word != gap.words[gap.place]:
                    yield gap.filled(word)

    def _continued(
        self, heads: Sequence[str], num_tokens: int, dice: Dice, stop: int | None = None
    ) -> Iterator[tuple[list[int], list[list[int]], list[list[int]]]]:
        """Yield batches of heads of one length: their numbers, their tokens, and those sampled.

        Args:
            stop: token that ends a sample.
        """
        encoded = self.tokenizer.encode(heads)
        begin = self.tokenizer.end_of_text_id
        prompts = [[begin, *(encoded.sentence(i).tolist() if head else [])] for i, head in enumerate(heads)]
        by_length = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
        alike = (list(rows) for _, rows in itertools.groupby(by_length, key=lambda i: len(prompts[i])))
        batches = [batch for rows in alike for batch in _chunks(rows, self.batch_size)]
        dice.rng.shuffle(batches)  # else who takes a few would get the short ones
        for rows in batches:
            asked = [prompts[i] for i in rows]
            yield rows, asked, self._sampled(torch.tensor(asked), num_tokens, stop, dice.generator)

    def _sampled(
        self, prompts: Tensor, num_tokens: int, stop: int | None, generator: torch.Generator
    ) -> list[list[int]]:
        tokens = generate_tokens(
            self.model,
            prompts,
            max_new_tokens=num_tokens,
            compute=self.compute,
            temperature=self.temperature,
            stop_id=stop,
            generator=generator,
        )
        return torch.stack(list(tokens), dim=1).tolist()

    def _first_sentence(self, head: list[int], new: list[int]) -> str | None:
        """Return what was said before the end of text, or a second sentence; None where neither came."""
        said, ended = self._before_stop(new)
        found = sentences(self.tokenizer.decode([*head, *said]).strip())
        return " ".join(found[0].split()) if ended or len(found) > 1 else None

    def _first_word(self, new: list[int]) -> str | None:
        """Return the word that was said, if it is one, and whole."""
        said, ended = self._before_stop(new)
        found = WHOLE_WORD.match(self.tokenizer.decode(said) + ("." if ended else ""))
        return found and found.group(1)

    def _before_stop(self, new: list[int]) -> tuple[list[int], bool]:
        """Return what stands before the end-of-text token, and whether it came."""
        stop = self.tokenizer.end_of_text_id
        return (new[: new.index(stop)], True) if stop in new else (new, False)


def _gap(sentence: str, rng: random.Random) -> Gap | None:
    """Return the sentence with a gap for one of its words after the first; None where it has no other."""
    words, end = split_words(sentence)
    places = [place for place in range(1, len(words)) if words[place].isalpha()]
    return Gap(words, rng.choice(places), end) if places else None


def _beginning(sentence: str, rng: random.Random) -> str:
    """Return up to half of the sentence's words."""
    words = sentence.split()
    return " ".join(words[: rng.randint(0, len(words) // 2)])


def _chunks(items: list[int], size: int) -> Iterator[list[int]]:
    yield from (items[start : start + size] for start in range(0, len(items), size))
