"""Merge settings from flags, `--set`, the environment and YAML, and validate them."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from pathlib import Path
from typing import Any, get_origin

from pydantic import BaseModel, ValidationError

from colakit.config.settings import Settings, leaf_fields
from colakit.errors import ColakitError, did_you_mean, nearest, plain_rule

ENVIRONMENT_PREFIX = "COLAKIT_"
NOT_SETTINGS = {  # the folder of real data for tests, and secrets that no file should hold
    "COLAKIT_SHARED",
    "COLAKIT_SERVE_TOKEN",
    "COLAKIT_SERVE_ADMIN_TOKEN",
}
DEFAULT = "default"
MAX_FAULTS = 20  # listed in an error
MAX_VALUE_SHOWN = 80  # characters of a value in an error
TYPED = "--"  # prefix of the origin of a value from the command line


@dataclass
class Resolved:
    """Validated settings and their origins.

    Attributes:
        origins: dotted key -> flag, variable or file that set it; defaults are absent.
    """

    settings: Settings
    origins: dict[str, str] = field(default_factory=dict)

    def was_typed(self, key: str) -> bool:
        """Return whether `key` was set on the command line, by its flag or by `--set`."""
        return self.origins.get(key, "").startswith(TYPED)


def resolve(
    *,
    flags: Mapping[str, tuple[str, Any]] | None = None,
    assignments: Sequence[str] = (),
    config: Path | None = None,
    environment: Mapping[str, str] | None = None,
    command: str | None = None,
) -> Resolved:
    """Merge all sources and validate them; flags override `--set`, the environment and `config`.

    Args:
        flags: dotted key -> (flag, value).
        assignments: arguments of `--set`, `section.key=value`.
        config: a YAML file.
        environment: default: the environment of the process.
        command: such as `colakit finetune`; the hint for a wrong flag names its help.

    Raises:
        ColakitError: lists every invalid setting with its origin.
    """
    layers: dict[str, tuple[str, Any]] = {}
    faults: list[str] = []
    if config is not None:
        from colakit.config.yaml import read_yaml  # imported here because `--help` does not need it

        for name, section in read_yaml(config).items():
            layers |= {key: (str(config), value) for key, value in _flatten_value(str(name), section)}
    variables = os.environ if environment is None else environment
    for name, text in sorted(variables.items()):
        if _is_setting(name):
            key = name.removeprefix(ENVIRONMENT_PREFIX).lower().replace("__", ".")
            layers[key] = (name, _parse_value(text, name))
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not equals:
            raise ColakitError(
                f"--set {_cut(assignment)}: `=` is missing", hint="Write --set section.key=value"
            )
        value = _parse_value(text, "--set")
        layers |= {leaf: (f"--set {_cut(assignment)}", v) for leaf, v in _flatten_value(key.strip(), value)}
    layers |= dict(flags or {})
    layers = _fold_mappings(layers)
    typed = {key for key, (origin, _) in layers.items() if origin.startswith(TYPED)}
    if "data.path" in typed and "data.splits" not in typed:  # otherwise splits would override the typed path
        layers.pop("data.splits", None)
    known = {key for key, _ in leaf_fields()}
    unknown = [(key, origin) for key, (origin, _) in layers.items() if key not in known]
    faults += [_unknown_key(key, origin, known) for key, origin in unknown[:MAX_FAULTS]]
    if len(unknown) > MAX_FAULTS:
        faults.append(f"and {len(unknown) - MAX_FAULTS} more unknown settings")
    tree: dict[str, Any] = {}
    for key in known & layers.keys():
        section, dot, name = key.rpartition(".")
        (tree.setdefault(section, {}) if dot else tree)[name] = layers[key][1]
    try:
        settings = Settings.model_validate(tree)
    except ValidationError as error:
        wrong = error.errors(include_url=False)
        faults += [_describe(fault, layers) for fault in wrong[:MAX_FAULTS]]
        if len(wrong) > MAX_FAULTS:
            faults.append(f"and {len(wrong) - MAX_FAULTS} more errors")
        settings = Settings()
    if faults:
        hint = "`colakit config reference` lists every setting."
        flag_names = tuple(f"{flag}: " for flag, _ in (flags or {}).values())
        if command is not None and all(fault.startswith(flag_names) for fault in faults):
            hint = f"`{command} --help` lists arguments and options."
        raise ColakitError("\n".join(faults), hint=hint)
    return Resolved(settings, {key: origin for key, (origin, _) in layers.items()})


def changed(settings: Settings, origin: str, changes: Mapping[str, str]) -> Settings:
    """Return the settings with changes: dotted key -> value as text, as `--set` takes it.

    Raises:
        ColakitError: if a value is not valid; names `origin`.
    """
    values = {key: (origin, reduce(getattr, key.split("."), settings)) for key, _ in leaf_fields()}
    changed_values = {key: (origin, _parse_value(text, origin)) for key, text in changes.items()}
    return resolve(flags={**values, **changed_values}, environment={}).settings


def without_settings(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the environment without the variables of settings."""
    return {name: text for name, text in environment.items() if not _is_setting(name)}


def _is_setting(variable: str) -> bool:
    return variable.startswith(ENVIRONMENT_PREFIX) and variable not in NOT_SETTINGS


def _fold_mappings(layers: dict[str, tuple[str, Any]]) -> dict[str, tuple[str, Any]]:
    """Merge keys such as `data.splits.NAME` into the mapping `data.splits` as entries."""
    mappings = [key for key, field in leaf_fields() if get_origin(field.annotation) is dict]
    folded: dict[str, tuple[str, Any]] = {}
    for key, (origin, value) in layers.items():
        mapping = next((name for name in mappings if key.startswith(f"{name}.")), None)
        if mapping is None:
            folded[key] = (origin, value)
        else:
            _, before = folded.get(mapping, ("", {}))
            entry = {key.removeprefix(f"{mapping}."): value}
            folded[mapping] = (origin, {**(before if isinstance(before, dict) else {}), **entry})
    return folded


def _parse_value(text: str, where: str) -> Any:
    from colakit.config.yaml import parse_yaml

    try:
        return parse_yaml(text)
    except ValueError as error:
        raise ColakitError(f"{where}: {_shown(text)} is not valid YAML ({error})") from error


def _flatten_value(key: str, value: Any) -> list[tuple[str, Any]]:
    """Split a section into its settings; a setting that is a mapping (data.splits) stays one value."""
    field = Settings.model_fields.get(key)
    if field is None or not (isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)):
        return [(key, value)]
    if value is None:
        return []
    if not isinstance(value, dict):
        return [(key, value)]  # reported as an error: a section is not a setting
    return [(f"{key}.{name}", inner) for name, inner in value.items()]


def _unknown_key(key: str, origin: str, known: set[str]) -> str:
    section, dot, _ = key.partition(".")
    siblings = sorted(name for name in known if name.startswith(f"{section}."))
    if siblings and not dot:
        return f"{origin}: {key} is a section, not a setting; set {key}.KEY"
    return f"{origin}: {_cut(key)} is not a setting.{suggest_key(key, siblings, sorted(known))}"


def suggest_key(key: str, siblings: list[str], known: list[str]) -> str:
    """Return ` Did you mean X?`: a key of the section, or one of another section with this name."""
    top = sorted({other.partition(".")[0] for other in known})
    alike, name = siblings if "." in key else top, key.rpartition(".")[2]
    leaves = sorted({other.rpartition(".")[2] for other in known})
    if name not in leaves and (near := nearest(key, alike)):
        return f" Did you mean {near}?"
    if leaf := nearest(name, leaves):
        same = [other for other in known if other.rpartition(".")[2] == leaf]
        return f" Did you mean {nearest(key, same) or ' or '.join(same)}?"
    return did_you_mean(key, alike or top)


def _describe(fault: Any, layers: Mapping[str, tuple[str, Any]]) -> str:
    """Return a one-line error: origin, key, rule and value."""
    path = ".".join(str(part) for part in fault["loc"])
    key = next((key for key in layers if path == key or path.startswith(key + ".")), None)
    if key is None:  # the rule is about a whole section: name the origins of its settings
        inside = {name: origin for name, (origin, _) in layers.items() if name.startswith(f"{path}.")}
        named = {name: origin for name, origin in inside.items() if name.rpartition(".")[2] in fault["msg"]}
        origins = sorted(set((named or inside).values()))
        return f"{', '.join(origins) or DEFAULT}: {path}: {plain_rule(fault['msg'])}"
    origin, value = layers[key]
    got, suggestion = _shown(value), _suggest_value(fault, value)
    return f"{origin}: {_cut(path)}: {plain_rule(fault['msg'])} (got {got}).{suggestion}".rstrip(".")


def _suggest_value(fault: Any, value: Any) -> str:
    """Return ` Did you mean X?` for a misspelt choice."""
    choices = re.findall(r"'([^']*)'", str(fault.get("ctx", {}).get("expected", "")))
    if fault["type"] == "bool_parsing":
        choices = ["true", "false"]
    near = nearest(str(value), choices)
    return f" Did you mean {near}?" if near else ""


def _shown(value: Any) -> str:
    """Return the start of a value's representation; that of an integer of thousands of digits fails."""
    try:
        return _cut(repr(value))
    except ValueError:
        return "an integer of thousands of digits"


def _cut(text: str) -> str:
    return text if len(text) <= MAX_VALUE_SHOWN else text[:MAX_VALUE_SHOWN] + "…"
