"""From flags, `--set`, environment and YAML to validated settings, with the origin of every value."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_origin

from pydantic import BaseModel, ValidationError

from colakit.config.settings import Settings, leaf_fields
from colakit.errors import ColakitError, did_you_mean

ENVIRONMENT_PREFIX = "COLAKIT_"
NOT_SETTINGS = {"COLAKIT_SHARED"}  # where the tests find real data
DEFAULT = "default"
MAX_FAULTS = 20  # that are listed
MAX_VALUE_SHOWN = 80  # characters of a value in an error
TYPED = "--"  # how the origin of what was set on the command line begins


@dataclass
class Resolved:
    """Validated settings, and where each value came from.

    Attributes:
        settings: the values.
        origins: dotted key -> origin, for every key that is not at its default.
    """

    settings: Settings
    origins: dict[str, str] = field(default_factory=dict)

    def was_typed(self, key: str) -> bool:
        """Tell whether `key` was set on the command line, by its flag or by `--set`."""
        return self.origins.get(key, "").startswith(TYPED)


def resolve(
    *,
    flags: Mapping[str, tuple[str, Any]] | None = None,
    assignments: Sequence[str] = (),
    config: Path | None = None,
    environment: Mapping[str, str] | None = None,
) -> Resolved:
    """Merge all sources, the strongest last, and validate them at once.

    Args:
        flags: dotted key -> (flag as typed, value).
        assignments: `section.key=value` texts of `--set`.
        config: a YAML file.
        environment: by default the process's.

    Raises:
        ColakitError: listing every fault with its origin.
    """
    layers: dict[str, tuple[str, Any]] = {}
    faults: list[str] = []
    if config is not None:
        from colakit.config.yaml import read_yaml  # here, so that `--help` does without

        layers |= {key: (str(config), value) for key, value in _flatten(read_yaml(config))}
    layers |= _environment_layer(os.environ if environment is None else environment)
    layers |= _assignment_layer(assignments)
    layers |= dict(flags or {})
    layers = _with_one_source_of_data(_with_mappings_folded(layers))
    known = {key for key, _ in leaf_fields()}
    unknown = [(key, origin) for key, (origin, _) in layers.items() if key not in known]
    faults += [_unknown_key(key, origin, known) for key, origin in unknown[:MAX_FAULTS]]
    if len(unknown) > MAX_FAULTS:
        faults.append(f"and {len(unknown) - MAX_FAULTS} more keys that are no settings")
    tree = _unflatten({key: value for key, (_, value) in layers.items() if key in known})
    try:
        settings = Settings.model_validate(tree)
    except ValidationError as error:
        wrong = error.errors(include_url=False)
        faults += [_describe(fault, layers) for fault in wrong[:MAX_FAULTS]]
        if len(wrong) > MAX_FAULTS:
            faults.append(f"and {len(wrong) - MAX_FAULTS} more faults")
        settings = Settings()
    if faults:
        raise ColakitError("\n".join(faults), hint="`colakit config schema` lists every setting.")
    return Resolved(settings, {key: origin for key, (origin, _) in layers.items()})


def without_settings(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the environment without what sets settings."""
    return {name: text for name, text in environment.items() if not _is_setting(name)}


def _is_setting(variable: str) -> bool:
    return variable.startswith(ENVIRONMENT_PREFIX) and variable not in NOT_SETTINGS


def _environment_layer(environment: Mapping[str, str]) -> dict[str, tuple[str, Any]]:
    layer: dict[str, tuple[str, Any]] = {}
    for name, text in sorted(environment.items()):
        if _is_setting(name):
            key = name.removeprefix(ENVIRONMENT_PREFIX).lower().replace("__", ".")
            layer[key] = (name, _parse_value(text, name))
    return layer


def _assignment_layer(assignments: Sequence[str]) -> dict[str, tuple[str, Any]]:
    layer: dict[str, tuple[str, Any]] = {}
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not equals:
            raise ColakitError(f"--set {assignment}: no `=`", hint="Write --set section.key=value")
        layer |= {
            k: (f"--set {assignment}", v) for k, v in _flatten_value(key.strip(), _parse_value(text, "--set"))
        }
    return layer


def _with_mappings_folded(layers: dict[str, tuple[str, Any]]) -> dict[str, tuple[str, Any]]:
    """Let `data.splits.NAME=FILE` add one entry to the mapping `data.splits`, and so for all mappings."""
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


def _with_one_source_of_data(layers: dict[str, tuple[str, Any]]) -> dict[str, tuple[str, Any]]:
    """Let a typed `data.path` displace `data.splits` of a file or the environment, which would go before it.

    So settings that were saved name one source of data.
    """
    typed = {key for key, (origin, _) in layers.items() if origin.startswith(TYPED)}
    if "data.path" not in typed or "data.splits" in typed:
        return layers
    return {key: layer for key, layer in layers.items() if key != "data.splits"}


def _parse_value(text: str, where: str) -> Any:
    from colakit.config.yaml import parse_yaml

    try:
        return parse_yaml(text)
    except ValueError as error:
        raise ColakitError(f"{where}: {text!r} cannot be read ({error})") from error


def _flatten(tree: Mapping[str, Any]) -> list[tuple[str, Any]]:
    return [pair for key, value in tree.items() for pair in _flatten_value(str(key), value)]


def _flatten_value(key: str, value: Any) -> list[tuple[str, Any]]:
    """Spread a section into its keys; a setting that is itself a mapping (data.splits) stays whole."""
    field = Settings.model_fields.get(key)
    if field is None or not (isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)):
        return [(key, value)]
    if value is None:
        return []
    if not isinstance(value, dict):
        return [(key, value)]  # refused: no section is a setting
    return [(f"{key}.{name}", inner) for name, inner in value.items()]


def _unflatten(values: Mapping[str, Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for key, value in values.items():
        section, dot, name = key.partition(".")
        if dot:
            tree.setdefault(section, {})[name] = value
        else:
            tree[section] = value
    return tree


def _unknown_key(key: str, origin: str, known: set[str]) -> str:
    section, dot, _ = key.partition(".")
    siblings = sorted(name for name in known if name.startswith(f"{section}."))
    if siblings and not dot:
        return f"{origin}: {key} is a section; write its keys below it"
    alike = (siblings or sorted(known)) if dot else sorted({name.partition(".")[0] for name in known})
    return f"{origin}: {key} is not a setting.{did_you_mean(key, alike)}"


def _describe(fault: Any, layers: Mapping[str, tuple[str, Any]]) -> str:
    """One line: origin, key, what was got, what is allowed."""
    path = ".".join(str(part) for part in fault["loc"])
    key = next((key for key in layers if path == key or path.startswith(key + ".")), None)
    if key is None:  # a rule over a whole section: name what was set in it
        inside = {name: origin for name, (origin, _) in layers.items() if name.startswith(f"{path}.")}
        named = {name: origin for name, origin in inside.items() if name.rpartition(".")[2] in fault["msg"]}
        origins = sorted(set((named or inside).values()))
        return f"{', '.join(origins) or DEFAULT}: {path}: {_plain(fault['msg'])}"
    origin, value = layers[key]
    written = repr(value)
    got = written if len(written) <= MAX_VALUE_SHOWN else written[:MAX_VALUE_SHOWN] + "…"
    return f"{origin}: {path}: {_plain(fault['msg'])} (got {got})"


def _plain(message: str) -> str:
    message = message.removeprefix("Value error, ").removeprefix("Input ")
    return message[0].lower() + message[1:]
