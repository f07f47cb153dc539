"""Tests that need a CUDA device: `make test-gpu`; skipped without one."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from colakit.inference.generation import generate_tokens
from colakit.runtime.device import resolve_compute
from colakit.storage.gpt2 import load_gpt
from colakit.training.trainer import Trainer

Run = Callable[..., tuple[int, str, str]]
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_whole_pipeline_runs_on_the_gpu(precision: str, toy: Path, colakit: Run, tmp_path: Path) -> None:
    common = ["--base", toy / "base", "--data", toy / "corpus", "--device", "cuda", "--precision", precision]
    commands = [["finetune"], ["distill", "--teacher", tmp_path / "finetune"], ["train-scratch"]]
    for command in commands:
        code, _, err = colakit(*command, *common, "--epochs", 2, "--out", tmp_path / str(command[0]))
        assert code == 0, err
    code, out, err = colakit("evaluate", *(tmp_path / str(c[0]) for c in commands), *common[2:], "--json")
    assert code == 0, err
    assert len(json.loads(out)["splits"]["dev"]["models"]) == 3


def tuning(toy: Path) -> list[object]:
    where = ["--base", toy / "base", "--data", toy / "corpus", "--device", "cuda", "--precision", "fp32"]
    return ["finetune", *where, "--epochs", 4]


def test_steps_as_graphs_train_as_plain_ones_do(toy: Path, colakit: Run, tmp_path: Path) -> None:
    losses = {}
    for graphs in ("auto", "never"):
        chosen = [
            "--set",
            f"cuda_graphs={graphs}",
            "--set",
            "finetune.base_dropout=0",
            "--out",
            tmp_path / graphs,
        ]
        code, _, err = colakit(*tuning(toy), *chosen)
        assert code == 0, err
        assert ("steps as CUDA graphs" in err) == (graphs == "auto")
        assert "continuing without" not in err
        losses[graphs] = json.loads((tmp_path / graphs / "summary.json").read_text())["splits"]["val"]["loss"]
    assert losses["auto"] == pytest.approx(losses["never"], rel=1e-3)


@pytest.mark.usefixtures("heeds_interrupts")
def test_steps_as_graphs_resume_to_the_same_bytes(
    toy: Path, colakit: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    common = [*tuning(toy), "--set", "finetune.base_dropout=0.1", "--set", "cuda_graphs=auto"]
    assert colakit(*common, "--out", tmp_path / "whole")[0] == 0
    after_step = Trainer._after_step

    def interrupting(self: Any, report: Any, bar: Any) -> None:
        after_step(self, report, bar)
        if report.step == 5:
            os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "_after_step", interrupting)
        assert colakit(*common, "--out", tmp_path / "parts")[0] == 130
    assert colakit("finetune", "--resume", "--out", tmp_path / "parts")[0] == 0
    for name in ("metrics.jsonl", "ckpt.pt"):
        assert (tmp_path / "parts" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_the_gpu_generates_what_the_cpu_does(toy: Path) -> None:
    texts = []
    for device in ("cpu", "cuda"):
        compute = resolve_compute(device, "fp32")
        model = compute.place(load_gpt(toy / "base").requires_grad_(False))
        prompt = torch.tensor([[1, 2, 3]])
        tokens = generate_tokens(model, prompt, max_new_tokens=10, compute=compute, temperature=0)  # type: ignore[arg-type]
        texts.append([int(token) for token in tokens])
    assert texts[0] == texts[1]
