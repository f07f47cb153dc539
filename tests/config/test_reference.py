"""The reference of all settings is complete and current; settings that are paths are known."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from conftest import ROOT

from colakit.cli.commands.config import flags_by_setting
from colakit.config.paths import PATHS, absolute_path, map_paths, portable_name
from colakit.config.reference import settings_reference
from colakit.config.settings import Settings, leaf_fields

Run = Callable[..., tuple[int, str, str]]
REPAIR = "write it again: colakit config reference > docs/settings.md"


def test_reference_is_current(colakit: Run) -> None:
    code, out, err = colakit("config", "reference")
    assert code == 0, err
    assert out == (ROOT / "docs/settings.md").read_text(encoding="utf-8"), REPAIR


def test_every_setting_has_meaning_values_and_every_number_a_unit() -> None:
    rows = [row for section in settings_reference(flags_by_setting()).values() for row in section]
    assert [row.key for row in rows] == [key for key, _ in leaf_fields()]
    for row in rows:
        assert row.meaning
        assert row.values
        is_number = re.search("integer|number", row.values) is not None
        assert bool(row.unit) == is_number, f"{row.key}: add its unit to config/reference.py"
    assert all("`--lr`" in " ".join(row.flags) for row in rows if row.key == "finetune.lr")


def test_settings_that_are_paths_are_known() -> None:
    texts = {key for key, field in leaf_fields() if "str" in str(field.annotation)}
    mean_files = re.compile("folder|file|dataset:|base to|table of", re.I)
    described = {key for key, field in leaf_fields() if mean_files.search(field.description or "")}
    assert texts & described == {*PATHS}


def test_paths_become_absolute_or_lose_their_folders() -> None:
    Path("gpt2").mkdir()
    Path("hub/models--a--b/snapshots/c").mkdir(parents=True)
    given = {"data": {"splits": {"train": "x/y.csv"}}, "distill": {"teacher": "gpt2,a/b"}}
    kept = map_paths(Settings.model_validate(given), absolute_path)
    assert kept.base == kept.distill.teacher[0] == str(Path.cwd() / "gpt2")
    assert kept.distill.teacher[1] == "a/b"
    assert kept.data.path == "cola"
    assert kept.data.splits == {"train": "x/y.csv"}  # does not exist
    assert portable_name(kept.base) == "gpt2"
    assert portable_name(str(Path("hub/models--a--b/snapshots/c"))) == "a/b"
    assert [portable_name(name) for name in ("a/b", "builtin", "/gone/base")] == ["a/b", "builtin", "base"]
