"""Cases of stored files for `hostile.py`, derived from their pydantic models.

A case is a valid document with values replaced at any node: limits of the schema and values beyond them,
other types, fields that are absent, depth, digits, encodings. Its bytes are then left, cut, flipped or
recoded.
"""

from __future__ import annotations

import copy
import functools
import json
from collections.abc import Iterator
from typing import Any

from hypothesis import strategies as st
from pydantic import BaseModel

TEXTS = st.text(max_size=10) | st.sampled_from(
    [
        *("", " ", "\0", "\ud800", "\x1b[31m", "[/x]", "$x^{$", "\\x", "\u202e", "../../x", "/etc/passwd"),
        *("x" * 5000, "%s", "NaN", "1", "null"),
    ]
)
NUMBERS = st.sampled_from(
    [0, 1, -1, 2**31, 2**53, 2**63, 2**64, -(2**63), 10**30, 0.5, -0.0, 1e308, 1e-300, float("nan")]
) | st.integers(-3, 300)
ROOTS = st.none() | st.booleans() | NUMBERS | st.just(float("inf")) | TEXTS
VALUES = st.recursive(
    ROOTS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3), max_leaves=6
)
RAW = {  # JSON that no value of Python is written as
    "\ue000deep": b"[" * 10_000 + b"]" * 10_000,
    "\ue000open": b'{"a":' * 50_000,
    "\ue000digits": b"9" * 5000,
    "\ue000exponent": b"1e" + b"9" * 5000,
    "\ue000long": b'"' + b"x" * 2**20 + b'"',
    "\ue000many": b"[" + b"0," * 300_000 + b"0]",
    "\ue000objects": b"[" + b"{}," * 200_000 + b"{}]",
    "\ue000bytes": b'"\xff\xfe"',
    "\ue000escape": b'"\\u0000\\ud800"',
    "\ue000constant": b"Infinity",
    "\ue000twice": b'{"a": 1, "a": [2]}',
}
INDICES = st.integers(0, 2**16)
MAX_SIZE = 2**13  # of lists and texts made to exceed a bound
Schema = dict[str, Any]


class Content(bytes):
    """Content of a file. hypothesis keeps each drawn value of plain `bytes`, gigabytes in a long sweep."""


def json_of(value: Any) -> Content:
    """Return JSON, with `RAW` in place of its names."""
    text = json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass")
    for name, raw in RAW.items():
        text = text.replace(json.dumps(name, ensure_ascii=False).encode(), raw)
    return Content(text)


@functools.cache
def schema_of(model: type[BaseModel]) -> Schema:
    """Return the JSON schema of a model, which nobody may change."""
    return model.model_json_schema()


def alternatives(schema: Schema, root: Schema) -> list[Schema]:
    """Return the schemas of which one must hold, without references."""
    if "$ref" in schema:
        return alternatives(root["$defs"][schema["$ref"].rpartition("/")[2]], root)
    parts = [part for key in ("anyOf", "oneOf", "allOf") for part in schema.get(key, [])]
    return [each for part in parts for each in alternatives(part, root)] if parts else [schema]


def nodes(value: Any, schemas: list[Schema], root: Schema) -> Iterator[tuple[Any, Any, list[Schema]]]:
    """Yield (container, key, schemas) of all values in a document, and of fields that it lacks."""
    known = [part for schema in schemas for part in alternatives(schema, root)]
    keys: list[Any] = list(range(len(value))) if isinstance(value, list) else [*value]
    for key in keys[:20]:  # enough of a long list or vocabulary
        if isinstance(value, list):
            inner = [schema.get("items", {}) for schema in known]
        else:
            others = [schema.get("additionalProperties", {}) for schema in known]
            inner = [schema.get("properties", {}).get(key) for schema in known] + others
        inner = [each for each in inner if isinstance(each, dict)]
        yield value, key, [part for each in inner for part in alternatives(each, root)]
        if isinstance(value[key], (dict, list)):
            yield from nodes(value[key], inner, root)
    if isinstance(value, dict):
        for schema in known:
            for key, each in schema.get("properties", {}).items():
                if key not in value:
                    yield value, key, alternatives(each, root)


def beyond(schemas: list[Schema]) -> list[Any]:
    """Return values at the limits of the schemas and beyond them."""
    values: list[Any] = []
    for schema in schemas:
        for name in ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"):
            if name in schema:
                values += [schema[name] + step for step in (-1, 0, 1, 0.5)]
        values += schema.get("enum", []) + ([schema["const"]] if "const" in schema else [])
        if (size := schema.get("maxLength", MAX_SIZE)) < MAX_SIZE:
            values += ["x" * size, "x" * (size + 1)]
        if (size := schema.get("maxItems", MAX_SIZE)) < MAX_SIZE:
            values += [[0] * (size + 1), ["x"] * (size + 1)]
        if (size := schema.get("maxProperties", MAX_SIZE)) < MAX_SIZE:
            values.append({str(i): 0 for i in range(size + 1)})
        values += {"array": [[], [[]]], "object": [{}], "string": [""], "null": [None]}.get(
            schema.get("type", ""), []
        )
    return values


@st.composite
def altered(draw: st.DrawFn, good: Any, model: type[BaseModel] | None = None) -> Any:
    """Replace, add or remove up to three values of plain data, at any depth.

    Strategies of values that are drawn stay in memory, so choices among them are drawn as numbers.
    """

    def one_of(values: list[Any]) -> Any:
        return values[draw(INDICES) % len(values)]

    root = {"root": copy.deepcopy(good)}
    schema = {} if model is None else schema_of(model)
    for _ in range(draw(st.integers(1, 3))):
        slots = list(nodes(root, [{"properties": {"root": schema}}], schema))
        container, key, schemas = one_of(slots)
        limits = beyond(schemas)
        match draw(st.integers(0, 9)):
            case 0 if container is not root and (isinstance(container, list) or key in container):
                del container[key]
            case 1 if isinstance(container, dict) and container is not root:
                container[draw(TEXTS)] = draw(VALUES)
            case 2:
                container[key] = one_of([*RAW])
            case 3 if isinstance(container, list) or key in container:
                container[key] = one_of([[container[key]], {"a": container[key]}])
            case 4 if isinstance(container, list) and container:
                container += container * one_of([1, 100])
            case 5 | 6 | 7 if limits:
                container[key] = one_of(limits)
            case _:
                container[key] = draw(VALUES)
    return root.get("root")


TEARS = st.tuples(
    *(st.integers(0, 19), st.integers(0, 2**24), st.integers(0, 7), st.binary(min_size=1, max_size=8)),
    st.sampled_from(["utf-16", "utf-32", "utf-8-sig"]),
)


def tear(raw: bytes, how: tuple[int, int, int, bytes, str]) -> bytes:
    """Leave, cut, flip or recode bytes."""
    kind, number, bit, inserted, encoding = how
    at = number % max(1, len(raw))
    match kind:
        case 0:
            return raw[:at]
        case 1 | 2 if raw:
            return raw[:at] + bytes([raw[at] ^ 1 << bit]) + raw[at + 1 :]
        case 3:
            return raw.decode("latin-1").encode(encoding)
        case 4:
            return raw[:at] + inserted + raw[at:]
        case 5:
            return raw + raw
    return raw


def torn(files: st.SearchStrategy[bytes]) -> st.SearchStrategy[bytes]:
    """Return files, some of them damaged; hypothesis would keep the strategies of `flatmap`, too."""
    return st.builds(lambda raw, how: Content(tear(raw, how)), files, TEARS)


def documents(good: Any, model: type[BaseModel]) -> st.SearchStrategy[bytes]:
    """Return JSON files near a valid one."""
    return torn(altered(good, model).map(json_of))
