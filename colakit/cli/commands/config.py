"""`colakit config`: the resolved settings, and their schema."""

from __future__ import annotations

import json
import sys
from typing import Any

from colakit.api.session import Session
from colakit.config.resolve import DEFAULT
from colakit.config.settings import Settings, leaf_fields
from colakit.config.yaml import parse_yaml, to_yaml


def run(session: Session, *, action: str) -> dict[str, Any] | None:
    """Print what `action`, show or schema, asks for."""
    if action == "schema":
        schema = Settings.model_json_schema()
        if not session.as_json:
            sys.stdout.write(json.dumps(schema, indent=2) + "\n")
        return schema
    origins = {key: session.resolved.origins.get(key, DEFAULT) for key, _ in leaf_fields()}
    if not session.as_json:
        sys.stdout.write(_annotate(to_yaml(session.settings), origins))
    return {"settings": session.settings.model_dump(mode="json"), "origins": origins}


def _annotate(text: str, origins: dict[str, str]) -> str:
    """Add to every key's first line a comment with its origin; the result is still the same YAML."""
    lines, section = [], ""
    for line in text.splitlines():
        indent = len(line) - len(line.lstrip())
        name = line.strip().partition(":")[0]
        if indent == 0 and not line.startswith("-"):
            section = name
        key = name if indent == 0 else f"{section}.{name}" if indent == 2 else ""
        origin = " ".join(origins.get(key, "").split())
        lines.append(f"{line}  # {origin}" if origin and _is_whole(line) else line)
    return "\n".join(lines) + "\n"


def _is_whole(line: str) -> bool:
    """Whether no text goes on in the next line, of which a comment would become a part."""
    try:
        parse_yaml(line.strip())
    except ValueError:
        return False
    return True
