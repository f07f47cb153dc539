"""Inputs of the benchmarks: bases and students with random weights, corpora, token sequences.

Speed does not depend on weights or words, so nothing here is pretrained.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from colakit.data.batches import Examples
from colakit.data.builtin.corpus import builtin_corpus
from colakit.data.corpora import COLA_LABELS, Corpus, load_corpus
from colakit.data.corpus_files import COLA_FILES
from colakit.data.tokenizer import SentenceTokenizer, save_tokenizer, train_tokenizer
from colakit.data.tokens import Tokens
from colakit.inference.classifier import SentenceClassifier
from colakit.models.gpt.config import GPTConfig
from colakit.models.gpt.model import GPT
from colakit.models.rnn.config import RNNConfig
from colakit.models.rnn.model import DistilRNN
from colakit.storage.gpt2 import KNOWN_SHAPES, save_gpt

SHARED = Path(os.environ.get("COLAKIT_SHARED", Path(__file__).resolve().parents[2] / "shared"))
SHAPES = {
    "gpt2": KNOWN_SHAPES["gpt2"],
    "small": GPTConfig(width=256, num_layers=4, num_heads=4),
    "tiny": GPTConfig(vocab_size=600, num_positions=64, width=32, num_layers=2, num_heads=2),
}
LLAMA = replace(GPTConfig(), family="llama", activation="silu", attention_dropout=0.0)
LLAMA_SHAPES = {  # of the same scales
    "gpt2": replace(  # SmolLM2-135M
        LLAMA,
        vocab_size=49152,
        num_positions=8192,
        width=576,
        mlp_width=1536,
        num_layers=30,
        num_heads=9,
        num_kv_heads=3,
        rope_theta=1e5,
    ),
    "tiny": replace(
        LLAMA, vocab_size=600, num_positions=64, width=32, mlp_width=48, num_layers=2, num_heads=2
    ),
}
LLAMA_SHAPES["360m"] = replace(  # SmolLM2-360M
    LLAMA_SHAPES["gpt2"], width=960, mlp_width=2560, num_layers=32, num_heads=15, num_kv_heads=5
)


@dataclass(frozen=True)
class Workspace:
    """A base and a corpus on disk, for commands that run in processes of their own.

    Attributes:
        base: folder in the transformers layout, with a tokenizer.
        data: folder in CoLA's layout.
        sentences: the train split.
    """

    base: Path
    data: Path
    sentences: tuple[str, ...]


def make_workspace(
    folder: Path, shape: str, *, data: Path | None = None, num_sentences: int | None = None
) -> Workspace:
    """Write a base with random weights and a corpus.

    Args:
        shape: a key of `SHAPES`, or of `LLAMA_SHAPES` as `llama-KEY`.
        data: corpus to copy sentences from; None is the built-in one.
        num_sentences: size of train; each dev split gets a tenth of it. None is all.
    """
    corpus = read_corpus(data)
    write_cola(corpus, folder / "data", num_sentences)
    sentences = corpus.split("train").sentences[:num_sentences]
    config = LLAMA_SHAPES[shape.removeprefix("llama-")] if shape.startswith("llama-") else SHAPES[shape]
    tokenizer = make_tokenizer(sentences, config.vocab_size)
    write_random_gpt2(folder / "base", config, end_of_text_id=tokenizer.end_of_text_id)
    save_tokenizer(tokenizer, folder / "base", max_tokens=config.num_positions)
    return Workspace(folder / "base", folder / "data", sentences)


def read_corpus(data: Path | None) -> Corpus:
    """Read a corpus; None is the built-in one."""
    return builtin_corpus() if data is None else load_corpus(data)


def real_cola() -> Path | None:
    """Return the folder of CoLA beside the checkout, or None if it is missing."""
    folder = SHARED / "cola" / "cola_public"
    return folder if folder.is_dir() else None


def write_cola(corpus: Corpus, folder: Path, num_sentences: int | None) -> None:
    """Write the first sentences of each split in CoLA's layout."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, file in COLA_FILES.items():
        split = corpus.split(name)
        size = num_sentences if num_sentences is None or name == "train" else max(20, num_sentences // 10)
        rows = zip(split.sentences[:size], split.require_labels()[:size].tolist(), strict=True)
        lines = [f"bench\t{label}\t\t{sentence}\n" for sentence, label in rows]
        (folder / file).write_text("".join(lines), encoding="utf-8")


def make_tokenizer(sentences: tuple[str, ...], vocab_size: int) -> SentenceTokenizer:
    """Return GPT-2's tokenizer if it lies beside the checkout, else one trained on the sentences."""
    folder = SHARED / "gpt2-tokenizer"
    if vocab_size < KNOWN_SHAPES["gpt2"].vocab_size or not folder.is_dir():
        return train_tokenizer(sentences, min(vocab_size, 8000))
    from transformers import GPT2TokenizerFast

    fast = GPT2TokenizerFast.from_pretrained(str(folder))
    return SentenceTokenizer(fast.backend_tokenizer, fast.eos_token_id)


def write_random_gpt2(folder: Path, config: GPTConfig, *, end_of_text_id: int = 0) -> Path:
    """Write a GPT-2 with random weights; return its folder."""
    torch.manual_seed(0)
    save_gpt(GPT(config), folder, end_of_text_id=end_of_text_id)
    return folder


def random_student(base: Path, **sizes: int) -> SentenceClassifier:
    """Return a student with random weights and the base's tokenizer.

    Args:
        sizes: fields of `RNNConfig` other than their defaults.
    """
    tokenizer = SentenceTokenizer.from_base(base)
    torch.manual_seed(0)
    model = DistilRNN(RNNConfig(tokenizer.vocab_size, **sizes))  # type: ignore[arg-type]
    return SentenceClassifier(model, tokenizer, COLA_LABELS, 1024)


def save_random_student(base: Path, folder: Path, **sizes: int) -> Path:
    """Write the files of `random_student` that a run folder has, and return the folder."""
    folder.mkdir()
    random_student(base, **sizes).save(folder / "ckpt.pt")
    return folder


def random_examples(data: Path | None, vocab_size: int) -> Examples:
    """Return random tokens and labels whose lengths are about those of the train split."""
    sentences = read_corpus(data).split("train").sentences
    lengths = np.array([max(1, round(1.15 * len(s.split())) + 1) for s in sentences])  # tokens, about
    generator = np.random.default_rng(0)
    ids = generator.integers(0, vocab_size, size=lengths.sum()).astype(np.int32)
    tokens = Tokens(ids, np.concatenate([[0], np.cumsum(lengths)]))
    return Examples(tokens, generator.integers(0, 2, size=len(lengths)))
