"""The process group ends without leftover threads."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from support.killing import TWO_PROCESSES

JOB = """
import os
from pathlib import Path
import torch
from colakit.runtime.device import Compute
from colakit.runtime.distributed import processes

compute = Compute(torch.device("cpu"), torch.float32, "a test")
with processes(compute) as group:
    layer = torch.nn.Linear(2, 1)
    torch.optim.AdamW(layer.parameters())  # imports what is slow, as DDP does
    replica = group.replicate(layer, compute)
    replica(torch.full((1, 2), 1.0 + group.rank)).sum().backward()
    del replica
    inside = len(os.listdir("/proc/self/task"))
after = len(os.listdir("/proc/self/task"))
Path(f"rank-{group.rank}").write_text(f"{inside} {after} {layer.weight.grad.tolist()}")
"""


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="needs a /proc that lists threads")
def test_the_groups_threads_end_with_it(tmp_path: Path) -> None:
    # one that frees a finished operation while the interpreter ends aborts the process, now and then
    (tmp_path / "job.py").write_text(JOB, encoding="utf-8")
    plain = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}  # a GPU has threads of its own
    job = subprocess.run(
        [*TWO_PROCESSES, "job.py"], cwd=tmp_path, env=plain, capture_output=True, text=True, timeout=120
    )
    assert job.returncode == 0, job.stderr
    for rank in range(2):
        inside, after, gradient = (tmp_path / f"rank-{rank}").read_text(encoding="ascii").split(maxsplit=2)
        assert int(inside) > int(after) == 1
        assert gradient == "[[1.5, 1.5]]"  # of the mean of both processes' losses
