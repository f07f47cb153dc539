"""The reference of all settings, made from their schema: meaning, values, unit, default, flags."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from colakit.config.settings import Settings

NO_UNIT = "none"  # of a number that has no unit
UNITS = {  # unit -> dotted keys, or names that mean the same in every section
    "sentences": (
        *("batch_size", "micro_batch_size", "sentences", "candidates"),
        *("errors", "disagreements", "max_sentences"),
    ),
    "windows": ("pretrain.batch_size", "pretrain.micro_batch_size", "evaluate_windows"),
    "tokens": (
        *("max_tokens", "max_new_tokens", "tokens", "window", "num_positions"),
        *("vocab_size", "vocabulary", "top_k"),
        *("max_batch_tokens", "max_queue_tokens", "max_request_tokens"),
    ),
    "steps": ("log_every", "save_every_steps", "evaluate_every_steps", "max_steps"),
    "epochs": ("epochs", "evaluate_every_epochs", "sampler_epochs"),
    "passes": ("upsample",),
    "evaluations": ("patience",),
    "texts": ("num_samples",),
    "fraction": (
        "val_fraction",
        "warmup",
        "decay",
        "start_weight",
        "kd_weight",
        "kd_weight_end",
        "ema_decay",
    ),
    "probability": ("dropout", "base_dropout", "threshold", "top_p"),
    "multiple of train": ("transfer.size",),
    "features": ("width", "embedding_size", "hidden_size"),
    "words": ("baseline.words",),
    "characters": ("baseline.characters",),
    "layers": ("num_layers",),
    "heads": ("num_heads", "num_kv_heads"),
    "block index": ("layers_to_transform",),
    "trials": ("sweep.trials", "sweep.jobs"),
    "MiB": ("frozen_cache_mib",),
    "bytes": ("max_body_bytes",),
    "milliseconds": ("max_wait_ms",),
    "seconds": ("heartbeat_seconds", "receive_seconds", "answer_seconds", "drain_seconds"),
    "connections": ("max_connections",),
    "dots per inch": ("dpi",),
    NO_UNIT: (
        *("port", "seed", "val_seed", "rank", "alpha", "rank_pattern", "alpha_pattern", "loraplus_lr_ratio"),
        *("lr", "muon_lr", "weight_decay", "max_grad_norm", "temperature", "temperature_end", "sources"),
        *("lm_weight", "lm_weight_end", "pair_weight", "hidden_weight", "penalties"),
        *("sampler_seed", "seeds", "folds", "space"),
    ),
}
BOUNDS = {  # keys of JSON Schema, and those that pydantic leaves inside mappings
    "minimum": "≥",
    "ge": "≥",
    "exclusiveMinimum": ">",
    "gt": ">",
    "maximum": "≤",
    "le": "≤",
    "exclusiveMaximum": "<",
    "lt": "<",
}
HEADER = """# Settings

`colakit config reference` prints this page. A setting is read from the YAML file of `--config`, a variable
(`COLAKIT_FINETUNE__LR` for `finetune.lr`), `--set KEY=VALUE`, or its flag in the commands in brackets.
"""


@dataclass(frozen=True)
class SettingInfo:
    """A row of the reference: one setting.

    Attributes:
        key: dotted key.
        values: type and bounds, in words.
        unit: `NO_UNIT` for a number without one; empty for other values.
    """

    key: str
    meaning: str
    values: str
    unit: str
    default: Any
    flags: tuple[str, ...]


def settings_reference(flags: Mapping[str, Sequence[str]]) -> dict[str, list[SettingInfo]]:
    """Return title of a section -> its settings.

    Args:
        flags: dotted key -> flags that set it.
    """
    schema = Settings.model_json_schema()
    sections: dict[str, list[SettingInfo]] = {"": []}
    for name, entry in schema["properties"].items():
        if "$ref" not in entry:
            sections[""].append(_info(name, entry, flags))
            continue
        section = schema["$defs"][entry["$ref"].rpartition("/")[2]]
        title = f"## `{name}`\n\n{section['description']}"
        sections[title] = [_info(f"{name}.{key}", each, flags) for key, each in section["properties"].items()]
    return sections


def as_markdown(sections: Mapping[str, Sequence[SettingInfo]]) -> str:
    """Return the reference as a Markdown page."""
    lines = [HEADER]
    for title, rows in sections.items():
        lines += [title, ""] if title else []
        lines += ["| setting | meaning | values | unit | default | flag |", "|---|---|---|---|---|---|"]
        for row in rows:
            default = f"`{json.dumps(row.default, ensure_ascii=False)}`"
            cells = [f"`{row.key}`", row.meaning, row.values, row.unit, default, "<br>".join(row.flags)]
            lines.append(f"| {' | '.join(cell.replace('|', '&#124;') for cell in cells)} |")
        lines.append("")
    return "\n".join(lines)


def _info(key: str, entry: Mapping[str, Any], flags: Mapping[str, Sequence[str]]) -> SettingInfo:
    units = {name: unit for unit, names in UNITS.items() for name in names}
    unit = units.get(key, units.get(key.rpartition(".")[2], "")) if _is_number(entry) else ""
    return SettingInfo(
        key, entry["description"], _values(entry), unit, entry["default"], tuple(flags.get(key, ()))
    )


def _parts(entry: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Yield the schemas of a value: the alternatives of a union, the items of a list or mapping."""
    yield from (*entry.get("anyOf", ()), *entry.get("oneOf", ()))
    yield from (entry[key] for key in ("items", "additionalProperties") if key in entry)


def _is_number(entry: Mapping[str, Any]) -> bool:
    return entry.get("type") in ("integer", "number") or any(map(_is_number, _parts(entry)))


def _values(entry: Mapping[str, Any]) -> str:
    """Return type and bounds of a value, in words."""
    if alternatives := entry.get("anyOf", entry.get("oneOf")):
        return ", ".join(map(_values, alternatives))
    if "type" not in entry:  # a nested section, or any value
        return entry.get("$ref", "value").rpartition("/")[2].lower()
    if "enum" in entry:
        return ", ".join(f"`{value}`" for value in entry["enum"])
    kind = entry["type"]
    if kind == "array":
        return f"list of {_values(entry['items'])}"
    if kind == "object":
        return f"mapping of name to {_values(entry['additionalProperties'])}"
    words = {"string": "text", "boolean": "`true`, `false`", "null": "`null`"}
    bounds = [f"{sign} {entry[name]}" for name, sign in BOUNDS.items() if name in entry]
    if "multipleOf" in entry:
        bounds.append(f"multiple of {entry['multipleOf']}")
    return " ".join([words.get(kind, kind), ", ".join(bounds)]).strip()
