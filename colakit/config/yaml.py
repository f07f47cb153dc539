"""Read and write settings as YAML."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel

from colakit.errors import ColakitError

ASSETS = Path(__file__).parents[1] / "assets"  # files of the package
MAX_CONFIG_BYTES = 2**16  # PyYAML reads some 100 KiB a second
MAX_NUMBER = 100  # characters of a number
MAX_DEPTH = 16
TOO_DEEP = f"nested more than {MAX_DEPTH} levels deep"
NUMBERS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")
PLAIN_WORDS = {  # of PyYAML -> of this program
    "the node content": "a value",
    "<block end>": "the end of the section",
    "'<block mapping start>'": "a section",
    "'<stream end>'": "the end of the text",
    "'<document start>'": "a new document",
    "found character '\\t' that cannot start any token": "lines are indented by spaces, not tabs",
    "mapping values are not allowed here": "`:` is not allowed here; quote a text that contains it",
}
STRING = "tag:yaml.org,2002:str"


def read_yaml(path: Path) -> dict[str, Any]:
    """Return the mapping in a YAML file; `demo` names the file of that name in `colakit/assets`.

    Raises:
        ColakitError: if the file is missing, is not valid YAML, is not a mapping, or repeats a key.
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
            f"--config {path}: the file is larger than {MAX_CONFIG_BYTES >> 10} KiB",
            hint="Check that it is a settings file.",
        )
    try:
        loaded = parse_yaml(text)
    except ValueError as error:
        raise ColakitError(f"{path}: {error}", hint="Correct the YAML.") from error
    if loaded is None:
        return {}
    if not isinstance(loaded, dict):
        raise ColakitError(f"{path}: must be a mapping of sections (got {type(loaded).__name__})")
    return loaded


def parse_yaml(text: str) -> Any:
    """Return the data in a YAML text.

    Raises:
        ValueError: the text is too long or not valid YAML, or a number is too long; the message is one line.
    """
    if len(text) > MAX_CONFIG_BYTES:
        raise ValueError(f"longer than {MAX_CONFIG_BYTES >> 10} KiB")
    try:
        return yaml.load(text, Loader=_UniqueKeyLoader)  # noqa: S506 (it derives from SafeLoader)
    except yaml.MarkedYAMLError as error:
        raise ValueError(_describe(error)) from error
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise ValueError(f"line {line}: the character U+{error.character:04X} is not allowed") from error
    except Exception as error:  # PyYAML does not wrap the errors of int() and date()
        raise ValueError(f"invalid value: {' '.join(str(error).split())}") from error


def _describe(error: yaml.MarkedYAMLError) -> str:
    """Return line, column and reason of a fault, in one line."""
    text = error.problem or error.context or ""
    for pattern, words in PLAIN_WORDS.items():
        text = text.replace(pattern, words)
    mark = error.problem_mark or error.context_mark
    where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
    return where + " ".join(text.split())


def to_yaml(settings: BaseModel) -> str:
    """Return the settings as YAML for `--config`."""
    return yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False, width=float("inf"))


class _UniqueKeyLoader(yaml.SafeLoader):
    """A safe loader that refuses duplicate keys (PyYAML keeps the last), aliases, depth and long numbers.

    Nested aliases let a few lines expand to a value of any size. Numbers in base 60 are read as text; YAML
    1.1 reads `1:30` as 90.
    """

    depth = 0

    def resolve(self, kind: type[yaml.Node], value: str, implicit: Any) -> str:
        tag: str = super().resolve(kind, value, implicit)
        return STRING if tag in NUMBERS and ":" in value else tag

    def construct_number(self, node: yaml.ScalarNode) -> int | float:
        text = str(self.construct_scalar(node))
        if len(text) > MAX_NUMBER or ":" in text:
            problem = f"not a number of up to {MAX_NUMBER} characters: {text[:20]}{'…' if text[20:] else ''}"
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)
        construct = self.construct_yaml_int if node.tag == NUMBERS[0] else self.construct_yaml_float
        number: int | float = construct(node)
        return number

    def fetch_flow_collection_start(self, token: type[yaml.Token]) -> None:
        if self.flow_level >= MAX_DEPTH:  # the scanner reads 1,024 brackets ahead, in 0.1 s
            raise yaml.scanner.ScannerError(None, None, TOO_DEEP, self.get_mark())
        super().fetch_flow_collection_start(token)

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark
            raise yaml.composer.ComposerError(None, None, "aliases (*name) are not allowed", mark)
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise yaml.composer.ComposerError(None, None, TOO_DEEP, self.peek_event().start_mark)
        node: yaml.Node | None = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key_node, _ in node.value:
            key = str(key_node.value)
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"duplicate key {key!r}", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


for _tag in NUMBERS:
    _UniqueKeyLoader.add_constructor(_tag, _UniqueKeyLoader.construct_number)
