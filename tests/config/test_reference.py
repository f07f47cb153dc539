"""The reference of all settings is complete and current."""

from __future__ import annotations

from collections.abc import Callable

from conftest import ROOT

from colakit.cli.commands.config import flags_by_setting
from colakit.config.paths import PATHS, absolute_path, map_paths, portable_name
from colakit.config.reference import _is_number, settings_reference
from colakit.config.settings import Settings, leaf_fields

Run = Callable[..., tuple[int, str, str]]


def test_reference_is_current(colakit: Run) -> None:
    code, out, err = colakit("config", "reference")
    assert code == 0, err
    assert out == (ROOT / "docs/settings.md").read_text(encoding="utf-8"), (
        "colakit config reference > docs/settings.md"
    )


def test_every_setting_has_meaning_values_and_every_number_a_unit() -> None:
    schema = Settings.model_json_schema()
    rows = [row for section in settings_reference(flags_by_setting()).values() for row in section]
    assert [row.key for row in rows] == [key for key, _ in leaf_fields()]
    assert all(row.meaning and row.values for row in rows)
    sections = {
        name: entry["$ref"].rpartition("/")[2]
        for name, entry in schema["properties"].items()
        if "$ref" in entry
    }
    for row in rows:
        section, _, name = row.key.rpartition(".")
        entries = schema["$defs"][sections[section]]["properties"] if section else schema["properties"]
        assert bool(row.unit) == _is_number(entries[name]), f"{row.key}: add its unit to config/reference.py"


def test_settings_that_are_paths_are_known() -> None:
    words = ("folder", "file", "a zip", "Base to sample", "Base to continue")
    named = {key for key, field in leaf_fields() if any(word in (field.description or "") for word in words)}
    assert named - {"plot.format", "log_every"} <= {
        *PATHS,
        *(f"{s}.log_every" for s in TRAININGS),
        *NOT_PATHS,
    }
    assert all(key in dict(leaf_fields()) for key in PATHS)


TRAININGS = ("pretrain", "real_fake", "finetune", "student_training")
NOT_PATHS = ("plot.dpi",)


def test_paths_become_absolute_or_lose_their_folders(tmp_path: object) -> None:
    from pathlib import Path

    Path("gpt2").mkdir()
    Path("hub/models--a--b/snapshots/c").mkdir(parents=True)
    settings = Settings.model_validate(
        {"data": {"splits": {"train": "x/y.csv"}}, "distill": {"teacher": "gpt2,a/b"}}
    )
    kept = map_paths(settings, absolute_path)
    assert kept.base == kept.distill.teacher[0] == str(Path.cwd() / "gpt2")
    assert kept.distill.teacher[1] == "a/b"
    assert kept.data.path == "cola"
    assert kept.data.splits == {"train": "x/y.csv"}  # does not exist
    assert portable_name(kept.base) == "gpt2"
    assert portable_name(str(Path("hub/models--a--b/snapshots/c"))) == "a/b"
    assert [portable_name(name) for name in ("a/b", "builtin", "/gone/base")] == ["a/b", "builtin", "base"]
