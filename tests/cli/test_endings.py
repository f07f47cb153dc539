"""Interrupted runs: locks, signals, full disks, non-finite weights, and `--resume auto`."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from stress.torture import run_output

from colakit.api.session import Session
from colakit.errors import ColakitError
from colakit.inference.classifier import load_classifier
from colakit.storage.checkpoints import STATE, Checkpoints
from colakit.storage.gpt2 import load_gpt, save_gpt
from colakit.storage.run_folder import RunFolder
from colakit.training.trainer import Trainer

Run = Callable[..., tuple[int, str, str]]
SETTINGS = ("epochs=2", "save_every_steps=2", "log_every=1")


def student(toy: Path, *more: object) -> list[str]:
    """A run of 0.1 s with 14 steps and checkpoints after every second step and the 7th."""
    settings = [word for text in SETTINGS for word in ("--set", f"student_training.{text}")]
    files = ["--base", str(toy / "base"), "--data", str(toy / "corpus"), "--set", f"cache={toy / 'cache'}"]
    files += ["--transfer-size", "0"]  # so that an epoch has 7 steps
    return ["train-scratch", *files, "--quiet", "--hidden-size", "8", *settings, *map(str, more)]


@pytest.fixture(autouse=True)
def cache_of_the_settings(monkeypatch: pytest.MonkeyPatch, isolated: None) -> None:
    """Unset the variable that would override the cache folder of the settings."""
    monkeypatch.delenv("COLAKIT_CACHE")


@pytest.fixture(scope="module")
def whole(toy: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run."""
    from colakit.cli.app import main

    folder = tmp_path_factory.mktemp("whole") / "run"
    assert main([*student(toy), "--out", str(folder)]) == 0
    return folder


@pytest.fixture
def parts(toy: Path, colakit: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run killed after step 5, with its last checkpoint at step 4."""
    folder = tmp_path / "parts"
    end_after(5, monkeypatch)
    with pytest.raises(EndedError):
        colakit(*student(toy), "--out", folder)
    monkeypatch.undo()
    return folder


class EndedError(Exception):
    pass


def end_after(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    after_step = Trainer._after_step

    def ending(self: Trainer, report: Any, bar: Any) -> None:
        after_step(self, report, bar)
        if report.step == step:
            raise EndedError

    monkeypatch.setattr(Trainer, "_after_step", ending)


def assert_same(run: Path, whole: Path) -> None:
    found, wanted = run_output(run), run_output(whole)
    assert not [name for name in {*found, *wanted} if found.get(name) != wanted.get(name)]


# -- resume


def test_resume_auto_starts_resumes_and_reports_a_finished_run(
    toy: Path, colakit: Run, parts: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert colakit(*student(toy), "--resume", "auto", "--out", tmp_path / "new")[0] == 0
    assert_same(tmp_path / "new", whole)
    code, _, err = colakit(
        "train-scratch", "--resume", "auto", "--out", parts
    )  # uses the settings of the run
    assert code == 0
    assert "after step 4 of 14" in err
    assert_same(parts, whole)
    monkeypatch.setattr(Session, "load_corpus", None)  # a finished run loads nothing
    for mode in ("--resume", "--resume=auto"):
        code, _, err = colakit("train-scratch", mode, "--out", parts)
        assert code == 0
        assert "is finished; nothing to resume" in err
    assert_same(parts, whole)


def test_run_without_a_checkpoint_starts_again(toy: Path, colakit: Run, whole: Path, tmp_path: Path) -> None:
    left = tmp_path / "run"
    (left / "checkpoints" / ".staging-step-00000002").mkdir(parents=True)
    (left / "base").mkdir()
    for name in ("settings.yaml", "environment.json"):
        shutil.copy(whole / name, left)
    (left / "metrics.jsonl").write_text('{"event": "st')
    (left / "run.lock").write_text("1\n")
    (left / ".settings.yaml.1.tmp").write_text("see")
    code, _, err = colakit(*student(toy), "--resume", "--out", left)
    assert code == 2
    assert "nothing to resume" in err
    assert colakit("train-scratch", "--resume", "auto", "--quiet", "--out", left)[0] == 0
    (left / "base").rmdir()
    assert_same(left, whole)


@pytest.mark.parametrize("mode", ["--resume", "--resume=auto"])
def test_resume_needs_a_folder(mode: str, toy: Path, colakit: Run) -> None:
    code, _, err = colakit(*student(toy), mode)
    assert code == 2
    assert "no run folder given" in err


def test_resume_auto_refuses_a_folder_that_is_not_a_run(toy: Path, colakit: Run) -> None:
    code, _, err = colakit(*student(toy), "--resume", "auto", "--out", toy)
    assert code == 2
    assert "is not empty" in err


def test_help_describes_resume(colakit: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    _, out, _ = colakit("finetune", "--help")
    assert "--resume" in out
    assert "[auto]" in out
    code, _, err = colakit("finetune", "--resume=sometimes", "--out", "run")
    assert code == 2
    assert "sometimes" in err


@pytest.mark.parametrize("gone", [["summary.json"], ["summary.json", "ckpt.pt", "predictions.json"]])
def test_killed_while_writing_results_and_resumed_equals_uninterrupted(
    gone: list[str], colakit: Run, whole: Path, tmp_path: Path
) -> None:
    shutil.copytree(whole, tmp_path / "run")
    for name in gone:
        (tmp_path / "run" / name).unlink()
    assert colakit("train-scratch", "--resume", "--quiet", "--out", tmp_path / "run")[0] == 0
    for name in (*gone, "metrics.jsonl"):  # identical times: no step was repeated
        assert (tmp_path / "run" / name).read_bytes() == (whole / name).read_bytes()


def test_a_partial_last_line_of_metrics_is_repaired_and_no_step_is_repeated(
    colakit: Run, parts: Path, whole: Path
) -> None:
    with (parts / "metrics.jsonl").open("a") as file:
        file.write('{"event": "st')
    assert colakit("train-scratch", "--resume", "--quiet", "--out", parts)[0] == 0
    assert (parts / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()


def test_metrics_with_missing_lines_are_refused(colakit: Run, parts: Path) -> None:
    os.truncate(parts / "metrics.jsonl", 10)
    code, _, err = colakit("train-scratch", "--resume", "--quiet", "--out", parts)
    assert code == 2
    assert "metrics.jsonl: has 10 bytes" in err


def test_damaged_checkpoint_falls_back_to_the_previous_one(colakit: Run, parts: Path, whole: Path) -> None:
    damaged = parts / "checkpoints" / "step-00000004" / STATE
    damaged.write_bytes(damaged.read_bytes()[:-1])
    code, _, err = colakit("train-scratch", "--resume", "--quiet", "--out", parts)
    assert code == 0
    assert f"{damaged}: has" in " ".join(err.split())
    assert "going back to step-00000002" in err
    assert_same(parts, whole)


# -- locking


def test_a_second_run_is_refused_at_once_with_the_number_of_the_first(
    colakit: Run, parts: Path, toy: Path, tmp_path: Path
) -> None:
    (tmp_path / "new").mkdir()
    for folder, mode in ((parts, ["--resume"]), (tmp_path / "new", [])):
        with RunFolder(folder).lock.held():
            code, _, err = colakit(*student(toy, "--data", "nowhere"), *mode, "--out", folder)
        assert code == 2
        assert f"process {os.getpid()} is running in this folder" in err  # and not that data are missing
        assert not (folder / "run.lock").exists()


def test_lock_of_a_dead_process_is_ignored(colakit: Run, parts: Path, whole: Path) -> None:
    script = (
        "import os, signal, sys; from pathlib import Path; from colakit.utils.locks import Lock\n"
        "with Lock(Path(sys.argv[1])).held(): os.kill(os.getpid(), signal.SIGKILL)"
    )
    dead = subprocess.Popen([sys.executable, "-c", script, parts / "run.lock"])
    dead.wait()
    assert (parts / "run.lock").read_text() == f"{dead.pid}\n"
    assert colakit("train-scratch", "--resume", "--quiet", "--out", parts)[0] == 0
    assert_same(parts, whole)


# -- signals


@pytest.fixture
def at_step_5(
    monkeypatch: pytest.MonkeyPatch, heeds_interrupts: None
) -> Callable[[Callable[[], None]], None]:
    def install(act: Callable[[], None]) -> None:
        observe = Trainer._after_step

        def acting(self: Trainer, report: Any, bar: Any) -> None:
            if report.step == 5:
                act()
            observe(self, report, bar)

        monkeypatch.setattr(Trainer, "_after_step", acting)

    return install


@pytest.mark.usefixtures("heeds_interrupts")
@pytest.mark.parametrize(("number", "code"), [("SIGINT", 130), ("SIGTERM", 143), ("SIGHUP", 129)])
def test_one_signal_finishes_the_step_saves_and_says_how_to_go_on(
    number: str,
    code: int,
    toy: Path,
    whole: Path,
    colakit: Run,
    tmp_path: Path,
    at_step_5: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    at_step_5(lambda: os.kill(os.getpid(), getattr(signal, number)))
    out = tmp_path / "a run"
    words = [word for word in student(toy) if word != "--quiet"]
    found, _, err = colakit(*words, "--out", out)
    assert found == code
    last = f"{out}/checkpoints/step-00000005"
    assert f"stopped: after step 5 of 14; the last checkpoint is {last}" in " ".join(err.split())
    assert err.index("a checkpoint is saved") < err.index("stopped:")
    assert "error:" not in err
    monkeypatch.undo()
    line = " ".join(err.split()).partition("Continue: colakit ")[2]
    assert colakit(*shlex.split(line), "--quiet")[0] == 0
    assert_same(out, whole)


TAUGHT = (
    *("distill", "--set", "transfer.size=1", "--set", "distill.hidden_weight=1", "--hidden-size", 24),
    *("--set", "student_training.lm_weight=0.1", "--set", "student.vocabulary=40"),
    *("--set", "student_training.max_steps=14", "--set", "distill.temperature_end=1"),
)
LANGUAGE = ("finetune", "--objective", "language-modelling", "--epochs", 2, "--rank", 2)


@pytest.mark.parametrize("arguments", [TAUGHT, LANGUAGE], ids=lambda words: words[0])
def test_training_state_survives_a_stop(
    arguments: tuple[Any, ...],
    toy: Path,
    colakit: Run,
    tmp_path: Path,
    at_step_5: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data = ("--base", toy / "base", "--data", toy / "corpus", "--batch-size", 32, "--quiet")
    assert colakit("finetune", *data, "--epochs", 1, "--rank", 2, "--out", tmp_path / "teacher")[0] == 0
    teacher = ("--teacher", tmp_path / "teacher") if arguments[0] == "distill" else ()
    assert colakit(*arguments, *teacher, *data, "--out", tmp_path / "whole")[0] == 0
    at_step_5(lambda: os.kill(os.getpid(), signal.SIGTERM))
    assert colakit(*arguments, *teacher, *data, "--out", tmp_path / "parts")[0] == 143
    monkeypatch.undo()
    assert colakit(arguments[0], "--resume", "--out", tmp_path / "parts", "--quiet")[0] == 0
    stopped_at = tmp_path / "parts" / "checkpoints" / "step-00000005"
    shutil.rmtree(stopped_at, ignore_errors=True)
    whole = run_output(tmp_path / "whole")
    assert {"metrics.jsonl", "summary.json", "checkpoints/step-00000014/state.pt"} <= set(whole)
    found = run_output(tmp_path / "parts")
    assert not [name for name in found if found[name] != whole.get(name)]


def test_a_second_interrupt_leaves_at_once_even_inside_a_save(
    toy: Path, whole: Path, colakit: Run, tmp_path: Path, at_step_5: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = torch.save

    def interrupted(value: Any, file: Any) -> None:
        if "metrics_bytes" in value and value["step"] == 5:
            file.write(b"half")
            os.kill(os.getpid(), signal.SIGINT)
        save(value, file)

    at_step_5(lambda: os.kill(os.getpid(), signal.SIGINT))
    monkeypatch.setattr(torch, "save", interrupted)
    out = tmp_path / "run"
    code, _, err = colakit(*student(toy), "--out", out)
    assert code == 130
    assert "stopped: at once; " in err
    assert f"the last checkpoint is {out / 'checkpoints' / 'step-00000004'}" in " ".join(err.split())
    assert {path.name for path in (out / "checkpoints").iterdir()} == {"step-00000002", "step-00000004"}
    monkeypatch.undo()
    assert colakit("train-scratch", "--resume", "--quiet", "--out", out)[0] == 0
    assert_same(out, whole)


def test_a_signal_while_the_result_is_written_leaves_at_once(
    toy: Path, whole: Path, colakit: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(RunFolder, "write_predictions", lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    code, _, err = colakit(*student(toy), "--out", tmp_path / "run")
    assert code == 143
    assert f"the last checkpoint is {tmp_path}/run/checkpoints/step-00000014" in " ".join(err.split())
    monkeypatch.undo()
    assert colakit("train-scratch", "--resume", "--quiet", "--out", tmp_path / "run")[0] == 0
    assert_same(tmp_path / "run", whole)


# -- non-finite weights, full disks, read-only folders


def test_a_loss_that_is_not_finite_ends_the_run_and_names_the_batch(
    toy: Path, colakit: Run, tmp_path: Path
) -> None:
    command = student(toy, "--lr", "1e37", "--set", "student_training.max_grad_norm=null")
    code, _, err = colakit(
        *command, "--set", "student_training.save_every_steps=1", "--out", tmp_path / "run"
    )
    assert code == 1, err
    assert "epoch 1" in err or "is not finite" in err
    assert "Start a new run" in err
    for path in Checkpoints(tmp_path / "run" / "checkpoints").paths():
        kept = Checkpoints(path.parent).load(pytest.fail).state["tensors"]
        assert all(tensor.isfinite().all() for tensor in kept.values())


def test_batch_with_non_finite_loss_ends_the_run_and_keeps_the_last_good_checkpoint(
    toy: Path, colakit: Run, tmp_path: Path, at_step_5: Any, parts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from colakit.api import train_scratch
    from colakit.training.objectives import Loss, constant, supervised

    calls = 0
    sound = supervised(constant(0.0))

    def poisoned(model: Any, batch: Any) -> Loss:
        nonlocal calls
        calls += 1
        loss = sound(model, batch)
        return Loss(loss.total * float("nan"), loss.logits) if calls == 6 else loss

    monkeypatch.setattr(train_scratch, "supervised", lambda lm_weight: poisoned)
    code, _, err = colakit(*student(toy), "--out", tmp_path / "run")
    said = " ".join(err.split())
    assert code == 1
    assert "step 6: loss nan" in said
    assert "on batch 6 of epoch 1" in said
    assert f"the last checkpoint is {tmp_path / 'run' / 'checkpoints' / 'step-00000004'}" in said
    assert run_output(tmp_path / "run" / "checkpoints") == run_output(parts / "checkpoints")


@contextlib.contextmanager
def mounted(folder: Path, options: str) -> Iterator[Callable[[str], None]]:
    """Mount a small in-memory file system, or skip; yield a function that changes its options."""
    folder.mkdir()
    line = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder]
    try:
        subprocess.run(line, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("mounting a file system needs root")
    try:
        yield lambda other: subprocess.run(["mount", "-o", f"remount,{other}", folder], check=True) and None
    finally:
        subprocess.run(["umount", folder], check=True)


@pytest.mark.parametrize("kilobytes", [8, 64, 250, 400, 550, 700, 850])
def test_a_full_disk_leaves_the_last_checkpoint_and_the_run_goes_on_when_there_is_room(
    kilobytes: int, toy: Path, whole: Path, colakit: Run, tmp_path: Path
) -> None:
    with mounted(tmp_path / "small", f"size={kilobytes}k") as remount:
        out = tmp_path / "small" / "run"
        code, _, err = colakit(*student(toy), "--out", out)
        assert code == 1, err
        assert "No space left on device" in " ".join(err.split())
        assert str(out) in "".join(err.split())
        assert not [path for path in out.rglob("*") if ".tmp" in path.name or "staging" in path.name]
        for path in Checkpoints(out / "checkpoints").paths():
            assert Checkpoints(path.parent).load(pytest.fail)
        remount("size=50m")
        code, _, err = colakit(*student(toy), "--resume", "auto", "--out", out)
        assert code == 0, err
        assert_same(out, whole)


@contextlib.contextmanager
def files_no_longer_than(size: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("place", ["first checkpoint", "a later checkpoint", "ckpt.pt"])
def test_failed_write_affects_only_that_file(
    place: str, toy: Path, whole: Path, colakit: Run, parts: Path, tmp_path: Path
) -> None:
    state = (parts / "checkpoints" / "step-00000004" / STATE).stat().st_size
    run, size = {
        "first checkpoint": (tmp_path / "new", state // 2),
        "a later checkpoint": (
            parts,
            state + 100,
        ),  # the first evaluation has the best weights
        "ckpt.pt": (parts, (whole / "ckpt.pt").stat().st_size // 2),
    }[place]
    if place == "ckpt.pt":
        shutil.rmtree(parts)
        shutil.copytree(whole, parts)
        (parts / "summary.json").unlink()
    with files_no_longer_than(size):
        code, _, err = colakit(*student(toy), "--resume", "auto", "--out", run)
    said = " ".join(err.split())
    assert code == 1, err
    assert "File too large" in said
    mode = "--resume auto" if "first" in place else "--resume"
    assert f"Continue: colakit train-scratch {mode} --out {run}" in said
    assert not [path for path in run.rglob("*") if ".tmp" in path.name or "staging" in path.name]
    assert colakit(*student(toy), "--resume", "auto", "--out", run)[0] == 0
    assert_same(run, whole)


def test_invalid_output_folder_is_refused_before_reading_data(
    toy: Path, colakit: Run, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("mine")
    below, too_long = tmp_path / "file" / "run", tmp_path / ("n" * 256)
    for out in (tmp_path / "file", below, too_long):
        code, _, err = colakit(*student(toy, "--data", "nowhere"), "--out", out)
        assert code == 2
        assert "--out" in err
        assert "nowhere" not in err
    assert (tmp_path / "file").read_text() == "mine"


def test_a_read_only_folder_is_refused_before_anything_is_read(
    toy: Path, colakit: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with mounted(tmp_path / "fixed", "ro"):
        for out in (["--out", str(tmp_path / "fixed" / "run")], []):
            with monkeypatch.context() as there:
                there.chdir(tmp_path / "fixed")
                code, _, err = colakit(*student(toy, "--data", "nowhere"), *out)
            assert code == 2
            assert "is not writable" in err


# -- paths and pipes


def test_a_path_may_have_any_characters(toy: Path, colakit: Run, whole: Path, tmp_path: Path) -> None:
    out = tmp_path / ("a 'run'\n[bold]é" + "x" * 230) / "run"
    code, _, err = colakit(*student(toy), "--out", out)
    assert code == 0, err
    assert_same(out, whole)


@pytest.mark.parametrize("closed", ["stdout", "stderr"])
def test_a_closed_pipe_does_not_end_the_run(closed: str, toy: Path, whole: Path, tmp_path: Path) -> None:
    command = [word for word in student(toy) if word != "--quiet"]
    streams = dict.fromkeys(("stdout", "stderr"), subprocess.PIPE)
    process = subprocess.Popen(
        [sys.executable, "-m", "colakit", *command, "--json", "--out", tmp_path / "run"],
        **streams,  # type: ignore[call-overload]
        env={**os.environ, "LC_ALL": "C", "TERM": "xterm-256color"},
    )
    getattr(process, closed).close()
    with process:
        rest = (process.stderr if closed == "stdout" else process.stdout).read()
    assert process.returncode == 0, rest
    assert b"\x1b" not in rest
    assert_same(tmp_path / "run", whole)


def test_a_model_saved_where_it_was_loaded_from_keeps_its_content(
    toy: Path, whole: Path, tmp_path: Path
) -> None:
    shutil.copy(whole / "ckpt.pt", tmp_path)
    load_classifier(tmp_path / "ckpt.pt").save(tmp_path / "ckpt.pt")
    assert (tmp_path / "ckpt.pt").read_bytes() == (whole / "ckpt.pt").read_bytes()
    shutil.copytree(toy / "base", tmp_path / "base")
    before = load_gpt(toy / "base").state_dict()
    save_gpt(load_gpt(tmp_path / "base"), tmp_path / "base")
    after = load_gpt(tmp_path / "base").state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_finished_run_works_without_checkpoints(colakit: Run, whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    code, out, _ = colakit("train-scratch", "--resume", "auto", "--out", tmp_path / "run", "--json")
    assert code == 0
    assert json.loads(out)["seed"] == 0


def test_run_folder_is_locked_once(tmp_path: Path) -> None:
    lock = RunFolder(tmp_path).lock
    with lock.held():
        with pytest.raises(ColakitError, match="is running"), lock.held():
            pass
        assert lock.path.exists()
    assert not lock.path.exists()


# -- memory


def test_a_run_out_of_memory_reports_it_and_resumes_with_the_same_bytes(
    toy: Path, colakit: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from colakit.api import train_scratch
    from colakit.training.objectives import Loss, constant, supervised

    roomy = supervised(constant(0.0))

    def choking(model: Any, batch: Any) -> Loss:
        if len(batch) > 8:
            raise torch.OutOfMemoryError("CUDA out of memory.")  # simulates a GPU with memory for 8 sentences
        return roomy(model, batch)

    monkeypatch.setattr(train_scratch, "supervised", lambda lm_weight: choking)
    code, _, err = colakit(*student(toy), "--out", tmp_path / "whole")
    assert code == 0
    assert "step 1: out of memory; micro-batches now have at most 8 sentences" in " ".join(err.split())
    with monkeypatch.context() as killing:
        end_after(5, killing)
        with pytest.raises(EndedError):
            colakit(*student(toy), "--out", tmp_path / "parts")
    monkeypatch.setattr(train_scratch, "supervised", supervised)  # no memory limit
    code, _, err = colakit("train-scratch", "--resume", "--out", tmp_path / "parts")
    assert code == 0
    assert "memory ran out" not in err
    assert_same(tmp_path / "parts", tmp_path / "whole")
