"""From flags, `--set`, environment and YAML to validated settings, with the origin of every value."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from colakit.errors import ColakitError, did_you_mean
from colakit.settings import Settings, leaf_fields

ENVIRONMENT_PREFIX = "COLAKIT_"
NOT_SETTINGS = {"COLAKIT_SHARED"}  # where the tests find real data
DEFAULT = "default"
ASSETS = Path(__file__).parent / "assets"  # files that come with the package
MAX_CONFIG_BYTES = 2**18
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


def read_yaml(path: Path) -> dict[str, Any]:
    """Return the mapping in a YAML file of plain data, refusing a key that stands twice.

    The name of a file that colakit brings along, such as `demo`, will do for its path.

    Raises:
        ColakitError: if the file is missing, broken, or not a mapping.
    """
    packaged = ASSETS / f"{path}.yaml"
    if len(path.parts) == 1 and not path.is_file() and packaged.is_file():
        path = packaged
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_CONFIG_BYTES + 1)
        text = raw.decode("utf-8-sig")
    except (OSError, ValueError) as error:  # not UTF-8, or a NUL in the path
        raise ColakitError(
            f"--config {path}: {getattr(error, 'strerror', None) or error}", hint="Check the path."
        ) from error
    if len(raw) > MAX_CONFIG_BYTES:
        raise ColakitError(
            f"--config {path}: is longer than {MAX_CONFIG_BYTES >> 10} KiB",
            hint="Is this a file of settings?",
        )
    try:
        loaded = _parse_yaml(text)
    except yaml.YAMLError as error:
        raise ColakitError(f"{path}: {' '.join(str(error).split())}", hint="Mend the YAML.") from error
    if loaded is None:
        return {}
    if not isinstance(loaded, dict):
        raise ColakitError(f"{path}: holds a {type(loaded).__name__}; sections with keys are wanted")
    return loaded


def _parse_yaml(text: str) -> Any:
    try:
        return yaml.load(text, Loader=_UniqueKeyLoader)  # noqa: S506 (it derives from SafeLoader)
    except yaml.YAMLError:
        raise
    except Exception as error:  # PyYAML lets out what int, date and its own slips raise
        raise yaml.YAMLError(f"a value cannot be read: {error}") from error


class _UniqueKeyLoader(yaml.SafeLoader):
    """A safe loader that refuses duplicate keys, of which PyYAML silently keeps the last, and aliases.

    With aliases a few lines can name a value of any size, which is as large when an error shows it.
    """

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark
            raise yaml.composer.ComposerError(None, None, "aliases (*name) are not taken", mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key_node, _ in node.value:
            key = str(key_node.value)
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"key {key!r} stands twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


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
    try:
        return _parse_yaml(text)
    except yaml.YAMLError as error:
        raise ColakitError(f"{where}: {text!r} cannot be read ({' '.join(str(error).split())})") from error


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
        return [(f"{key}.", value)]
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
    section = key.partition(".")[0]
    if key.endswith("."):
        return f"{origin}: {section} is a section; write its keys below it"
    siblings = [name for name in known if name.startswith(section + ".")] or sorted(known)
    if "." not in key:
        siblings = sorted({name.partition(".")[0] for name in known})
    return f"{origin}: {key} is not a setting.{did_you_mean(key, siblings)}"


def _describe(fault: Any, layers: Mapping[str, tuple[str, Any]]) -> str:
    """One line: origin, key, what was got, what is allowed."""
    path = ".".join(str(part) for part in fault["loc"])
    key = next((key for key in layers if path == key or path.startswith(key + ".")), None)
    if key is None:  # a rule over a whole section: name what was set in it
        origins = sorted({origin for name, (origin, _) in layers.items() if name.startswith(path)})
        return f"{', '.join(origins) or DEFAULT}: {path}: {_plain(fault['msg'])}"
    origin, value = layers[key]
    written = repr(value)
    got = written if len(written) <= MAX_VALUE_SHOWN else written[:MAX_VALUE_SHOWN] + "…"
    return f"{origin}: {path}: {_plain(fault['msg'])} (got {got})"


def _plain(message: str) -> str:
    message = message.removeprefix("Value error, ").removeprefix("Input ")
    return message[0].lower() + message[1:]


def to_yaml(settings: Settings) -> str:
    """Return the settings as YAML that `--config` takes back."""
    return yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False)
