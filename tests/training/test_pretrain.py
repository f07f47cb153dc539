"""`colakit pretrain`: training, resuming, and use of the base by other commands."""

from __future__ import annotations

import copy
import json
import os
import re
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support.toy import ToyGrammar
from torch.testing import assert_close

from colakit.cli.app import main
from colakit.data.tokenizer import SentenceTokenizer
from colakit.data.windows import Windows
from colakit.models.gpt.config import GPTConfig
from colakit.models.gpt.model import GPT
from colakit.storage.gpt2 import load_gpt, save_gpt
from colakit.training.optimizers import MuonWithAdamW, pretraining_optimizer
from colakit.training.trainer import Trainer

Run = Callable[..., tuple[int, str, str]]
SMALL = [
    *("--vocab-size", "300", "--num-layers", "2", "--width", "32", "--num-heads", "2", "--tokens", "20480"),
    *("--num-positions", "32", "--batch-size", "16", "--seed", "1", "--device", "cpu", "--precision", "fp32"),
    *("--set", "pretrain.micro_batch_size=8", "--set", "pretrain.evaluate_every_steps=10"),
    *("--lr", "2e-3", "--set", "pretrain.muon_lr=0.02"),
    *(
        "--set",
        "pretrain.log_every=1",
        "--set",
        "pretrain.compile=never",
        "--set",
        "pretrain.val_fraction=0.1",
    ),
]


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    grammar = ToyGrammar(0)
    path = tmp_path_factory.mktemp("text") / "toy.txt"
    documents = [" ".join(grammar.acceptable() for _ in range(20)) for _ in range(40)]
    path.write_text("\n<|endoftext|>\n".join(documents), encoding="utf-8")
    return path


def records(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def pretrained(text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run."""
    folder = tmp_path_factory.mktemp("pretrained")
    settings = ["--set", f"cache={folder / 'cache'}"]
    assert main(["pretrain", str(text), *SMALL, *settings, "--out", str(folder / "run")]) == 0
    return folder / "run"


def test_pretraining_lowers_validation_bits_per_byte(pretrained: Path) -> None:
    measured = [r["bits_per_byte"]["toy"] for r in records(pretrained) if r["event"] == "evaluation"]
    assert len(measured) == 4
    assert measured[-1] < 0.8 * measured[0]
    summary = json.loads((pretrained / "summary.json").read_text())
    assert summary["bits_per_byte"]["toy"] == pytest.approx(
        measured[-1], rel=0.02
    )  # full evaluation, not a sample
    assert summary["tokens"] == 20480


def test_transformers_loads_the_base_with_equal_logits(pretrained: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from colakit.storage.gpt2 import load_gpt

    reference = AutoModelForCausalLM.from_pretrained(pretrained / "base", dtype=torch.float32).eval()
    ids = AutoTokenizer.from_pretrained(pretrained / "base")("These cats see the girl.", return_tensors="pt")
    ours = load_gpt(pretrained / "base")
    with torch.no_grad():
        torch.testing.assert_close(ours(ids["input_ids"]), reference(**ids).logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
def test_a_llama_base_trains_and_has_the_logits_of_transformers(
    family: str, text: Path, colakit: Run, tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    shape = ["--family", family, "--num-kv-heads", "1", "--tokens", "5120"]
    code, _, err = colakit("pretrain", text, *SMALL, *shape, "--out", tmp_path / "run")
    assert code == 0, err
    losses = [r["loss"] for r in records(tmp_path / "run") if r["event"] == "step"]
    assert losses[-1] < 0.95 * losses[0]
    base = tmp_path / "run" / "base"
    reference = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
    assert type(reference).__name__.lower() == f"{family}forcausallm"
    ids = AutoTokenizer.from_pretrained(base)("These cats see the girl.", return_tensors="pt")
    with torch.no_grad():
        assert_close(load_gpt(base)(ids["input_ids"]), reference(**ids).logits, rtol=1e-4, atol=1e-4)

    begin, from_base = continue_arguments(text, base, tmp_path / "cache")
    code, out, err = colakit(*begin, *from_base, "--dry-run", "--out", tmp_path / "more")
    assert code == 0, err
    assert f"{sum(p.numel() for p in reference.parameters()):,}" in out


def test_generate_and_finetune_accept_the_base(
    pretrained: Path, toy: Path, colakit: Run, tmp_path: Path
) -> None:
    base = ["--base", str(pretrained / "base")]
    code, out, err = colakit("generate", *base, "--prompt", "The cat", "--max-new-tokens", "5")
    assert code == 0, err
    assert out.startswith("The cat")
    short = ["--epochs", "1", "--data", str(toy / "corpus"), "--out", tmp_path / "run"]
    code, _, err = colakit("finetune", *base, *short)
    assert code == 0, err


@pytest.mark.usefixtures("heeds_interrupts")
@pytest.mark.parametrize("stop_after", [7, 23])
def test_resumed_pretraining_equals_uninterrupted(
    stop_after: int,
    text: Path,
    pretrained: Path,
    colakit: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    after_step = Trainer._after_step

    def interrupting(self: Any, report: Any, bar: Any) -> None:
        after_step(self, report, bar)
        if report.step == stop_after:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(Trainer, "_after_step", interrupting)
    code, _, err = colakit("pretrain", text, *SMALL, "--out", tmp_path / "run")
    assert code == 130, err
    monkeypatch.setattr(Trainer, "_after_step", after_step)
    code, _, err = colakit("pretrain", "--resume", "--out", tmp_path / "run")
    assert code == 0, err
    assert records(tmp_path / "run") == records(pretrained)
    weights = [(run / "base" / "model.safetensors").read_bytes() for run in (tmp_path / "run", pretrained)]
    assert weights[0] == weights[1]


def test_other_text_is_refused_on_resume(text: Path, pretrained: Path, colakit: Run, tmp_path: Path) -> None:
    other = tmp_path / "toy.txt"
    other.write_text(text.read_text(encoding="utf-8").replace("cat", "dog"), encoding="utf-8")
    code, _, err = colakit("pretrain", other, *SMALL, "--resume", "--out", pretrained)
    assert code == 2
    assert "the run was started differently" in err
    assert "text was" in err


def test_more_tokens_are_refused_after_lr_decay_began(pretrained: Path, colakit: Run, tmp_path: Path) -> None:
    shutil.copytree(pretrained, tmp_path / "run")
    (tmp_path / "run" / "summary.json").unlink()
    code, _, err = colakit("pretrain", "--resume", "--tokens", "40960", "--out", tmp_path / "run")
    assert code == 2
    assert "40 steps were planned, now 80; the learning rate at step 40 depends on it" in " ".join(
        err.split()
    )


def test_tokens_may_grow_on_resume_before_the_rate_decays(text: Path, colakit: Run, tmp_path: Path) -> None:
    steady = ["--set", "pretrain.schedule=constant", "--set", "pretrain.warmup=0"]
    assert colakit("pretrain", text, *SMALL, *steady, "--tokens", "2048", "--out", tmp_path / "run")[0] == 0
    (tmp_path / "run" / "summary.json").unlink()
    code, _, err = colakit("pretrain", "--resume", "--tokens", "4096", "--out", tmp_path / "run")
    assert code == 0, err
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["steps"] == 8


def test_extending_a_finished_run_is_refused(
    pretrained: Path, text: Path, colakit: Run, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    shutil.copytree(pretrained, out)
    code, _, err = colakit("pretrain", text, *SMALL, "--tokens", 40960, "--out", out, "--resume")
    assert code == 2
    message = " ".join(err.split())
    assert "is finished after 40 steps (got 80)" in message
    assert f"--init-from {out / 'base'}" in message


def test_plot_and_evaluate_refuse_a_base(pretrained: Path, colakit: Run) -> None:
    code, _, err = colakit("plot", pretrained)
    assert code == 2
    assert "is a run of pre-training; there is nothing to plot" in " ".join(err.split())
    code, _, err = colakit("evaluate", pretrained, "--data", "builtin")
    assert code == 2
    assert f"tune it with --base {pretrained / 'base'}" in " ".join(err.split())


def test_invalid_input_is_refused_before_training(text: Path, colakit: Run, tmp_path: Path) -> None:
    one_sentence = tmp_path / "one.txt"
    one_sentence.write_text("this is all there is, and it goes on and on. " * 40, encoding="utf-8")
    for arguments, message in (
        ([], "no text to read"),
        ([tmp_path / "none.txt"], "file not found"),
        ([text, "--width", "33", "--num-heads", "2"], "must be divisible"),
        ([text, text], "the same name"),
        ([text, "--set", "pretrain.upsample.other=2"], "other is not among pretrain.text"),
        ([one_sentence, *SMALL], "too little text"),
    ):
        code, _, err = colakit("pretrain", *arguments, "--out", tmp_path / "run")
        assert code == 2, err
        assert message in err
        assert not (tmp_path / "run").exists()


def test_a_text_argument_may_be_upsampled(text: Path, colakit: Run, tmp_path: Path) -> None:
    repeats = ["--set", f"pretrain.upsample.{text.stem}=2", "--tokens", "1024"]
    code, _, err = colakit("pretrain", text, *SMALL, *repeats, "--out", tmp_path / "run")
    assert code == 0, err
    (tmp_path / "run" / "summary.json").unlink()
    code, _, err = colakit("pretrain", "--resume", "--out", tmp_path / "run")
    assert code == 0, err


def test_an_unwritable_cache_does_not_stop_training(
    text: Path, colakit: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cache").write_text("a file, no folder", encoding="utf-8")
    monkeypatch.setenv("COLAKIT_CACHE", str(tmp_path / "cache"))
    code, _, err = colakit("pretrain", text, *SMALL, "--tokens", "512", "--out", tmp_path / "run")
    assert code == 0, err


def test_a_dry_run_prints_steps_and_parameters(text: Path, colakit: Run, tmp_path: Path) -> None:
    code, out, err = colakit("pretrain", text, *SMALL, "--dry-run", "--out", tmp_path / "run")
    assert code == 0, err
    assert "40 steps of 512 tokens" in out
    assert "stage 2 of 3: training, 40 steps, " in out
    assert "stage 3 of 3: evaluating, time unknown" in out
    assert not (tmp_path / "run").exists()


def tiny_gpt() -> GPT:
    torch.manual_seed(0)
    return GPT(GPTConfig(17, 8, 8, 1, 2))


def test_muon_trains_block_matrices_and_adamw_the_rest() -> None:
    model = tiny_gpt()
    optimizer = pretraining_optimizer(model, "muon", lr=1e-3, muon_lr=0.02, weight_decay=0.1)
    assert isinstance(optimizer, MuonWithAdamW)
    names = {id(p): name for name, p in model.named_parameters()}
    muon, adamw = ({names[id(p)] for g in part.param_groups for p in g["params"]} for part in optimizer.parts)
    assert muon == {n for n, p in model.named_parameters() if ".h." in n and p.ndim == 2}
    assert adamw == set(names.values()) - muon


@pytest.mark.parametrize("name", ["muon", "adamw"])
def test_lr_of_param_groups_applies_also_after_loading(name: str) -> None:
    model = tiny_gpt()
    optimizer = pretraining_optimizer(model, name, lr=1e-3, muon_lr=0.02, weight_decay=0.0)
    optimizer.load_state_dict(optimizer.state_dict())
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    before = [p.detach().clone() for p in model.parameters()]
    ids = torch.randint(17, (2, 8))
    model(ids, targets=ids).backward()
    optimizer.step()
    assert all(torch.equal(p, old) for p, old in zip(model.parameters(), before, strict=True))
    for group in optimizer.param_groups:
        group["lr"] = 0.01
    optimizer.step()
    assert not any(torch.equal(p, old) for p, old in zip(model.parameters(), before, strict=True))


def continue_arguments(text: Path, base: Path, cache: Path) -> tuple[list[str], list[str]]:
    """Arguments of a run of two steps, and those that continue from a base."""
    small = [word for word in SMALL if word not in ("--tokens", "20480")]
    for option in ("--vocab-size", "--num-layers", "--width", "--num-heads", "--num-positions"):
        index = small.index(option)
        del small[index : index + 2]
    begin = ["pretrain", str(text), *small, "--tokens", "1024", "--set", f"cache={cache}"]
    return begin, ["--init-from", str(base)]


def test_training_continues_from_a_base(pretrained: Path, text: Path, colakit: Run, tmp_path: Path) -> None:
    begin, base = continue_arguments(text, pretrained / "base", tmp_path / "cache")
    code, _, err = colakit(*begin, *base, "--out", str(tmp_path / "on"))
    assert code == 0, err
    before = json.loads((pretrained / "summary.json").read_text())["bits_per_byte"]["toy"]
    summary = json.loads((tmp_path / "on" / "summary.json").read_text())
    assert summary["steps"] == 2
    assert summary["bits_per_byte"]["toy"] < 1.1 * before  # the loss continues from the base
    first, second = (SentenceTokenizer.from_base(run / "base") for run in (pretrained, tmp_path / "on"))
    assert first.vocabulary() == second.vocabulary()

    code, out, err = colakit(*begin, *base, "--dry-run", "--out", str(tmp_path / "dry"))
    assert code == 0, err
    assert "36,096" in out  # parameters
    assert not (tmp_path / "dry").exists()
    code, _, err = colakit(*begin, *base, "--out", str(tmp_path / "on"), "--resume")
    assert code == 0, err  # the saved state is accepted

    for width in ("384", "768"):  # 384 is the default
        code, _, err = colakit(*begin, *base, "--width", width, "--out", str(tmp_path / "other"))
        assert code == 2
        assert f"pretrain.width is {width}, but 32" in err
    code, _, err = colakit(*begin, *base, "--tokenizer", str(pretrained), "--out", str(tmp_path / "other"))
    assert code == 2
    assert "--init-from uses the base's tokenizer" in err


def test_start_weight_averages_with_the_initial_base(
    pretrained: Path, text: Path, colakit: Run, tmp_path: Path
) -> None:
    begin, base = continue_arguments(text, pretrained / "base", tmp_path / "cache")
    weights, measured = [load_gpt(pretrained / "base").state_dict()], []
    for name, share in (("all", "0"), ("half", "0.5")):
        code, _, err = colakit(
            *begin, *base, "--set", f"pretrain.start_weight={share}", "--out", tmp_path / name
        )
        assert code == 0, err
        weights.append(load_gpt(tmp_path / name / "base").state_dict())
        measured.append(json.loads((tmp_path / name / "summary.json").read_text())["bits_per_byte"]["toy"])
    start, end, half = weights
    assert any(not torch.equal(start[name], end[name]) for name in start)
    for name, value in half.items():
        assert_close(value, (start[name] + end[name]) / 2, rtol=2**-7, atol=1e-4)  # all three are bf16
    assert measured[0] != measured[1]  # the written base is the evaluated one

    code, _, err = colakit(*begin, "--set", "pretrain.start_weight=0.5", "--out", tmp_path / "no-base")
    assert code == 2
    assert "start_weight (=0.5) requires init_from" in " ".join(err.split())


def test_windows_may_be_shorter_than_num_positions(
    pretrained: Path, text: Path, colakit: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    widths: list[int] = []
    batch = Windows.batch
    monkeypatch.setattr(
        Windows, "batch", lambda self, rows: (widths.append(self.num_tokens), batch(self, rows))[1]
    )
    begin, base = continue_arguments(text, pretrained / "base", tmp_path / "cache")
    code, out, err = colakit(*begin, *base, "--window", "8", "--dry-run", "--out", tmp_path / "dry")
    assert code == 0, err
    assert "steps of 128 tokens" in " ".join(out.split())
    code, _, err = colakit(*begin, *base, "--window", "8", "--out", tmp_path / "run")
    assert code == 0, err
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["tokens"] == 128 * summary["steps"]
    assert widths[:2] == [8, 8]  # the micro-batches of a step
    assert widths[-1] == 32  # validation text
    assert load_gpt(tmp_path / "run" / "base").config.num_positions == 32

    code, _, err = colakit(*begin, *base, "--window", "33", "--out", tmp_path / "other")
    assert code == 2
    assert "pretrain.window is 33, but" in " ".join(err.split())
    code, _, err = colakit(*begin, "--window", "8", "--out", tmp_path / "other")
    assert code == 2
    assert "window (=8) requires init_from" in " ".join(err.split())


def test_a_run_from_another_base_is_not_resumed(
    pretrained: Path, text: Path, colakit: Run, tmp_path: Path
) -> None:
    index = SMALL.index("--tokens")
    small = [*SMALL[:index], "--tokens", "1024", *SMALL[index + 2 :]]
    run = [*("--set", f"cache={tmp_path / 'cache'}", "--out", str(tmp_path / "run"))]
    assert colakit("pretrain", str(text), *small, *run, "--init-from", str(pretrained / "base"))[0] == 0
    code, _, err = colakit(
        *("pretrain", str(text), *small, *run, "--init-from", str(tmp_path / "run" / "base"), "--resume")
    )
    assert code == 2
    assert "base was" in err


@pytest.mark.parametrize(
    ("vocab_size", "num_positions", "why"),
    [(280, 32, "its tokenizer has 300 tokens, but the model 280"), (300, 4, "num_positions: .*(got 4)")],
)
def test_incompatible_initial_base_is_refused(
    vocab_size: int, num_positions: int, why: str, pretrained: Path, text: Path, colakit: Run, tmp_path: Path
) -> None:
    base = tmp_path / "base"
    shutil.copytree(pretrained / "base", base)
    save_gpt(GPT(GPTConfig(vocab_size, num_positions, 32, 1, 2)), base)
    begin = ["--init-from", str(base), "--tokens", "1024", "--set", f"cache={tmp_path / 'cache'}"]
    code, _, err = colakit("pretrain", str(text), *begin, "--out", str(tmp_path / "run"))
    assert code == 2, err
    assert re.search(why, err)


@pytest.mark.parametrize("name", ["muon", "adamw"])
def test_a_copied_optimizer_trains_the_copied_model_alone(name: str) -> None:
    model = GPT(GPTConfig(vocab_size=300, num_positions=16, width=16, num_layers=1, num_heads=2))
    optimizer = pretraining_optimizer(model, name, lr=1e-3, muon_lr=0.02, weight_decay=0.0)
    copied_model, copied_optimizer = copy.deepcopy((model, optimizer))
    before = copy.deepcopy(model.state_dict())
    for group in copied_optimizer.param_groups:
        group["lr"] = 0.1
    for parameter in copied_model.parameters():
        parameter.grad = torch.ones_like(parameter)
    copied_optimizer.step()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(torch.equal(p, before[name]) for name, p in copied_model.named_parameters())
    assert all(group["lr"] < 0.1 for group in optimizer.param_groups)
