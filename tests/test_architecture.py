"""Imports point one way, and what README and configs say is true."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from colakit.config.resolve import resolve

ROOT = Path(__file__).resolve().parents[1]
ROOMS = [  # each imports only from itself and the rooms before it
    *("errors", "client", "utils", "kernels", "models", "runtime", "data", "storage", "inference"),
    *("evaluation", "training", "distillation", "export", "serving", "sweeps", "reports", "api", "cli"),
]
CONFIG_READS = {"errors", "config"}  # the settings schema stands beside the rooms
SETTINGS_ROOMS = {"config", "api", "cli"}  # only these see all settings at once; the others take a section


def imported_modules(path: Path) -> Iterator[str]:
    """Yield the dotted modules of the package that a file imports, without the package's own name."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module == "colakit":
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("colakit."):
            yield node.module.removeprefix("colakit.")
        elif isinstance(node, ast.Import):
            yield from (a.name.removeprefix("colakit.") for a in node.names if a.name.startswith("colakit."))


MODULES = sorted((ROOT / "colakit").rglob("*.py"))


def room_of(path: Path) -> str:
    return path.relative_to(ROOT / "colakit").parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_one_way(path: Path) -> None:
    room = room_of(path)
    if room in ("__init__", "__main__"):
        return
    allowed = CONFIG_READS if room == "config" else {*ROOMS[: ROOMS.index(room) + 1], "config", "__version__"}
    imported = {module.partition(".")[0] for module in imported_modules(path)}
    assert imported <= allowed, f"{room} may not import {sorted(imported - allowed)}"


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_modules_take_a_section_not_all_settings(path: Path) -> None:
    if room_of(path) not in (*SETTINGS_ROOMS, "__init__"):
        assert not {"config.settings", "config.resolve"} & set(imported_modules(path))


def test_every_room_says_in_one_line_what_it_is_for() -> None:
    for folder in {path.parent for path in MODULES} - {ROOT / "colakit"}:
        text = (folder / "__init__.py").read_text(encoding="utf-8")
        assert re.fullmatch(r'"""[^\n]+"""\n', text), folder


def test_every_room_has_a_folder_of_tests() -> None:
    tested = {path.name for path in (ROOT / "tests").iterdir() if any(path.glob("test_*.py"))}
    assert {*ROOMS, "config"} - {"errors", "client"} <= tested


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
        "smollm2-cola",
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

    from colakit.cli.app import app, with_bare_resume

    words = with_bare_resume(shlex.split(re.split(r" [|<>] ?", line)[0])[1:])
    command = typer.main.get_command(app)
    while hasattr(command, "commands") and words and words[0] in command.commands:
        command = command.commands[words.pop(0)]
    command.make_context("colakit", words)  # raises on an unknown flag or a missing argument


PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "SECURITY.md",
    *sorted((ROOT / "docs").glob("*.md")),
]


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_links_and_paths_of_the_documents_exist(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.S)
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", text)
    assert [link for link in links if not (page.parent / link).exists()] == []
    paths = re.findall(r"`((?:[\w-]+/)+[\w.-]+\.(?:py|c|md|yaml)|tests/[\w/]+)`", text)
    roots = (ROOT, ROOT / "colakit")
    assert [path for path in paths if not any((root / path).exists() for root in roots)] == []
