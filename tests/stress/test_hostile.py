"""Every reader of untrusted files returns or raises `ColakitError`, in bounded time and memory."""

from __future__ import annotations

import gc
import tracemalloc
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import strategies as st
from stress.hostile import SCHEMAS, Reader, fuzz, readers
from stress.hostile_schema import json_of, schema_of, torn

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
    titles = {"DecisionMetadata"}  # a base class
    for model in SCHEMAS:
        titles |= {model.__name__, *schema_of(model).get("$defs", {})}
    requests = "colakit.serving."  # bodies of requests, which `hostile_requests` sends
    modules = {model.__name__: model.__module__ for model in defined}
    stored = {name for name, module in modules.items() if module.startswith("colakit.")}
    assert {name for name in stored if not modules[name].startswith(requests)} <= titles


def test_a_sweep_keeps_no_file_in_memory() -> None:
    held: list[int] = []

    def read(folder: Path) -> None:
        gc.collect()
        held.append(tracemalloc.get_traced_memory()[0])

    files = torn(st.integers(0, 10**6).map(lambda number: json_of([number, "\ue000long"])))  # of 1 MiB
    tracemalloc.start()
    try:
        fuzz(Reader(files.map(lambda raw: {"file": raw}), read), 16, Counter())
    finally:
        tracemalloc.stop()
    assert max(held) - min(held) < 4 * 2**20
