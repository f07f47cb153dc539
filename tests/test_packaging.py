"""The installed package."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from colakit import __version__

ROOT = Path(__file__).resolve().parents[1]


def test_an_editable_install_is_imported_from_the_parent_of_the_clone(tmp_path: Path) -> None:
    pytest.importorskip("setuptools", minversion="77")
    clone = tmp_path / "colakit"
    (clone / "colakit").mkdir(parents=True)
    for name in ("pyproject.toml", "README.md", "LICENSE", "colakit/__init__.py"):
        shutil.copy(ROOT / name, clone / name)

    others = [path for path in sys.path if Path(path).resolve() != ROOT]

    def python(script: str, folder: Path) -> str:
        command = [
            sys.executable,
            "-S",
            "-W",
            "ignore",
            "-c",
            f"import sys; sys.path += {others!r}; {script}",
        ]
        return subprocess.run(
            command, cwd=folder, env={"PATH": ""}, capture_output=True, text=True, check=True
        ).stdout

    python("from setuptools.build_meta import build_editable; build_editable('..')", clone)
    (wheel,) = tmp_path.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    script = "import site; site.addsitedir('site'); import colakit; print(colakit.__version__)"
    assert python(script, tmp_path).strip() == __version__
