"""`colakit config`: resolved settings, their schema and their reference."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from typing import Any

from colakit.api.session import Session
from colakit.cli.options import BASE_AND_DATA, command
from colakit.config.resolve import DEFAULT
from colakit.config.settings import Settings, leaf_fields
from colakit.utils.text import printable


@command("show", dict(BASE_AND_DATA))
def config_show_command(session: Session) -> dict[str, Any]:
    """Print the resolved settings as YAML, each with its origin."""
    from colakit.config.yaml import to_yaml

    origins = {key: session.resolved.origins.get(key, DEFAULT) for key, _ in leaf_fields()}
    if not session.as_json:
        sys.stdout.write(_annotate(to_yaml(session.settings), origins))
    return {"settings": session.settings.model_dump(mode="json"), "origins": origins}


@command("schema")
def config_schema_command(session: Session) -> dict[str, Any]:
    """Print the JSON Schema of the settings."""
    schema = Settings.model_json_schema()
    if not session.as_json:
        sys.stdout.write(json.dumps(schema, indent=2) + "\n")
    return schema


@command("reference")
def config_reference_command(session: Session) -> dict[str, Any]:
    """Print every setting with meaning, values, unit, default and flags, as Markdown (docs/settings.md)."""
    from colakit.config.reference import as_markdown, settings_reference

    sections = settings_reference(flags_by_setting())
    if not session.as_json:
        sys.stdout.write(as_markdown(sections))
    return {"settings": [asdict(info) for rows in sections.values() for info in rows]}


def flags_by_setting() -> dict[str, list[str]]:
    """Return dotted key -> its flags, with the commands that have each."""
    from colakit.cli.app import COMMANDS

    commands = {f"{group} {each.name}".strip(): each for group, rows in COMMANDS.items() for each in rows}
    users: dict[tuple[str, str], list[str]] = {}
    for name, each in commands.items():
        for flag, key in each.flags.items():
            users.setdefault((key, flag), []).append(name)
    flags: dict[str, list[str]] = {}
    for (key, flag), names in users.items():
        shown = "every command" if len(names) == len(commands) else ", ".join(names)
        flags.setdefault(key, []).append(f"`{flag}` ({shown})")
    return flags


def _annotate(text: str, origins: dict[str, str]) -> str:
    """Append the origin to the first line of every key as a comment; the YAML keeps its meaning."""
    lines, section = [], ""
    for line in text.splitlines():
        indent = len(line) - len(line.lstrip())
        name = line.strip().partition(":")[0]
        if indent == 0 and not line.startswith("-"):
            section = name
        key = name if indent == 0 else f"{section}.{name}" if indent == 2 else ""
        origin = printable(" ".join(origins.get(key, "").split()))
        lines.append(f"{line}  # {origin}" if origin and _is_whole(line) else line)
    return "\n".join(lines) + "\n"


def _is_whole(line: str) -> bool:
    """Return whether a value ends on this line, so that a comment does not become part of it."""
    from colakit.config.yaml import parse_yaml

    try:
        parse_yaml(line.strip())
    except ValueError:
        return False
    return True
