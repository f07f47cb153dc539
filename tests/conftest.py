"""What the tests share: a toy base and corpus, the folder of real data, and a way to run the program."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from support.toy import write_base, write_corpus

from colakit.kernels.native import Kernels
from colakit.runtime.device import Compute
from colakit.utils.files import replacing

torch.set_num_threads(1)  # the models are tiny; two test processes share the cores
os.environ["OMP_NUM_THREADS"] = "1"  # of the processes that tests start, whose sums must be the same

ROOT = Path(__file__).resolve().parents[1]
TOY_SIZES = {"train": 240, "id_dev": 60, "ood_dev": 60}


@pytest.fixture(scope="session")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder where kernels are compiled, once for all tests."""
    return tmp_path_factory.mktemp("native")


@pytest.fixture(autouse=True)
def isolated(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, compiled: Path) -> None:
    """Keep every test in its own folder, off the network, and to itself: caches, kernels, arithmetic."""
    monkeypatch.chdir(tmp_path)
    torch.set_flush_denormal(False)  # a command that ran in this process has set it; hypothesis minds
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
    """A folder with `base` (a tiny pretrained GPT-2) and `corpus` (CoLA's layout)."""
    folder = tmp_path_factory.mktemp("toy")
    write_corpus(folder / "corpus", sizes=TOY_SIZES)
    write_base(folder / "base", steps=60, width=32)
    return folder


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real CoLA and an interim base; tests that need it skip where it is absent."""
    folder = Path(os.environ.get("COLAKIT_SHARED", ROOT.parent / "shared"))
    if not (folder / "cola").is_dir():
        pytest.skip(f"needs real CoLA in {folder} (or where COLAKIT_SHARED says)")
    return folder


@pytest.fixture
def heeds_interrupts() -> Iterator[None]:
    """Undo an inherited SIG_IGN, which a shell gives to background jobs, and nohup to all."""
    usual = {signal.SIGINT: signal.default_int_handler, signal.SIGHUP: signal.SIG_DFL}
    before = {number: signal.signal(number, handler) for number, handler in usual.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def fp32() -> Compute:
    """The CPU in full precision, where parity can be exact."""
    return Compute(torch.device("cpu"), torch.float32, "parity is checked in fp32")


@pytest.fixture
def colakit(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run a command line in this process; returns (exit code, stdout, stderr)."""
    from colakit.cli.app import main

    def run(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run
