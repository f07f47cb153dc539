"""C kernels for the operations on a CPU other than large matrix products.

`SOURCES` are compiled with the system's compiler on first use, in about a second, and cached. Each kernel
has a torch counterpart in `colakit.kernels`, used on machines without a compiler.

Shapes: B batch, N tokens of all its sentences, T tokens of one, H heads, D width of a head, R rank, D_in and
D_out of a linear layer.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
from collections.abc import Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from colakit.utils.files import replacing

HEADER = Path(__file__).with_name("kernels.h")
SOURCES = tuple(HEADER.with_name(name) for name in ("kernels.c", "llama.c", "int8.c"))
FLAGS = [  # not -ffast-math: it assumes no NaN, and flushes the whole process's denormals to zero
    *("-std=c11", "-O3", "-ffp-contract=fast", "-shared", "-fPIC"),
    *("-fno-math-errno", "-fno-trapping-math", "-fassociative-math", "-fno-signed-zeros"),
]
MAX_TOKENS, MAX_HEAD_WIDTH = 64, 128  # of `attention`, as in kernels.c
LANES = 16  # the head width must be a multiple of 4·LANES
MAX_RANK, GROUP_ROWS = 256, 64  # of `add_low_rank`: as in kernels.c; rows of a thread's share
MAX_ELEMENTS = 2**32  # dropout's element index is 32 bits
BUILD_SECONDS = 120.0
POINTER, INT64, INT, FLOAT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int, ctypes.c_float
DROPOUT = (ctypes.c_uint64, ctypes.c_uint32, FLOAT)
SIGNATURES = {
    "gelu": (POINTER, POINTER, POINTER, INT64, INT),
    "cross_entropy": (*[POINTER] * 4, *[INT64] * 2, INT),
    "cross_entropy_backward": (*[POINTER] * 4, *[INT64] * 2, INT),
    "add_dropped": (POINTER, POINTER, POINTER, INT64, *DROPOUT, INT),
    "add_dropped_backward": (POINTER, POINTER, INT64, *DROPOUT, INT),
    "add_low_rank": (*[POINTER] * 3, *[INT64] * 3, INT),
    "attention": (*[POINTER] * 3, *[INT64] * 3, FLOAT, *DROPOUT, INT),
    "attention_backward": (*[POINTER] * 4, *[INT64] * 3, FLOAT, *DROPOUT, INT),
    "rms_norm": (*[POINTER] * 4, *[INT64] * 2, FLOAT, INT),
    "rms_norm_backward": (*[POINTER] * 6, *[INT64] * 2, INT),
    "rotate_heads": (*[POINTER] * 6, *[INT64] * 4, INT),
    "rotate_heads_backward": (*[POINTER] * 6, *[INT64] * 4, INT),
    "swiglu": (*[POINTER] * 3, INT64, INT),
    "swiglu_backward": (*[POINTER] * 5, INT64, INT),
    "quantize_rows": (*[POINTER] * 4, *[INT64] * 3, INT),
    "rescale": (*[POINTER] * 7, *[INT64] * 4, INT),
}


class BuildError(Exception):
    """The kernels could not be compiled or loaded."""


@dataclass(frozen=True)
class DropoutMask:
    """A dropout mask as a function of seed and element index, so that no mask is stored.

    Attributes:
        probability: in [0, 1), rounded to a multiple of 2⁻³².
        seed: 64 bits.
    """

    probability: float
    seed: int

    @classmethod
    def draw(cls, probability: float) -> DropoutMask:
        """Return a mask with a seed from torch's generator."""
        seed = torch.empty((), dtype=torch.int64).random_(-(2**63), None).item() if probability else 0
        return cls(probability, int(seed))

    @property
    def arguments(self) -> tuple[int, int, float]:
        """Arguments of the C functions: seed, probability·2³², and the scale of the kept elements."""
        level = min(round(self.probability * 2**32), 2**32 - 1)
        return self.seed, level, 2**32 / (2**32 - level)


LowRankGroup = tuple[Tensor, Tensor, int, int]
"""Factors (R, D_in) and (R, D_out), first row, row after the last."""


class Kernels:
    """The kernels for one dtype, compiled or loaded from `folder` on first use.

    Args:
        dtype: fp32 or bf16.
        compiler: GCC or clang.
        folder: cache of compiled libraries.
        inference: use them without gradients, too.
    """

    def __init__(self, dtype: torch.dtype, compiler: Path, folder: Path, *, inference: bool = False) -> None:
        self.dtype, self.compiler, self.folder, self.inference = dtype, compiler, folder, inference

    # -- operations; all tensors are contiguous, and of `dtype` unless noted

    def gelu(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return GPT-2's GELU of `x` and its derivative."""
        y, derivative = torch.empty_like(x), torch.empty_like(x)
        self.library.gelu(*pointers(x, y, derivative), x.numel(), torch.get_num_threads())
        return y, derivative

    def cross_entropy(self, logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Return the nll (N,) and log Σ exp (N,) of the rows of logits (N, V); both fp32.

        Args:
            targets: (N,) int64.
        """
        _check_targets(targets, logits.shape[1])
        nll, log_sums = (torch.empty(len(logits)) for _ in range(2))
        counts = (*logits.shape, torch.get_num_threads())
        self.library.cross_entropy(*pointers(logits, targets, nll, log_sums), *counts)
        return nll, log_sums

    def cross_entropy_backward(
        self, logits: Tensor, targets: Tensor, log_sums: Tensor, grad_nll: Tensor | None
    ) -> Tensor:
        """Overwrite `logits` with their gradient of Σ grad_nll·nll, and return them.

        Args:
            grad_nll: (N,) fp32; None is all ones.
        """
        grad_nll = torch.ones_like(log_sums) if grad_nll is None else grad_nll
        _check_targets(targets, logits.shape[1])
        counts = (*logits.shape, torch.get_num_threads())
        self.library.cross_entropy_backward(*pointers(logits, targets, log_sums, grad_nll), *counts)
        return logits

    def add_dropped(self, x: Tensor, branch: Tensor, mask: DropoutMask) -> Tensor:
        """Return x + dropout(branch), fp32 as `x`."""
        y = torch.empty_like(x)
        counts = (x.numel(), *mask.arguments, torch.get_num_threads())
        self.library.add_dropped(*pointers(x, branch, y), *counts)
        return y

    def add_dropped_backward(self, grad: Tensor, mask: DropoutMask) -> Tensor:
        """Return the gradient of `branch`, given that of `add_dropped`'s result, fp32."""
        grad_branch = torch.empty_like(grad, dtype=self.dtype)
        counts = (grad.numel(), *mask.arguments, torch.get_num_threads())
        self.library.add_dropped_backward(*pointers(grad, grad_branch), *counts)
        return grad_branch

    @staticmethod
    def supports_low_rank(rank: int, inputs: int, outputs: int) -> bool:
        """Return whether `add_low_rank` supports factors (R, D_in) and (R, D_out)."""
        return rank <= MAX_RANK and inputs % LANES == outputs % LANES == 0

    def add_low_rank(self, x: Tensor, y: Tensor, groups: Sequence[LowRankGroup]) -> None:
        """Add (x·downᵀ)·up to the rows of y (N, D_out) of each group; x is (N, D_in)."""
        table = [
            (first, min(first + GROUP_ROWS, stop), len(down), *pointers(down, up))
            for down, up, start, stop in groups
            for first in range(start, stop, GROUP_ROWS)
        ]
        entries = np.array(table, dtype=np.int64)  # Group in kernels.c
        counts = (len(table), x.shape[1], y.shape[1], torch.get_num_threads())
        self.library.add_low_rank(*pointers(x, y), entries.ctypes.data, *counts)

    @staticmethod
    def supports_attention(batch: int, longest: int, heads: int, width: int) -> bool:
        """Return whether `attention` supports B sentences of up to `longest` tokens with these heads."""
        fits = longest <= MAX_TOKENS and width <= MAX_HEAD_WIDTH and width % (4 * LANES) == 0
        return fits and batch * heads * MAX_TOKENS**2 < MAX_ELEMENTS

    def attention(self, qkv: Tensor, starts: Tensor, mask: DropoutMask) -> Tensor:
        """Return dropout(softmax(q·kᵀ/√D, causal))·v, (N, H, D), of `qkv` (N, 3, H, D).

        Args:
            starts: (B + 1,) int64; sentence b is rows `starts[b]:starts[b + 1]`.
        """
        _check_starts(starts, len(qkv))
        rows, _, heads, width = qkv.shape
        y = qkv.new_empty(rows, heads, width)
        rest = (*self._shape(qkv, starts), *mask.arguments, torch.get_num_threads())
        self.library.attention(*pointers(qkv, starts, y), *rest)
        return y

    def attention_backward(self, qkv: Tensor, starts: Tensor, grad: Tensor, mask: DropoutMask) -> Tensor:
        """Return the gradient of `qkv`, given that of `attention`'s result, (N, H, D)."""
        _check_starts(starts, len(qkv))
        grad_qkv = torch.empty_like(qkv)
        rest = (*self._shape(qkv, starts), *mask.arguments, torch.get_num_threads())
        self.library.attention_backward(*pointers(qkv, starts, grad, grad_qkv), *rest)
        return grad_qkv

    @staticmethod
    def _shape(qkv: Tensor, starts: Tensor) -> tuple[int, int, int, float]:
        _, _, heads, width = qkv.shape
        return len(starts) - 1, heads, width, width**-0.5

    # -- compiling and loading

    @cached_property
    def library(self) -> ctypes.CDLL:
        """The loaded library.

        Raises:
            BuildError: if it cannot be compiled, written or loaded.
        """
        try:
            library = self._load()
            if library is None:
                self._build()
                library = ctypes.CDLL(str(self.path))
            for name, arguments in SIGNATURES.items():
                function = getattr(library, name)
                function.argtypes, function.restype = arguments, None
        except (OSError, AttributeError) as error:
            raise BuildError(str(error)) from error
        return library

    def _load(self) -> ctypes.CDLL | None:
        if not self.path.exists():
            return None
        if os.name == "posix" and self.path.stat().st_uid not in (0, os.geteuid()):
            raise BuildError(f"{self.path} belongs to another user")
        try:
            return ctypes.CDLL(str(self.path))
        except OSError:  # damaged, or compiled on another system
            return None

    @cached_property
    def path(self) -> Path:
        """Path of the library; its name hashes source, flags, compiler and processor."""
        compiler = self.compiler.stat()
        made_of = [
            *(path.read_text(encoding="utf-8") for path in (HEADER, *SOURCES)),
            *self._flags(),
            *(str(self.compiler), str(compiler.st_size), str(compiler.st_mtime_ns)),
            *(platform.machine(), _processor()),
        ]
        digest = hashlib.sha256("\0".join(made_of).encode()).hexdigest()
        return self.folder / f"kernels-{digest[:32]}.so"

    def _flags(self) -> list[str]:
        x86 = platform.machine() in ("x86_64", "AMD64")
        tuned = ["-march=native", "-mprefer-vector-width=512"] if x86 else ["-mcpu=native"]
        threads = ["-fopenmp"] if platform.system() == "Linux" else []  # torch has loaded the OpenMP runtime
        return [*FLAGS, *tuned, *threads, *(["-DBF16"] if self.dtype == torch.bfloat16 else [])]

    def _build(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        with replacing(self.path) as temporary:
            line = [str(self.compiler), *self._flags(), *map(str, SOURCES), "-o", str(temporary), "-lm"]
            try:
                made = subprocess.run(  # noqa: S603 - the user's own compiler, on our own source
                    line, capture_output=True, text=True, errors="replace", timeout=BUILD_SECONDS, check=False
                )
            except subprocess.TimeoutExpired:
                raise BuildError(f"{self.compiler} took more than {BUILD_SECONDS:.0f} s") from None
            if made.returncode or not temporary.exists() or not temporary.stat().st_size:
                lines = made.stderr.strip().splitlines() or ["no message"]
                raise BuildError(f"{self.compiler} failed: {lines[0]}")


ACTIVE: ContextVar[Kernels | None] = ContextVar("ACTIVE", default=None)
"""Kernels of the current context, set by `colakit.runtime.device.Compute.autocast`."""


def kernels_for(device: torch.device, dtype: torch.dtype | None = None) -> Kernels | None:
    """Return the active kernels for this device and dtype (default: any), None to use torch.

    Training on a CPU, the server and int8 use them; other predictions do not depend on a compiler.
    """
    if device.type != "cpu" or torch.compiler.is_compiling():
        return None
    kernels = ACTIVE.get()
    if kernels is None or dtype not in (kernels.dtype, None):
        return None
    return kernels if torch.is_grad_enabled() or kernels.inference else None


def find_compiler() -> Path | None:
    """Return the C compiler of the environment variable `CC`, else cc, gcc or clang; None if not found."""
    names = filter(None, (os.environ.get("CC"), "cc", "gcc", "clang"))
    path = next(filter(None, map(shutil.which, names)), None)
    return Path(path) if path else None


def _processor() -> str:
    """Return the processor's instruction sets; machines of several kinds may share a cache folder."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(errors="replace").splitlines() if cpuinfo.exists() else []
    flags = [line for line in lines if line.startswith(("flags", "Features"))]
    return flags[0] if flags else f"{platform.processor()} {torch.cpu.get_capabilities()}"


def _check_starts(starts: Tensor, rows: int) -> None:
    """Raise `ValueError` unless `starts` (B + 1,) splits the rows into sentences of at most `MAX_TOKENS`."""
    bounds = starts.tolist()
    lengths = [end - start for start, end in pairwise(bounds)]
    fits = all(0 <= length <= MAX_TOKENS for length in lengths)
    if starts.dtype != torch.int64 or not fits or bounds[0] != 0 or bounds[-1] != rows:
        raise ValueError(f"starts (={bounds}) must split {rows} rows into at most {MAX_TOKENS} each")


def _check_targets(targets: Tensor, vocabulary: int) -> None:
    """Raise `ValueError` unless `targets` are token ids."""
    if targets.dtype != torch.int64 or not bool(((targets >= 0) & (targets < vocabulary)).all()):
        raise ValueError(f"targets must be int64 from 0 to {vocabulary - 1}")


def pointers(*tensors: Tensor | None) -> list[int | None]:
    """Return the data pointers of contiguous CPU tensors; None is C's null pointer."""
    for tensor in tensors:
        assert tensor is None or (tensor.is_contiguous() and tensor.device.type == "cpu")
    return [None if tensor is None else tensor.data_ptr() for tensor in tensors]
