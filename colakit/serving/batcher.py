"""Dynamic batching: requests that wait at the same time are computed together, in a thread.

A batch starts when its tokens reach the limit, or when its oldest request has waited long enough.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

Logits = NDArray[np.float32]
Run = Callable[[list[Any]], Sequence[Logits]]
"""Maps the units of a batch, a sentence each, to their logits (C,)."""

log = logging.getLogger("colakit.serving")


class QueueFullError(Exception):
    """Too many tokens wait.

    Args:
        seconds: until there is room, estimated.
    """

    def __init__(self, seconds: int) -> None:
        super().__init__()
        self.seconds = seconds


@dataclass(eq=False)
class _Job:
    """A request's units: `results` has the logits of the first of them, in batches still running or done."""

    units: Sequence[Any]
    costs: Sequence[int]
    future: asyncio.Future[list[Logits]]
    arrived: float = field(default_factory=time.monotonic)
    num_taken: int = 0
    results: list[Logits] = field(default_factory=list)
    is_cancelled: bool = False

    @property
    def waiting(self) -> int:
        """Tokens that no batch has taken."""
        return 0 if self.is_cancelled else sum(self.costs[self.num_taken :])


class Batcher:
    """A queue of units with a thread that computes them in batches.

    Args:
        run: computes one batch.
        max_tokens: of a batch; a longer unit runs alone.
        max_wait: seconds that the oldest unit waits for others.
        max_queue: tokens that may wait.
        on_batch: called with (units, tokens, seconds) after each batch, in the thread.
    """

    def __init__(
        self,
        run: Run,
        *,
        max_tokens: int,
        max_wait: float,
        max_queue: int,
        on_batch: Callable[[int, int, float], object] = lambda units, tokens, seconds: None,
    ) -> None:
        self.run, self._on_batch = run, on_batch
        self._max_tokens, self._max_wait, self._max_queue = max_tokens, max_wait, max_queue
        self._jobs: deque[_Job] = deque()
        self._waiting = 0  # tokens
        self._rate = 1e4  # tokens a second, a moving average
        self._is_closed = False
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    @property
    def waiting(self) -> int:
        """Tokens that wait."""
        return self._waiting

    async def submit(self, units: Sequence[Any], costs: Sequence[int]) -> list[Logits]:
        """Return the logits of each unit; a cancelled call takes its units out of the queue.

        Args:
            costs: tokens of each unit.

        Raises:
            QueueFullError: if the queue has no room; a single request may exceed an empty queue.
        """
        job = _Job(units, costs, asyncio.get_running_loop().create_future())
        with self._changed:
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, daemon=True, name="colakit-batcher")
                self._thread.start()
            if self._jobs and self._waiting + job.waiting > self._max_queue:
                raise QueueFullError(1 + int(self._waiting / self._rate))
            self._jobs.append(job)
            self._waiting += job.waiting
            self._changed.notify()
        try:
            return await job.future
        except asyncio.CancelledError:
            with self._changed:
                self._cancel(job)
            raise

    def close(self) -> None:
        """Compute the waiting units and end the thread."""
        with self._changed:
            self._is_closed = True
            self._changed.notify()
        if self._thread is not None:
            self._thread.join()

    def _cancel(self, job: _Job) -> None:
        self._waiting -= job.waiting
        job.is_cancelled = True

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._jobs or self._is_closed)
                if not self._jobs:
                    return
                deadline = self._jobs[0].arrived + self._max_wait
                while self._waiting < self._max_tokens and not self._is_closed:
                    if (left := deadline - time.monotonic()) <= 0:
                        break
                    self._changed.wait(left)
                batch = self._take()
            if batch:
                self._compute(batch)

    def _take(self) -> list[tuple[_Job, Any, int]]:
        """Take the units of the next batch out of the queue: job, unit, cost."""
        batch: list[tuple[_Job, Any, int]] = []
        tokens = 0
        while self._jobs:
            job = self._jobs[0]
            if job.is_cancelled or job.num_taken == len(job.units):
                self._jobs.popleft()
                continue
            cost = job.costs[job.num_taken]
            if batch and tokens + cost > self._max_tokens:
                break
            batch.append((job, job.units[job.num_taken], cost))
            job.num_taken += 1
            tokens += cost
        self._waiting -= sum(cost for job, _, cost in batch)
        return batch

    def _compute(self, batch: list[tuple[_Job, Any, int]]) -> None:
        jobs = dict.fromkeys(job for job, _, _ in batch)
        tokens, began = sum(cost for _, _, cost in batch), time.monotonic()
        try:
            results = self.run([unit for _, unit, _ in batch])
        except Exception as error:  # one batch fails, the server goes on
            log.exception("a batch of %d sentences failed", len(batch))
            with self._changed:
                for job in jobs:
                    self._cancel(job)
            self._finish([(job, error) for job in jobs])
            return
        seconds = time.monotonic() - began
        self._rate += 0.1 * (tokens / max(seconds, 1e-6) - self._rate)
        for (job, _, _), logits in zip(batch, results, strict=True):
            job.results.append(logits)
        self._on_batch(len(batch), tokens, seconds)
        self._finish([(job, None) for job in jobs if len(job.results) == len(job.units)])

    def _finish(self, jobs: Sequence[tuple[_Job, Exception | None]]) -> None:
        if not jobs:
            return

        def resolve() -> None:
            for job, error in jobs:
                if job.future.done():
                    continue
                if error is None:
                    job.future.set_result(job.results)
                else:
                    job.future.set_exception(error)

        loop = jobs[0][0].future.get_loop()
        if not loop.is_closed():
            loop.call_soon_threadsafe(resolve)
