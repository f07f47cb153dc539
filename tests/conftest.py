"""Fixtures of all tests: isolation, a toy base and corpus, real data, and a runner of the command line."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
import torch
from support.toy import write_base, write_corpus

from colakit.errors import ColakitError
from colakit.kernels.native import Kernels
from colakit.runtime.device import Compute
from colakit.runtime.subprocesses import Child
from colakit.utils.files import replacing

pytest_plugins = ["support.serving"]
torch.set_num_threads(1)  # two test processes share two cores
os.environ["OMP_NUM_THREADS"] = "1"  # child processes must sum in the same order

ROOT = Path(__file__).resolve().parents[1]
TOY_SIZES = {"train": 240, "id_dev": 60, "ood_dev": 60}


@pytest.fixture(scope="session")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the compiled kernels, shared by all tests."""
    return tmp_path_factory.mktemp("native")


@pytest.fixture(autouse=True)
def isolated(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, compiled: Path) -> None:
    """Give every test its own working folder and cache, no network, and no COLAKIT_ variables."""
    monkeypatch.chdir(tmp_path)
    torch.set_flush_denormal(False)  # set by commands run in this process; hypothesis needs the default
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("COLAKIT_CACHE", str(tmp_path / "cache"))
    build = Kernels._build

    def copied(kernels: Kernels) -> None:
        if kernels.folder == compiled:
            return build(kernels)
        once = Kernels(kernels.dtype, kernels.compiler, compiled)
        if not once.path.exists():
            build(once)
        kernels.folder.mkdir(parents=True, exist_ok=True)
        with replacing(kernels.path) as temporary:
            shutil.copyfile(once.path, temporary)

    monkeypatch.setattr(Kernels, "_build", copied)
    for name in [name for name in os.environ if name.startswith("COLAKIT_") and name not in KEPT]:
        monkeypatch.delenv(name)


KEPT = {"COLAKIT_SHARED", "COLAKIT_CACHE"}


@pytest.fixture(scope="session")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with `base` (a tiny pretrained GPT-2) and `corpus` (in CoLA's layout)."""
    folder = tmp_path_factory.mktemp("toy")
    write_corpus(folder / "corpus", sizes=TOY_SIZES)
    write_base(folder / "base", steps=60, width=32)
    return folder


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder with real CoLA; tests that need it are skipped if it is missing."""
    folder = Path(os.environ.get("COLAKIT_SHARED", ROOT.parent / "shared"))
    if not (folder / "cola").is_dir():
        pytest.skip(f"needs real CoLA in {folder} (set COLAKIT_SHARED to its folder)")
    return folder


@pytest.fixture
def heeds_interrupts() -> Iterator[None]:
    """Reset SIGINT and SIGHUP, which shells ignore in background jobs and nohup ignores in all."""
    usual = {signal.SIGINT: signal.default_int_handler, signal.SIGHUP: signal.SIG_DFL}
    before = {number: signal.signal(number, handler) for number, handler in usual.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def fp32() -> Compute:
    """The CPU in fp32."""
    return Compute(torch.device("cpu"), torch.float32, "parity is checked in fp32")


@pytest.fixture
def colakit(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Function that runs a command line in this process and returns (exit code, stdout, stderr)."""
    from colakit.cli.app import main

    def run(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


@pytest.fixture
def children(monkeypatch: pytest.MonkeyPatch) -> list[Child]:
    """The commands of `--seeds` and `--folds`, run in this process for speed."""
    from colakit.api import run_set
    from colakit.cli.app import main

    started: list[Child] = []

    def run_side_by_side(commands: Sequence[Child], workers: object, on_line: object) -> list[str]:
        for child in commands:
            started.append(child)
            if code := main([*child.words, "--quiet"]):
                raise ColakitError(f"{child.name}: failed", hint="Repair it.", exit_code=code)
        return [""] * len(commands)

    monkeypatch.setattr(run_set, "run_side_by_side", run_side_by_side)
    return started
