"""The `curl` lines of README and docs/serving.md work as written."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
from support.serving import FP32, make_service, running

from colakit.config.serve import ServeSettings
from colakit.serving.app import Service
from colakit.serving.http import Access
from colakit.serving.models import ModelStore

ROOT = Path(__file__).resolve().parents[2]
PORT = "localhost:8000"

pytestmark = pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")


def run_lines(page: str, url: str) -> int:
    """Run the page's `curl` lines against a server; return their number."""
    text = (ROOT / page).read_text(encoding="utf-8").replace("\\\n", " ")
    lines = re.findall(rf"^curl .*{PORT}.*$", text, re.M)
    for line in lines:
        words = shlex.split(line.replace(PORT, url.removeprefix("http://")))
        done = subprocess.run([*words, "--fail-with-body"], capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, (line, done.stdout)
        assert done.stdout
    return len(lines)


def test_the_line_of_the_readme_labels_a_sentence(models_folder: Path) -> None:
    store = ModelStore(ServeSettings(), FP32)
    store.load("distill-001", models_folder / "student")
    with running(Service(store, ServeSettings())) as url:
        assert run_lines("README.md", url) == 1


def test_the_lines_of_the_serving_page_are_answered(models_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(models_folder / "two", tmp_path / "cola-2")
    service = make_service(models_folder, Access(admin_token="change-me", adapter_dir=tmp_path))
    for name, folder in (("cola", "two"), ("topics", "three")):
        service.store.load(name, models_folder / folder)
    with running(service) as url:
        assert run_lines("docs/serving.md", url) == 8
