"""Other people's files: each reader ends in a result or in a `ColakitError`, in bounded time and memory."""

from __future__ import annotations

from collections import Counter

import pytest
from stress.hostile import readers, throw

CASES = 250


@pytest.mark.parametrize("name", readers())
def test_any_file_ends_in_a_result_or_in_a_named_fault(name: str) -> None:
    count = Counter[str]()
    throw(readers()[name], CASES, count)
    assert count["cases"] >= CASES
    assert count["result"] >= 1  # the cases are near to good files,
    if name != "cached arrays":  # of which bad ones are computed anew
        assert count["refused"] >= CASES // 4  # and hostile
