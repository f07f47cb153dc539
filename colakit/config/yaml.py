"""Settings as YAML: read with no surprises, and written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel

from colakit.errors import ColakitError

ASSETS = Path(__file__).parents[1] / "assets"  # files that come with the package
MAX_CONFIG_BYTES = 2**18


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
        loaded = parse_yaml(text)
    except ValueError as error:
        raise ColakitError(f"{path}: {error}", hint="Mend the YAML.") from error
    if loaded is None:
        return {}
    if not isinstance(loaded, dict):
        raise ColakitError(f"{path}: holds a {type(loaded).__name__}; sections with keys are wanted")
    return loaded


def parse_yaml(text: str) -> Any:
    """Return the plain data that `text` spells.

    Raises:
        ValueError: saying in one line what is wrong with it.
    """
    try:
        return yaml.load(text, Loader=_UniqueKeyLoader)  # noqa: S506 (it derives from SafeLoader)
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from error
    except Exception as error:  # PyYAML lets out what int, date and its own slips raise
        raise ValueError(f"a value cannot be read: {' '.join(str(error).split())}") from error


def to_yaml(settings: BaseModel) -> str:
    """Return the settings as YAML that `--config` takes back."""
    return yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False, width=float("inf"))


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
