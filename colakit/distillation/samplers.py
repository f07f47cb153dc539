"""Sampling from a language model: whole sentences, and single words inside given sentences."""

from __future__ import annotations

import itertools
import random
import re
import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from typing_extensions import Self

from colakit.data.corruption import join_words, split_words
from colakit.data.running_text import sentences
from colakit.data.tokenizer import SentenceTokenizer
from colakit.inference.generation import generate_tokens
from colakit.models.gpt.model import GPT
from colakit.runtime.device import Compute

FORMAT = 1  # increase when a seed yields other sentences, so that cached rounds are not used
SENTENCE_TOKENS = 32  # least limit on a sampled sentence; higher if train has longer ones
LENGTHS = 2000  # sentences of train that determine this limit
WORD_TOKENS = 5  # limit on a sampled word
BATCH_SIZE = 512  # samples
CPU_ROWS = 64  # samples of a measurement on a CPU, which is about as fast per sample as a whole batch
WHOLE_WORD = re.compile(r" ([^\W\d_]+)(?=[\s.,;:?!])")  # the first token includes the space
BATCHES_PER_ROUND = 16  # sorted by length together


class Gap(NamedTuple):
    """Words of a sentence, the position of the word to replace, and the final punctuation."""

    words: list[str]
    position: int
    end: str

    def filled(self, word: str) -> str:
        """Return the sentence with `word` in the gap."""
        return join_words(
            self.words, [*self.words[: self.position], word, *self.words[self.position + 1 :]], self.end
        )


class Generators(NamedTuple):
    """Random generators of a round: `rng` draws the prompts, `generator` the tokens."""

    rng: random.Random
    generator: torch.Generator

    @classmethod
    def seeded(cls, seed: str) -> Self:
        """Return the generators of a seed."""
        rng = random.Random(seed)
        return cls(rng, torch.Generator().manual_seed(rng.getrandbits(63)))


class SentenceSampler:
    """Samples sentences, or words inside sentences, in rounds of `round_size`.

    Args:
        model: on the device of `compute`.
        temperature: divides the logits.
        batch_size: samples computed at a time.
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
        self.round_size = BATCHES_PER_ROUND * batch_size
        self.least = max(1, self.round_size // 100)  # a round with fewer sentences is the last

    def continuations(self, beginnings: Sequence[str], seed: str) -> Iterator[str]:
        """Yield a round of sampled sentences.

        A prompt is the start token and up to half of the words of a sentence of `beginnings`. A sample
        ends with the end-of-text token or at the start of a second sentence; others are dropped.
        """
        draws = Generators.seeded(seed)
        lengths = self.tokenizer.encode(beginnings[:LENGTHS]).lengths
        room = min(self.model.config.num_positions, max(SENTENCE_TOKENS, int(np.quantile(lengths, 0.95))))
        heads = [_beginning(draws.rng.choice(beginnings), draws.rng) for _ in range(self.round_size)]
        for _, prompts, added in self._continued(heads, room, draws, self.tokenizer.end_of_text_id):
            for prompt, new in zip(prompts, added, strict=True):
                if text := self._first_sentence(prompt[1:], new):
                    yield text

    def word_resamples(self, originals: Sequence[str], seed: str) -> Iterator[str]:
        """Yield a round of sentences of `originals` with one word replaced by a sampled one.

        The model reads only the words before it, so the new word often does not fit the rest.
        """
        draws = Generators.seeded(seed)
        drawn = (_gap(draws.rng.choice(originals), draws.rng) for _ in range(self.round_size))
        gaps = [gap for gap in drawn if gap is not None]
        heads = [" ".join(gap.words[: gap.position]) for gap in gaps]
        for rows, _, added in self._continued(heads, WORD_TOKENS, draws):
            for row, new in zip(rows, added, strict=True):
                gap, word = gaps[row], self._first_word(new)
                if word is not None and word != gap.words[gap.position]:
                    yield gap.filled(word)

    def seconds_per_sample(self, prompt_tokens: int, num_tokens: int) -> float:
        """Measure a batch of samples with prompts of `prompt_tokens` and `num_tokens` new tokens."""
        on_cpu = self.compute.device.type == "cpu"
        rows = min(self.batch_size, CPU_ROWS) if on_cpu else self.batch_size
        tokens = generate_tokens(
            self.model,
            torch.full((rows, max(1, prompt_tokens)), self.tokenizer.start_id),
            max_new_tokens=num_tokens,
            compute=self.compute,
            temperature=self.temperature,
            generator=torch.Generator().manual_seed(0),
        )
        begin = time.monotonic()
        for step in tokens:
            step.cpu()
        return (time.monotonic() - begin) / rows

    def _continued(
        self, heads: Sequence[str], num_tokens: int, draws: Generators, stop: int | None = None
    ) -> Iterator[tuple[list[int], list[list[int]], list[list[int]]]]:
        """Yield batches of prompts of equal length: their indices, prompt tokens and sampled tokens."""
        encoded = self.tokenizer.encode(heads)
        begin = self.tokenizer.start_id
        prompts = [[begin, *(encoded.sentence(i).tolist() if head else [])] for i, head in enumerate(heads)]
        by_length = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
        same_length = (list(rows) for _, rows in itertools.groupby(by_length, key=lambda i: len(prompts[i])))
        batches = [batch for rows in same_length for batch in _chunks(rows, self.batch_size)]
        draws.rng.shuffle(batches)  # a consumer that stops early must not get the short ones only
        for rows in batches:
            batch = [prompts[i] for i in rows]
            tokens = generate_tokens(
                self.model,
                torch.tensor(batch),
                max_new_tokens=num_tokens,
                compute=self.compute,
                temperature=self.temperature,
                stop_id=stop,
                generator=draws.generator,
            )
            yield rows, batch, torch.stack(list(tokens), dim=1).tolist()

    def _first_sentence(self, head: list[int], new: list[int]) -> str | None:
        """Return the text up to its end or a second sentence; None if it has neither."""
        tokens, ended = self._before_stop(new)
        parts = sentences(self.tokenizer.decode([*head, *tokens]).strip())
        return " ".join(parts[0].split()) if ended or len(parts) > 1 else None

    def _first_word(self, new: list[int]) -> str | None:
        """Return the sampled word if it is one complete word, else None."""
        tokens, ended = self._before_stop(new)
        match = WHOLE_WORD.match(self.tokenizer.decode(tokens) + ("." if ended else ""))
        return match and match.group(1)

    def _before_stop(self, new: list[int]) -> tuple[list[int], bool]:
        """Return the tokens before the end-of-text token, and whether there is one."""
        stop = self.tokenizer.end_of_text_id
        return (new[: new.index(stop)], True) if stop in new else (new, False)


def _gap(sentence: str, rng: random.Random) -> Gap | None:
    """Return the sentence with a random word after the first marked; None if it has one word."""
    words, end = split_words(sentence)
    positions = [i for i in range(1, len(words)) if words[i].isalpha()]
    return Gap(words, rng.choice(positions), end) if positions else None


def _beginning(sentence: str, rng: random.Random) -> str:
    """Return up to half of the sentence's words."""
    words = sentence.split()
    return " ".join(words[: rng.randint(0, len(words) // 2)])


def _chunks(items: list[int], size: int) -> Iterator[list[int]]:
    yield from (items[start : start + size] for start in range(0, len(items), size))
