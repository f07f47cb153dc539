"""Every reader of untrusted files returns or raises `ColakitError`, in bounded time and memory."""

from __future__ import annotations

from collections import Counter

import pytest
from stress.hostile import fuzz, readers

CASES = 250


@pytest.mark.parametrize("name", readers())
def test_any_file_is_read_or_refused(name: str) -> None:
    count = Counter[str]()
    fuzz(readers()[name], CASES, count)
    assert count["cases"] >= CASES
    assert count["result"] >= 1  # some cases are valid files
    if name != "cached arrays":  # damaged cache entries are recomputed instead of refused
        assert count["refused"] >= CASES // 4
