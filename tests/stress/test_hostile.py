"""Every reader of untrusted files returns or raises `ColakitError`, in bounded time and memory."""

from __future__ import annotations

from collections import Counter

import pytest
from stress.hostile import SCHEMAS, fuzz, readers
from stress.hostile_schema import schema_of

from colakit.utils.documents import Document

CASES = 100


@pytest.mark.parametrize("name", readers())
def test_any_file_is_read_or_refused(name: str) -> None:
    count = Counter[str]()
    reader = readers()[name]
    fuzz(reader, CASES, count)
    cases = round(CASES * reader.share)
    assert count["cases"] >= cases
    assert count["result"] >= 1  # some cases are valid files
    if name != "cached arrays":  # damaged cache entries are recomputed instead of refused
        assert count["refused"] >= cases // 4


def test_every_schema_of_a_stored_file_is_used_by_a_reader() -> None:
    defined = set[type[Document]]()
    pending = [Document]
    while pending:
        models = pending.pop().__subclasses__()
        defined.update(models)
        pending += models
    titles = {title for model in SCHEMAS for title in (model.__name__, *schema_of(model).get("$defs", {}))}
    assert {model.__name__ for model in defined if model.__module__.startswith("colakit.")} <= titles
