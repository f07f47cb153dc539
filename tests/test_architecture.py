"""Imports point one way, and what README and configs say is true."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from colakit.loading import resolve

ROOT = Path(__file__).resolve().parents[1]
LAYERS = {  # what each layer may import from the package; "" is the version
    "errors": set(),
    "files": {"errors"},
    "tensor_files": {"files"},
    "locks": {"errors"},
    "orphans": set(),
    "native": {"files"},
    "models": {"errors", "native", "models"},
    "data": {"errors", "files", "locks", "data"},
    "interop": {"errors", "files", "tensor_files", "models", "interop"},
    "engine": {"errors", "files", "tensor_files", "locks", "native", "models", "data", "interop", "engine",
               ""},
    "plotting": {"errors"},
    "heatmaps": {"plotting"},
    "console": {"errors"},
    "settings": {"errors", "settings"},
    "yaml_text": {"errors", "settings"},
    "loading": {"errors", "settings", "yaml_text"},
    "toy": {"errors", "models", "data", "interop", "engine"},
    "context": {"errors", "console", "loading", "settings", "data", "engine"},
    "flags": {"errors", "console", "context", "loading", "settings"},
    "commands": {"errors", "files", "console", "context", "loading", "yaml_text", "settings", "models",
                 "data", "engine", "interop", "plotting", "heatmaps", "orphans", "commands", ""},
    "cli": {"errors", "console", "context", "flags", "engine", "commands", ""},
}  # fmt: skip


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "colakit":
            yield [*node.module.split("."), ""][1]
        elif isinstance(node, ast.Import):
            yield from (alias.name.split(".")[1] for alias in node.names if alias.name.startswith("colakit."))


MODULES = sorted((ROOT / "colakit").rglob("*.py"))


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_one_way(path: Path) -> None:
    layer = path.relative_to(ROOT / "colakit").parts[0].removesuffix(".py")
    if layer in ("__init__", "__main__"):
        return
    assert set(imports(path)) <= LAYERS[layer]


def test_only_the_console_imports_rich() -> None:
    users = [path.name for path in MODULES if re.search(r"^\s*(from|import) rich", path.read_text(), re.M)]
    assert users == ["console.py"]


def test_every_load_is_weights_only() -> None:
    loads = []
    for path in MODULES:
        assert not re.search(r"pickle\.(load|Unpickler)", path.read_text(encoding="utf-8")), path
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
                loads.append(ast.unparse(node))
    assert len(loads) == 1  # of a base's older file, a ckpt.pt, a checkpoint's state
    assert all("weights_only=True" in call for call in loads)


def config_files() -> list[Path]:
    return sorted((ROOT / "configs").glob("*.yaml"))


def test_there_are_configs_for_the_experiments_people_run() -> None:
    names = {path.stem for path in config_files()}
    assert {
        "gpt2-cola",
        "gpt2-medium-cola",
        "quick",
        "builtin-cola",
        *(f"embedded-base-{stage}" for stage in (1, 2, 3, 4)),
        "pretrain-mini",
    } <= names


@pytest.mark.parametrize("path", config_files(), ids=lambda p: p.stem)
def test_every_config_validates(path: Path) -> None:
    resolve(config=path, environment={})


def readme_commands() -> list[str]:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```(?:sh|bash)\n(.*?)```", text, re.S)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    lines = [re.sub(r"^(echo .* \| |torchrun .* -m )", "", line) for line in lines]
    return [line.split(" #")[0].strip() for line in lines if line.startswith(("colakit ", "make "))]


def test_the_readme_shows_commands() -> None:
    assert len(readme_commands()) >= 15


@pytest.mark.parametrize("line", dict.fromkeys(readme_commands()))
def test_every_command_of_the_readme_parses(line: str) -> None:
    if line.startswith("make "):
        target = shlex.split(line)[1]
        assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.M), target
        return
    import typer.main

    from colakit.cli import app, with_bare_resume

    words = with_bare_resume(shlex.split(re.split(r" [|<>] ?", line)[0])[1:])
    command = typer.main.get_command(app)
    while hasattr(command, "commands") and words and words[0] in command.commands:
        command = command.commands[words.pop(0)]
    command.make_context("colakit", words)  # raises on an unknown flag or a missing argument
