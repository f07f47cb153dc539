"""What the benchmarks work on: a base of random weights, and sentences. Speed does not ask what they say."""

from __future__ import annotations

import argparse
import os
from dataclasses import dataclass
from pathlib import Path

import torch

from colakit.data.builtin.corpus import builtin_corpus
from colakit.data.corpora import Corpus, load_corpus
from colakit.data.corpus_files import COLA_FILES
from colakit.data.tokenizer import SentenceTokenizer, save_tokenizer, train_tokenizer
from colakit.models.gpt.config import GPTConfig
from colakit.models.gpt.model import GPT
from colakit.storage.gpt2 import KNOWN_SHAPES, save_gpt

SHARED = Path(os.environ.get("COLAKIT_SHARED", Path(__file__).resolve().parents[2] / "shared"))
SHAPES = {  # what bases are called here
    "gpt2": KNOWN_SHAPES["gpt2"],
    "small": GPTConfig(width=256, num_layers=4, num_heads=4),
    "tiny": GPTConfig(vocab_size=600, num_positions=64, width=32, num_layers=2, num_heads=2),
}


@dataclass(frozen=True)
class World:
    """A base and a corpus on disk, for processes of their own.

    Attributes:
        base: folder in the transformers layout, with a tokenizer.
        data: folder in CoLA's layout.
        sentences: those of its train split.
    """

    base: Path
    data: Path
    sentences: tuple[str, ...]


def make_world(
    folder: Path, shape: str, *, data: Path | None = None, num_sentences: int | None = None
) -> World:
    """Write a base with random weights and a corpus.

    Args:
        shape: one of `SHAPES`.
        data: corpus to take sentences from; by default the built-in one.
        num_sentences: taken of train, and a tenth as many of each dev split; None takes all.
    """
    corpus = builtin_corpus() if data is None else load_corpus(data)
    write_cola(corpus, folder / "data", num_sentences)
    sentences = corpus.split("train").sentences[:num_sentences]
    write_base(folder / "base", SHAPES[shape], tokenizer_for(sentences, SHAPES[shape].vocab_size))
    return World(folder / "base", folder / "data", sentences)


def real_cola() -> Path | None:
    """Return CoLA beside the checkout, where it is."""
    return SHARED / "cola" / "cola_public" if (SHARED / "cola" / "cola_public").is_dir() else None


def write_cola(corpus: Corpus, folder: Path, num_sentences: int | None) -> None:
    """Write the first sentences of a corpus in CoLA's four columns and three files."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, file in COLA_FILES.items():
        split = corpus.split(name)
        most = num_sentences if num_sentences is None or name == "train" else max(20, num_sentences // 10)
        rows = zip(split.sentences[:most], split.require_labels()[:most].tolist(), strict=True)
        lines = [f"bench\t{label}\t\t{sentence}\n" for sentence, label in rows]
        (folder / file).write_text("".join(lines), encoding="utf-8")


def tokenizer_for(sentences: tuple[str, ...], vocab_size: int) -> SentenceTokenizer:
    """Return GPT-2's own tokenizer where it lies beside the checkout, else one learnt from the sentences."""
    folder = SHARED / "gpt2-tokenizer"
    if vocab_size < KNOWN_SHAPES["gpt2"].vocab_size or not folder.is_dir():
        return train_tokenizer(sentences, min(vocab_size, 8000))
    from transformers import GPT2TokenizerFast

    fast = GPT2TokenizerFast.from_pretrained(str(folder))
    return SentenceTokenizer(fast.backend_tokenizer, fast.eos_token_id)


def write_base(folder: Path, config: GPTConfig, tokenizer: SentenceTokenizer) -> None:
    """Write a GPT-2 with random weights and its tokenizer."""
    torch.manual_seed(0)
    save_gpt(GPT(config), folder, end_of_text_id=tokenizer.end_of_text_id)
    save_tokenizer(tokenizer, folder, max_tokens=config.num_positions)


def command_parser(description: str, name: str, *, epochs: int) -> argparse.ArgumentParser:
    """Return the parser of a benchmark of whole commands.

    Args:
        name: of the benchmark, for the file of its results.
        epochs: by default.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument(
        "--shape", choices=SHAPES, default="small", help="of the base, whose weights are random"
    )
    parser.add_argument("--data", type=Path, help="corpus; default: the built-in one")
    parser.add_argument("--sentences", type=int, help="of train; default: all")
    parser.add_argument("--epochs", type=int, default=epochs, help="of colakit's command")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path(f"benchmarks/results/{name}.json"))
    return parser
