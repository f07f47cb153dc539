"""A tiny pretrained GPT-2 and a corpus in CoLA's layout, for tests.

The sentences come from a small grammar with number agreement across a relative clause, determiners,
reflexives and word order; an unacceptable sentence violates exactly one of these. The base is a two-layer
GPT-2 pretrained on 4,000 acceptable sentences. Scores on this corpus are not results.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch

from colakit.data.batches import Examples, micro_batches, plan_epoch
from colakit.data.corpus_files import COLA_FILES
from colakit.data.tokenizer import SentenceTokenizer, save_tokenizer, train_tokenizer
from colakit.data.tokens import Tokens
from colakit.models.gpt.config import GPTConfig
from colakit.models.gpt.model import GPT
from colakit.runtime.device import Compute
from colakit.runtime.seeding import seed_everything
from colakit.storage.gpt2 import save_gpt
from colakit.training.loop import StepBatch, train
from colakit.training.objectives import language_modelling
from colakit.training.schedule import warmup_then

NOUNS = ("cat", "dog", "girl", "boy", "nurse", "driver", "doctor", "singer", "farmer", "pilot")
OTHER_NOUNS = ("baker", "judge", "sailor", "tailor", "writer")  # out-of-domain split only
TRANSITIVE = ("see", "like", "help", "know", "call", "follow")
INTRANSITIVE = ("sleep", "laugh", "arrive", "dance", "wait")
ADJECTIVES = ("old", "young", "tall", "happy", "quiet")
SIZES = {"train": 1600, "id_dev": 200, "ood_dev": 200}

Words = list[str]


class ToyGrammar:
    """Samples acceptable sentences and corrupts them in one place."""

    def __init__(self, seed: int, nouns: tuple[str, ...] = NOUNS) -> None:
        self.random = random.Random(seed)
        self.nouns = nouns
        self.corruptions: dict[str, Callable[[Words], Words]] = {
            "agreement": self._break_agreement,
            "determiner": lambda words: words[1:],
            "order": self._swap_neighbours,
            "reflexive": self._break_reflexive,
        }

    def labelled(self) -> tuple[str, int, str]:
        """Return (phenomenon, label, sentence); at least 70 % are acceptable."""
        words = self._sentence()
        if self.random.random() < 0.7:
            return "good", 1, _as_text(words)
        name = self.random.choice(sorted(self.corruptions))
        broken = self.corruptions[name](words)
        return (name, 0, _as_text(broken)) if broken != words else ("good", 1, _as_text(words))

    def acceptable(self) -> str:
        """Return an acceptable sentence."""
        return _as_text(self._sentence())

    def _noun_phrase(self) -> tuple[Words, bool]:
        plural = self.random.random() < 0.5
        determiner = self.random.choice(("the", "these") if plural else ("the", "this", "every"))
        adjective = [self.random.choice(ADJECTIVES)] if self.random.random() < 0.3 else []
        noun = self.random.choice(self.nouns)
        return [determiner, *adjective, noun + "s" if plural else noun], plural

    def _verb(self, verbs: tuple[str, ...], plural: bool) -> str:
        verb = self.random.choice(verbs)
        return verb if plural else verb + "s"

    def _sentence(self) -> Words:
        subject, plural = self._noun_phrase()
        if self.random.random() < 0.4:
            other, other_plural = self._noun_phrase()
            subject = [*subject, "that", *other, self._verb(TRANSITIVE, other_plural)]
        if self.random.random() < 0.4:
            return [*subject, self._verb(INTRANSITIVE, plural)]
        if self.random.random() < 0.4:
            return [*subject, self._verb(TRANSITIVE, plural), "themselves" if plural else "itself"]
        return [*subject, self._verb(TRANSITIVE, plural), *self._noun_phrase()[0]]

    def _break_agreement(self, words: Words) -> Words:
        stems = {*TRANSITIVE, *INTRANSITIVE}
        last = max(i for i, word in enumerate(words) if word in stems or word.removesuffix("s") in stems)
        flipped = words[last] + "s" if words[last] in stems else words[last].removesuffix("s")
        return [*words[:last], flipped, *words[last + 1 :]]

    def _break_reflexive(self, words: Words) -> Words:
        other = {"themselves": "itself", "itself": "themselves"}
        return [*words[:-1], other[words[-1]]] if words[-1] in other else self._break_agreement(words)

    def _swap_neighbours(self, words: Words) -> Words:
        i = self.random.randrange(len(words) - 1)
        return [*words[:i], words[i + 1], words[i], *words[i + 2 :]]


def _as_text(words: Words) -> str:
    return (" ".join(words) + ".").capitalize()


def write_corpus(folder: Path, *, seed: int = 0, sizes: dict[str, int] | None = None) -> None:
    """Write a corpus in CoLA's layout."""
    folder.mkdir(parents=True, exist_ok=True)
    for offset, (split, size) in enumerate((sizes or SIZES).items()):
        grammar = ToyGrammar(seed * 10 + offset, NOUNS if split != "ood_dev" else OTHER_NOUNS)
        rows = [grammar.labelled() for _ in range(size)]
        lines = [
            f"toy-{code}\t{label}\t{'' if label else '*'}\t{sentence}\n" for code, label, sentence in rows
        ]
        (folder / COLA_FILES[split]).write_text("".join(lines), encoding="utf-8")


def write_base(
    folder: Path, *, seed: int = 0, steps: int = 300, width: int = 64, num_layers: int = 2
) -> None:
    """Write a tiny GPT-2, pretrained for `steps` steps, and its tokenizer in the transformers layout."""
    folder.mkdir(parents=True, exist_ok=True)
    grammar = ToyGrammar(seed + 1000, NOUNS + OTHER_NOUNS)
    sentences = [grammar.acceptable() for _ in range(4000)]
    trained = train_tokenizer(sentences, 400)
    tokenizer = SentenceTokenizer(trained.backend, trained.end_of_text_id, prefix=True, suffix=True)
    seed_everything(seed)
    config = GPTConfig(
        vocab_size=tokenizer.vocab_size,
        num_positions=64,
        width=width,
        num_layers=num_layers,
        num_heads=4,
        embedding_dropout=0.0,
        attention_dropout=0.0,
        residual_dropout=0.0,
    )
    model = GPT(config)
    _pretrain(model, tokenizer.encode(sentences), seed=seed, steps=steps)
    save_gpt(model, folder, end_of_text_id=tokenizer.end_of_text_id)
    save_tokenizer(tokenizer, folder, max_tokens=config.num_positions)


def _pretrain(model: GPT, tokens: Tokens, *, seed: int, steps: int) -> None:
    examples = Examples(tokens, np.zeros(len(tokens), dtype=np.int64))

    def batches() -> Iterator[StepBatch]:
        epoch = step = 0
        while step < steps:
            for index in plan_epoch(tokens.lengths, 32, seed, epoch)[: steps - step]:
                count = int((tokens.lengths[index] - 1).sum())
                yield StepBatch(micro_batches(examples, index, 32), count, epoch, f"step {step}")
                step += 1
            epoch += 1

    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    compute = Compute(torch.device("cpu"), torch.float32, "the toy base is tiny")
    lr_at = warmup_then("cosine", warmup_steps=steps // 20, max_steps=steps)
    model.train()
    for _ in train(model, batches(), language_modelling, optimizer, lr_at=lr_at, compute=compute):
        pass
    model.eval()
