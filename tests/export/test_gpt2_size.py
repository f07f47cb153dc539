"""A GPT-2 of its true size, with random weights and a random adapter, is exported and answers alike."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.exported import write_gpt

from colakit.data.corpora import load_corpus
from colakit.data.corpus_files import COLA_FILES
from colakit.data.tokenizer import SentenceTokenizer, save_tokenizer
from colakit.export import parity
from colakit.inference.classifier import load_classifier
from colakit.models.gpt.config import GPTConfig
from colakit.models.gpt.model import GPT
from colakit.runtime.device import Compute
from colakit.storage.gpt2 import save_gpt

NUM_SENTENCES = 150  # of each dev split


@pytest.fixture(scope="module")
def workspace(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with `base`, a GPT-2 of 124 million random weights, and `corpus`, sentences of CoLA."""
    folder = tmp_path_factory.mktemp("gpt2")
    (folder / "corpus").mkdir()
    for file in COLA_FILES.values():
        lines = (shared / "cola" / "cola_public" / "raw" / file).read_text(encoding="utf-8").splitlines()
        text = "".join(f"{line}\n" for line in lines[:NUM_SENTENCES])
        (folder / "corpus" / file).write_text(text, encoding="utf-8")
    tokenizer = SentenceTokenizer.from_base(shared / "gpt2-tokenizer")
    torch.manual_seed(0)
    save_gpt(GPT(GPTConfig()), folder / "base", end_of_text_id=tokenizer.end_of_text_id)
    save_tokenizer(tokenizer, folder / "base", max_tokens=1024)
    return folder


@pytest.mark.slow
def test_gpt2_of_its_true_size_answers_alike(
    colakit: Callable[..., Any],
    workspace: Path,
    fp32: Compute,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(parity, "NUM_TIMED", 3)
    run, out = write_gpt(workspace / "run", workspace), workspace / "out"
    original = load_classifier(run)
    sentences = load_corpus(workspace / "corpus").split("id_dev").sentences
    logits = original.logits(original.encode(sentences), fp32)
    assert np.ptp(logits[:, 1] - logits[:, 0]) > 1, "the answers must differ between sentences"
    words = ["export", run, "--data", workspace / "corpus", "--out", out, "--license", "mit"]
    code, _, err = colakit(*words, "--fold-threshold", "--quantize", "none")
    assert code == 0, err
    files = json.loads((out / "colakit.json").read_text())["parity"]["files"]
    assert [each["file"] for each in files] == ["colakit", "model.safetensors", "onnx/model.onnx"]
    for each in files[1:]:
        assert each["flipped"] == 0
        assert each["max_difference"] < 1e-4  # fp32 through 12 layers, in another order of operations
        with capsys.disabled():
            print(f"\n{each['file']}: {each['size'] / 1e6:.2f} MB, difference {each['max_difference']:.1e}")
