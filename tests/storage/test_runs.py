"""Whole runs through the command line: resuming, stopping, several processes, one-file models."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from colakit.config.resolve import resolve
from colakit.config.yaml import read_yaml
from colakit.data.corpora import load_corpus
from colakit.data.tokenizer import save_tokenizer
from colakit.inference.classifier import load_classifier
from colakit.models.gpt.config import GPTConfig
from colakit.models.gpt.model import GPT
from colakit.storage.checkpoints import Checkpoints
from colakit.storage.gpt2 import load_tokenizer, save_gpt

Run = Callable[..., tuple[int, str, str]]
QUICK = [
    "--set",
    "finetune.log_every=1",
    "--set",
    "student_training.log_every=1",
    "--set",
    "finetune.add_bos=true",
]


def options(toy: Path, **more: object) -> list[str]:
    flags = {"base": toy / "base", "data": toy / "corpus", "epochs": 2, "batch-size": 32, "lr": 2e-3, **more}
    return [*QUICK, "--quiet", *(text for name, value in flags.items() for text in (f"--{name}", str(value)))]


def records(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def wait_for_state(process: subprocess.Popen[Any], run: Path) -> None:
    """Wait until a run has saved its first state, or has ended."""
    deadline = time.monotonic() + 120
    while (
        not Checkpoints(run / "checkpoints").paths()
        and process.poll() is None
        and time.monotonic() < deadline
    ):
        time.sleep(0.05)


def step_losses(run: Path) -> list[float]:
    return [record["loss"] for record in records(run) if record["event"] == "step"]


def tensors_equal(first: Path, second: Path) -> bool:
    a, b = (torch.load(path / "ckpt.pt", weights_only=True)["tensors"] for path in (first, second))
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture(scope="module")
def tuned(toy: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished finetune run."""
    from colakit.cli.app import main

    folder = tmp_path_factory.mktemp("tuned") / "run"
    assert main(["finetune", *options(toy), "--out", str(folder)]) == 0
    return folder


def test_a_run_folder_has_every_documented_file(tuned: Path) -> None:
    names = {path.name for path in tuned.iterdir()}
    assert {
        "settings.yaml",
        "environment.json",
        "metrics.jsonl",
        "summary.json",
        "ckpt.pt",
        "checkpoints",
    } <= names
    assert "run.lock" not in names
    adapter = {path.name for path in (tuned / "adapter").iterdir()}
    tokenizer = {"tokenizer.json", "tokenizer_config.json"}
    assert adapter == {"adapter_config.json", "adapter_model.safetensors", "colakit.json"} | tokenizer
    summary = json.loads((tuned / "summary.json").read_text())
    for split in ("val", "id_dev", "ood_dev"):
        figures = summary["splits"][split]
        assert {"accuracy", "mcc", "majority_rate", "loss", "mcc_interval"} <= figures.keys()
        assert figures["mcc_interval"][0] <= figures["mcc"] <= figures["mcc_interval"][1]


def test_predictions_hold_probabilities_and_name_their_sentences(tuned: Path, toy: Path) -> None:
    content = json.loads((tuned / "predictions.json").read_text())
    threshold = json.loads((tuned / "summary.json").read_text())["threshold"]
    assert content["label_names"] == ["unacceptable", "acceptable"]
    corpus = load_corpus(toy / "corpus")
    for name, split in content["splits"].items():
        of = corpus.splits["train" if name == "val" else name]  # rows of val are rows of train
        sentences = [of.sentences[i] for i in split["sentences"]]
        assert split["sentences_sha256"] == hashlib.sha256("\n".join(sentences).encode()).hexdigest()
        assert split["labels"] == of.require_labels()[split["sentences"]].tolist()
        assert len(split["predictions"]) == len(sentences)
        for label, probs in zip(split["predictions"], split["probabilities"], strict=True):
            assert sum(probs) == pytest.approx(1, abs=2e-6)
            assert label == (probs[1] >= threshold) or probs[1] == pytest.approx(threshold, abs=1e-6)


def test_the_best_evaluation_is_measured_as_the_run_ends(tuned: Path) -> None:
    summary = json.loads((tuned / "summary.json").read_text())
    for figure in ("mcc", "accuracy", "loss"):
        assert summary["best"][figure] == summary["splits"]["val"][figure]
    lines = [json.loads(line) for line in (tuned / "metrics.jsonl").read_text().splitlines()]
    evaluations = [line["val"]["mcc"] for line in lines if line["event"] == "evaluation"]
    assert summary["best"]["mcc"] == max(evaluations)


def test_saved_settings_feed_back_into_config(tuned: Path, toy: Path) -> None:
    again = resolve(config=tuned / "settings.yaml", environment={}).settings
    assert again.model_dump(mode="json") == read_yaml(tuned / "settings.yaml")
    assert again.base == str(toy / "base")


def test_a_checkpoint_needs_neither_base_nor_transformers(tuned: Path, tmp_path: Path) -> None:
    alone = tmp_path / "elsewhere.pt"
    alone.write_bytes((tuned / "ckpt.pt").read_bytes())
    script = (
        "import sys; from colakit.cli.app import main; "
        f"code = main(['predict', '--model', {str(alone)!r}]); "
        "assert 'transformers' not in sys.modules; sys.exit(code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        input="The old cat sleeps.\n",
        capture_output=True,
        text=True,
        check=True,
    )
    header, row = done.stdout.splitlines()
    assert header.split("\t") == ["label", "p(unacceptable)", "p(acceptable)", "sentence"]
    assert row.endswith("The old cat sleeps.")


def test_checkpoint_and_adapter_are_the_same_model(tuned: Path, toy: Path, fp32: Any) -> None:
    sentences = ["The old cat sleeps.", "Cats the sleeps.", ""]
    logits = []
    for where in (tuned, tuned / "ckpt.pt", tuned / "adapter"):
        classifier = load_classifier(where)
        fp32.place(classifier.model)
        logits.append(torch.from_numpy(classifier.logits(classifier.encode(sentences), fp32)))
        assert classifier.threshold == load_classifier(tuned).threshold
        assert classifier.tokenizer.prefix
    assert torch.equal(logits[0], logits[1])
    # a checkpoint keeps the base as it was stored in training (bf16 where the machine has units for it)
    torch.testing.assert_close(logits[2], logits[0], rtol=0.05, atol=0.05)


@pytest.mark.usefixtures("heeds_interrupts")
@pytest.mark.parametrize("command", ["finetune", "distill", "train-scratch"])
@pytest.mark.parametrize(("stop_after", "ema_decay"), [(3, "null"), (7, "0.8")])
def test_resumed_equals_uninterrupted(
    command: str,
    stop_after: int,
    ema_decay: str,
    toy: Path,
    tuned: Path,
    colakit: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from colakit.training.trainer import Trainer

    teacher = ["--teacher", str(tuned)] if command == "distill" else []
    common = [command, *options(toy), *teacher, "--set", "finetune.base_dropout=0.1"]
    for section in ("finetune", "student_training"):
        common += ["--set", f"{section}.ema_decay={ema_decay}"]
    assert colakit(*common, "--out", tmp_path / "whole")[0] == 0

    after_step = Trainer._after_step

    def interrupting(self: Any, report: Any, bar: Any) -> None:
        after_step(self, report, bar)
        if report.step == stop_after:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(Trainer, "_after_step", interrupting)
    code, _, err = colakit(*common, "--out", tmp_path / "parts")
    assert code == 130
    assert f"stopped: after step {stop_after}" in err
    assert "--resume" in err
    monkeypatch.setattr(Trainer, "_after_step", after_step)
    assert colakit(command, "--resume", "--out", tmp_path / "parts", "--quiet")[0] == 0

    assert (tmp_path / "parts/metrics.jsonl").read_bytes() == (tmp_path / "whole/metrics.jsonl").read_bytes()
    assert (tmp_path / "parts/ckpt.pt").read_bytes() == (tmp_path / "whole/ckpt.pt").read_bytes()


def test_resuming_with_other_settings_is_refused_by_name(
    toy: Path, colakit: Run, tmp_path: Path, tuned: Path
) -> None:
    unfinished = tmp_path / "run"
    shutil.copytree(tuned, unfinished)
    (unfinished / "summary.json").unlink()
    code, _, err = colakit("finetune", "--resume", "--out", unfinished, "--seed", 5, "--rank", 2, "--quiet")
    assert code == 2
    assert "lora.rank was 8, is 2" in err
    assert "seed was 0, is 5" in err


def test_resuming_with_other_dev_data_is_refused(
    toy: Path, colakit: Run, tmp_path: Path, tuned: Path
) -> None:
    corpus = shutil.copytree(toy / "corpus", tmp_path / "corpus")
    dev = next(corpus.rglob("in_domain_dev.tsv"))
    source, label, *rest = dev.read_text(encoding="utf-8").split("\t")
    dev.write_text("\t".join([source, str(1 - int(label)), *rest]), encoding="utf-8")
    shutil.copytree(tuned, tmp_path / "run")
    (tmp_path / "run/summary.json").unlink()
    code, _, err = colakit("finetune", "--resume", "--out", tmp_path / "run", "--data", corpus)
    assert code == 2
    assert re.search(r"id_dev was '[0-9a-f]{12}…', is '[0-9a-f]{12}…'", " ".join(err.split()))


def test_resuming_with_another_limit_on_length_is_refused(
    toy: Path, colakit: Run, tmp_path: Path, tuned: Path
) -> None:
    shutil.copytree(tuned, tmp_path / "run")
    (tmp_path / "run/summary.json").unlink()
    code, _, err = colakit("finetune", "--resume", "--out", tmp_path / "run", "--set", "data.max_tokens=4")
    assert code == 2
    assert "max_tokens was 64, is 4" in err


def test_an_early_stopped_run_resumes_without_another_step(toy: Path, colakit: Run, tmp_path: Path) -> None:
    patient = ["--set", "student_training.patience=1", "--set", "student_training.metric_for_best_model=loss"]
    out = tmp_path / "run"
    assert colakit("train-scratch", *options(toy, epochs=50, lr=0.5), *patient, "--out", out)[0] == 0
    before = (out / "metrics.jsonl").read_bytes()
    (out / "summary.json").unlink()
    assert colakit("train-scratch", "--resume", "--out", out)[0] == 0
    assert (out / "metrics.jsonl").read_bytes() == before


def test_a_run_under_nohup_outlives_a_hangup(toy: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "colakit", "train-scratch", *options(toy, epochs=10)]
    process = subprocess.Popen(
        ["nohup", *command, "--out", str(tmp_path / "run")], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    wait_for_state(process, tmp_path / "run")
    process.send_signal(signal.SIGHUP)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err


@pytest.mark.parametrize("teacher", ["run", "adapter"])
def test_a_student_starts_as_its_control_does(
    teacher: str, toy: Path, tuned: Path, colakit: Run, tmp_path: Path
) -> None:
    where = tuned if teacher == "run" else tuned / "adapter"
    kd = ["--teacher", str(where), "--kd-weight", "0", "--set", "transfer.size=0"]
    assert colakit("distill", *options(toy), *kd, "--out", tmp_path / "kd")[0] == 0
    like = ["--like", tmp_path / "kd", "--quiet"]
    assert colakit("train-scratch", *like, "--out", tmp_path / "control")[0] == 0
    # with no weight on the teacher nothing is left that could differ
    assert tensors_equal(tmp_path / "kd", tmp_path / "control")


def test_a_finished_run_is_not_trained_again(tuned: Path, colakit: Run) -> None:
    before = (tuned / "ckpt.pt").stat().st_mtime_ns
    code, out, _ = colakit("finetune", "--resume", "--out", tuned, "--json")
    assert code == 0
    assert json.loads(out)["command"] == "finetune"
    assert (tuned / "ckpt.pt").stat().st_mtime_ns == before


def test_teacher_logits_are_computed_once(toy: Path, tuned: Path, colakit: Run, tmp_path: Path) -> None:
    command = ["distill", *options(toy, epochs=1)[: -0 or None], "--teacher", tuned]
    command.remove("--quiet")
    _, _, first = colakit(*command, "--out", tmp_path / "one")
    _, _, second = colakit(*command, "--out", tmp_path / "two", "--seed", 1)
    assert "computing logits of " in first
    assert "computing logits of " not in second


def test_early_stopping_ends_the_run(toy: Path, colakit: Run, tmp_path: Path) -> None:
    patient = ["--set", "finetune.patience=1", "--set", "finetune.metric_for_best_model=loss"]
    code, out, _ = colakit(
        "finetune", *options(toy, epochs=50, lr=0.5), *patient, "--out", tmp_path / "run", "--json"
    )
    assert code == 0
    assert json.loads(out)["steps"] < 50 * 7


def test_dev_is_measured_during_training_only_where_asked(
    toy: Path, colakit: Run, tmp_path: Path, tuned: Path
) -> None:
    assert not any("dev" in record for record in records(tuned))
    colakit("finetune", *options(toy), "--set", "finetune.track_dev=true", "--out", tmp_path / "tracked")
    tracked = [record for record in records(tmp_path / "tracked") if record["event"] == "evaluation"]
    assert all(set(record["dev"]) == {"id_dev", "ood_dev"} for record in tracked)
    # looking at dev changes nothing that is trained or chosen
    assert tensors_equal(tmp_path / "tracked", tuned)


def test_a_model_tuned_on_an_int8_base_is_read_by_other_commands(
    toy: Path, tmp_path: Path, colakit: Run
) -> None:
    run = tmp_path / "run"
    assert colakit("finetune", *options(toy), "--precision", "int8", "--out", run)[0] == 0
    trained = json.loads((run / "summary.json").read_text())["splits"]["id_dev"]["loss"]
    for precision in ("int8", "fp32"):
        code, out, _ = colakit("evaluate", run, "--data", toy / "corpus", "--precision", precision, "--json")
        assert code == 0
        (model,) = json.loads(out)["splits"]["id_dev"]["models"]
        assert model["metrics"]["loss"] == pytest.approx(trained, abs=0.01)


def write_llama(toy: Path, folder: Path) -> Path:
    """Write a Llama base with random weights and the toy's tokenizer."""
    tokenizer = load_tokenizer(toy / "base")
    shape = {"num_positions": 64, "width": 32, "num_layers": 2, "num_heads": 4, "num_kv_heads": 2}
    torch.manual_seed(0)
    config = GPTConfig(vocab_size=tokenizer.vocab_size, family="llama", activation="silu", **shape)
    config = replace(config, embedding_dropout=0.0, attention_dropout=0.0, residual_dropout=0.0)
    save_gpt(GPT(config), folder, end_of_text_id=tokenizer.end_of_text_id)
    save_tokenizer(tokenizer, folder, max_tokens=64)
    return folder


@pytest.mark.parametrize(
    ("family", "batch_size"),
    [("llama", 30), ("gpt2", 43)],  # 216 training sentences: 43 leaves a batch of one
)
def test_two_processes_give_the_losses_of_one(
    toy: Path, tmp_path: Path, colakit: Run, family: str, batch_size: int
) -> None:
    base = toy / "base" if family == "gpt2" else write_llama(toy, tmp_path / "base")
    common = [
        "finetune",
        *options(toy, **{"base": base, "batch-size": batch_size}),
        "--precision",
        "fp32",
        "--set",
        "student.dropout=0",
    ]
    assert colakit(*common, "--out", tmp_path / "one")[0] == 0
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    launched = [*launcher, "-m", "colakit", *common, "--out", str(tmp_path / "two")]
    done = subprocess.run(launched, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    single, double = step_losses(tmp_path / "one"), step_losses(tmp_path / "two")
    assert len(single) == len(double) == 2 * -(-216 // batch_size)
    # gradients are summed in another order; AdamW turns that into differences of the order of 1e-5
    assert double == pytest.approx(single, abs=1e-4)
    ends = [[r for r in records(tmp_path / run) if r["event"] == "evaluation"][-1] for run in ("one", "two")]
    assert ends[1]["train"]["accuracy"] == pytest.approx(ends[0]["train"]["accuracy"], abs=0.01)
    assert ends[1]["val"]["loss"] == pytest.approx(ends[0]["val"]["loss"], abs=1e-3)


def test_sigterm_saves_and_exits_143(toy: Path, tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "colakit",
        "finetune",
        *options(toy, epochs=500),
        "--out",
        str(tmp_path / "run"),
    ]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    wait_for_state(process, tmp_path / "run")
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 143, err
    assert "--resume" in err
