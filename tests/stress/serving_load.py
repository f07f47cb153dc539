"""Load on `colakit serve` while adapters are swapped, then SIGTERM under load, then SIGKILL and a restart.

    python tests/stress/serving_load.py --seconds 120 --clients 200

starts servers of the built-in base. It fails if a request fails, if an answer is not that of a version that
was current between the request and its answer, or if SIGTERM loses an accepted request. With `--max-ready S`
it also fails if a server that was killed needs more than S seconds until `/ready` answers.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from http_load import Connection
from support.serving import FP32, write_toy_adapter

from colakit.data.builtin.corpus import builtin_pairs
from colakit.inference.classifier import load_classifier
from colakit.inference.predictor import Predictor
from colakit.storage.gpt2 import resolve_base

TOKEN, FOLDERS, TOLERANCE = "admin", ("even", "odd"), 1e-5
READY = "seconds, and processor seconds, from the start after SIGKILL to /ready"
SENTENCES = [pair.sentence for pair in builtin_pairs() if pair.split == "id_dev"][:256]


class Server:
    """A `colakit serve` process.

    Attributes:
        ready: seconds, and processor seconds of the process, from its start until it is ready.
    """

    def __init__(self, models: Mapping[str, Path], adapter_dir: Path, *flags: str) -> None:
        self.port = free_port()
        words = [*(f"{name}={path}" for name, path in models.items()), "--adapter-dir", str(adapter_dir)]
        words += ["--admin-token", TOKEN, "--port", str(self.port), "--quiet", *flags]
        self.line = [sys.executable, "-m", "colakit", "serve", *words]
        self.start()

    def start(self) -> None:
        """Start the process, and wait until it is ready."""
        began = time.monotonic()
        self.process = subprocess.Popen(self.line)
        while asyncio.run(self._status()) != 200:
            if self.process.poll() is not None:
                sys.exit(f"the server ended with {self.process.returncode}")
            time.sleep(0.01)
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        processor = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
        self.ready = round(time.monotonic() - began, 2), processor

    async def _status(self) -> int:
        connection = self.connection()
        try:
            return (await connection.post("/ready", {}, "GET"))[0]
        except OSError:
            return 0
        finally:
            connection.close()

    def connection(self) -> Connection:
        """Return a new connection."""
        return Connection("127.0.0.1", self.port)

    def stop(self, number: int) -> int:
        """Send a signal; return the exit code."""
        self.process.send_signal(number)
        return self.process.wait(120)


def free_port() -> int:
    """Return a port that is free now."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@dataclass
class Counts:
    """What the clients saw.

    Attributes:
        oldest: the last version that was confirmed to be served; later requests see it or a newer one.
        newest: the last version that was sent to be loaded.
    """

    probs: dict[str, Any]
    oldest: int = 1
    newest: int = 1
    answered: int = 0
    failures: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    def check(self, start: int, content: bytes, oldest: int) -> None:
        """Compare an answer for the sentences from `start` on with that of its version's adapter."""
        answer = json.loads(content)
        version, rows = answer["version"], [row["probs"] for row in answer["data"]]
        expected = self.probs[FOLDERS[version % 2]][start : start + len(rows)]
        if not oldest <= version <= self.newest or np.abs(rows - expected).max() > TOLERANCE:
            self.wrong.append(f"version {version}, {oldest} to {self.newest} allowed")
        self.answered += 1


async def ask(server: Server, counts: Counts, index: int, until: float | None) -> None:
    """Send requests until a time, or until the server listens no more."""
    connection = server.connection()
    while until is None or time.monotonic() < until:
        start, oldest = (index * 7 + counts.answered) % (len(SENTENCES) - 2), counts.oldest
        try:
            body = {"model": "model", "input": SENTENCES[start : start + 2], "truncate": True}
            status, content = await connection.post("/v1/classify", body)
        except ConnectionRefusedError:
            if until is None:
                return
            counts.failures.append("refused")
        except (OSError, asyncio.IncompleteReadError) as error:
            counts.failures.append(repr(error))
            connection.close()
            if until is None:
                return
        else:
            if status == 200:
                counts.check(start, content, oldest)
            else:
                counts.failures.append(str(status))
    connection.close()


async def swap(server: Server, counts: Counts, until: float) -> None:
    """Replace the adapter every second; version n is that of folder `FOLDERS[n % 2]`."""
    connection = server.connection()
    while (now := time.monotonic()) < until:
        counts.newest += 1
        path = FOLDERS[counts.newest % 2]
        status, content = await connection.post("/v1/adapters/model", {"path": path}, token=TOKEN)
        if status != 200 or json.loads(content)["version"] != counts.newest:
            counts.failures.append(f"swap: {status}")
        counts.oldest = counts.newest
        await asyncio.sleep(max(0.0, now + 1 - time.monotonic()))
    connection.close()


async def load(server: Server, counts: Counts, clients: int, seconds: float) -> None:
    """Ask with all clients while the adapter is swapped."""
    until = time.monotonic() + seconds
    await asyncio.gather(
        swap(server, counts, until), *(ask(server, counts, i, until) for i in range(clients))
    )


async def load_until_stopped(server: Server, counts: Counts, clients: int, seconds: float) -> None:
    """Ask with all clients; send SIGTERM after `seconds`; end when the server listens no more."""
    asyncio.get_running_loop().call_later(seconds, server.process.send_signal, signal.SIGTERM)
    await asyncio.gather(*(ask(server, counts, i, None) for i in range(clients)))


def run(folder: Path, clients: int, seconds: float) -> dict[str, Any]:
    """Return what was counted; `faults` is empty if all held."""
    probs = {}
    for seed, name in enumerate(FOLDERS):
        shape = {"labels": ("bad", "good"), "seed": seed, "noise": 0.02}  # more would amplify rounding
        write_toy_adapter(folder / name, resolve_base("builtin"), **shape)
        probs[name] = Predictor(load_classifier(folder / name), FP32)(SENTENCES).probs
    assert np.abs(probs[FOLDERS[0]] - probs[FOLDERS[1]]).max(axis=1).min() > 10 * TOLERANCE
    server = Server({"model": folder / FOLDERS[1]}, folder, "--base", "builtin", "--precision", "fp32")
    swapping, stopping = Counts(probs), Counts(probs)
    asyncio.run(load(server, swapping, clients, seconds))
    stopping.oldest = stopping.newest = swapping.newest
    asyncio.run(load_until_stopped(server, stopping, clients, min(5.0, seconds)))
    code = server.process.wait(120)
    server.start()
    server.stop(signal.SIGKILL)
    server.start()
    server.stop(signal.SIGTERM)
    lists = (swapping.failures, swapping.wrong, stopping.failures, stopping.wrong)
    return {
        "clients": clients,
        "seconds": seconds,
        "swaps": swapping.newest - 1,
        "answers while swapping": swapping.answered,
        "answers before the end by SIGTERM": stopping.answered,
        "exit code of SIGTERM": code,
        "failed": len(swapping.failures),
        "of no current version": len(swapping.wrong) + len(stopping.wrong),
        "lost at SIGTERM": len(stopping.failures),
        READY: server.ready,
        "faults": [fault for faults in lists for fault in faults[:3]] + ([f"code {code}"] if code else []),
    }


def main() -> int:
    """Run the load; return 1 at a fault."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--max-ready", type=float)
    options = parser.parse_args()
    with TemporaryDirectory() as folder:
        counts = run(Path(folder), options.clients, options.seconds)
    print(json.dumps(counts, indent=2))
    is_late = (
        options.max_ready and counts["seconds from the start after SIGKILL to /ready"] > options.max_ready
    )
    return 1 if counts["faults"] or is_late else 0


if __name__ == "__main__":
    sys.exit(main())
