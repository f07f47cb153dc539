"""Short runs of the commands of `make torture-serve`."""

from __future__ import annotations

from pathlib import Path

import hostile_requests
import pytest
import serving_load
from support.serving import write_toy_models

pytestmark = pytest.mark.slow


def test_no_request_fails_while_adapters_are_swapped_and_the_server_ends(tmp_path: Path) -> None:
    counts = serving_load.run(tmp_path, clients=40, seconds=10)
    assert counts["faults"] == []
    assert counts["swaps"] >= 2
    assert counts["answers while swapping"] >= 40


def test_hostile_requests_leave_the_server_as_it_was(tmp_path: Path) -> None:
    write_toy_models(tmp_path)
    models = {name: tmp_path / name for name in ("two", "three", "student")}
    server = serving_load.Server(models, tmp_path)
    try:
        assert hostile_requests.attack(server.port, server.process.pid, 500)["requests"] >= 500
    finally:
        assert server.stop(15) == 0
