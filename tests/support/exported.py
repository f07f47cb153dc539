"""Small untrained classifiers in run folders, for tests of export."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from colakit.data.corpora import load_corpus
from colakit.data.tokenizer import SentenceTokenizer
from colakit.inference.classifier import SentenceClassifier
from colakit.inference.decisions import probabilities
from colakit.models.gpt.config import GPTConfig
from colakit.models.gpt.model import GPT
from colakit.models.lora import LoRAConfig, inject, train_modules
from colakit.models.rnn.config import RNNConfig
from colakit.models.rnn.model import DistilRNN
from colakit.runtime.device import Compute
from colakit.storage.gpt2 import load_gpt, load_tokenizer

LABELS = ("unacceptable", "acceptable")


def choose_threshold(classifier: SentenceClassifier, toy: Path) -> None:
    """Set a threshold that parts the sentences of id_dev, in the widest gap between probabilities."""
    tokens = classifier.encode(load_corpus(toy / "corpus").split("id_dev").sentences)
    compute = Compute(torch.device("cpu"), torch.float32, "a test")
    probs = probabilities(classifier.logits(tokens, compute), classifier.temperature)[:, 1]
    middle = np.sort(probs)[len(probs) // 4 : -len(probs) // 4]
    widest = int(np.diff(middle).argmax())
    classifier.threshold = float(middle[widest : widest + 2].mean())


def write_student(folder: Path, toy: Path, **shape: Any) -> Path:
    """Write the run folder of a student whose logits differ between sentences; return it."""
    torch.manual_seed(0)
    tokenizer = SentenceTokenizer.from_base(toy / "base")
    config = RNNConfig(vocab_size=tokenizer.vocab_size, embedding_size=16, hidden_size=16, **shape)
    model = DistilRNN(config).eval()
    if config.num_embeddings is not None:
        model.embed_only(list(range(250, 249 + config.num_embeddings)))
    model.score.weight.data *= 6
    origin = {"command": "distill", "settings": {"base": "builtin"}}
    classifier = SentenceClassifier(model, tokenizer, LABELS, origin=origin, temperature=1.7)
    choose_threshold(classifier, toy)
    folder.mkdir(parents=True)
    classifier.save(folder / "ckpt.pt")
    return folder


def write_gpt(folder: Path, toy: Path, *, family: str = "gpt2") -> Path:
    """Write the run folder of a GPT with adapters, trained norms and boundary tokens; return it."""
    torch.manual_seed(0)
    base = toy / "base"
    tokenizer = load_tokenizer(base, prefix=True, suffix=True)
    if family == "gpt2":
        gpt = load_gpt(base)
    else:
        gpt = GPT(
            GPTConfig(
                vocab_size=tokenizer.vocab_size,
                num_positions=64,
                width=32,
                num_layers=2,
                num_heads=4,
                num_kv_heads=2,
                activation="silu",
                mlp_width=48,
                norm_epsilon=1e-6,
                family=family,
            )
        )
    model = gpt.classifier(2)
    lora = LoRAConfig(rank=4)
    inject(model, lora)
    train_modules(model)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.05 * torch.randn_like(parameter)
        model.score.weight *= 10
    origin = {"command": "finetune", "base": "builtin"}
    classifier = SentenceClassifier(model.eval(), tokenizer, LABELS, 64, None, lora, origin, 1.7)
    choose_threshold(classifier, toy)
    folder.mkdir(parents=True)
    classifier.save(folder / "ckpt.pt")
    return folder
