"""`colakit doctor`: versions, device, precision, caches, network."""

from __future__ import annotations

import platform
import socket
import sys
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from colakit import __version__
from colakit.api.session import Session
from colakit.cli.options import BASE_AND_DATA, command

if TYPE_CHECKING:
    from colakit.runtime.device import Compute

ANSWER_SECONDS = 3.0


@command("doctor", dict(BASE_AND_DATA))
def doctor_command(session: Session) -> dict[str, Any]:
    """Print versions, device, precision and its reason, threads, caches, and network access."""
    import torch
    from huggingface_hub import constants

    from colakit.data.fetch import COLA_URL, is_fetched
    from colakit.runtime.cpu import available_cpus
    from colakit.storage.run_folder import PACKAGES, package_version

    compute = session.compute if session.dry_run else session.gpt_training_compute
    facts: dict[str, Any] = {
        "colakit": __version__,
        "python": f"{platform.python_version()} ({sys.executable})",
        "platform": platform.platform(),
        **{name: package_version(name) or "not installed" for name in PACKAGES},
        "device": str(compute.device),
        "precision": compute.precision,
        "why": compute.reason,
        **({"int8": _int8(compute)} if compute.device.type == "cpu" and not session.dry_run else {}),
        "threads": f"{torch.get_num_threads()} of {available_cpus()} cores",
        "cache": str(session.cache_folder),
        "CoLA": "fetched" if is_fetched(session.cache_folder) else "not fetched; run `colakit data fetch`",
        "hub": _answers(constants.ENDPOINT),
        "CoLA site": _answers(COLA_URL),
    }
    session.reporter.table(
        "colakit doctor", ["item", "value"], [[key, str(value)] for key, value in facts.items()]
    )
    return facts


def _int8(compute: Compute) -> str:
    """Return how fast int8 is here, and when it is used, as text."""
    from colakit.runtime.device import int8_speedup, int8_units

    dtype = str(compute.dtype).removeprefix("torch.")
    return (
        f"{int8_speedup(compute):.1f} times {dtype} in a frozen layer, on an idle machine ({int8_units()}); "
        "auto does not choose it (docs/performance.md says why)"
    )


def _answers(url: str) -> str:
    """Return whether a TCP connection to the host of `url` succeeds, as text."""
    parts = urlsplit(url)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    try:
        with socket.create_connection((parts.hostname or "", port), timeout=ANSWER_SECONDS):
            return f"{parts.hostname} answers"
    except OSError as error:
        return f"{parts.hostname} does not answer ({error})"
