"""What a training step on the CPU does besides its large matrix products, in C.

`kernels.c` is compiled by the machine's own compiler when a run first wants it, in about a second, and kept
in the cache. Each kernel has a plain counterpart in `colakit.models`, for machines without a compiler.

Shapes: B batch, N tokens of all its sentences, T tokens of one, H heads, D width of a head.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor

from colakit.utils.files import replacing

SOURCE = Path(__file__).with_name("kernels.c")
FLAGS = [  # none that takes NaN for a number, or lets denormals of the whole process be zero
    *("-std=c11", "-O3", "-ffp-contract=fast", "-shared", "-fPIC"),
    *("-fno-math-errno", "-fno-trapping-math", "-fassociative-math", "-fno-signed-zeros"),
]
MOST_TOKENS, MOST_HEAD_WIDTH = 64, 128  # of `attention`, as in kernels.c
LANES = 16  # a head's width must be a multiple of four of them
MOST_ELEMENTS = 2**32  # that dropout can number
BUILD_SECONDS = 120.0
POINTER, INT64, INT, FLOAT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int, ctypes.c_float
DROPOUT = (ctypes.c_uint64, ctypes.c_uint32, FLOAT)
SIGNATURES = {
    "gelu": (POINTER, POINTER, POINTER, INT64, INT),
    "cross_entropy": (*[POINTER] * 4, *[INT64] * 2, INT),
    "cross_entropy_backward": (*[POINTER] * 4, *[INT64] * 2, INT),
    "add_dropped": (POINTER, POINTER, POINTER, INT64, *DROPOUT, INT),
    "add_dropped_backward": (POINTER, POINTER, INT64, *DROPOUT, INT),
    "attention": (*[POINTER] * 3, *[INT64] * 3, FLOAT, *DROPOUT, INT),
    "attention_backward": (*[POINTER] * 4, *[INT64] * 3, FLOAT, *DROPOUT, INT),
}


class BuildError(Exception):
    """The compiler did not make a library of the kernels, or it cannot be loaded."""


@dataclass(frozen=True)
class Mask:
    """Which elements dropout drops: a function of a seed and an element's number, so nothing is kept.

    Attributes:
        probability: in [0, 1), rounded to a multiple of 2⁻³².
        seed: 64 bits.
    """

    probability: float
    seed: int

    @classmethod
    def drawn(cls, probability: float) -> Mask:
        """Return one with a seed from torch's generator."""
        seed = torch.empty((), dtype=torch.int64).random_(-(2**63), None).item() if probability else 0
        return cls(probability, int(seed))

    @property
    def arguments(self) -> tuple[int, int, float]:
        """What the kernels take: seed, probability·2³², and what survivors are multiplied by."""
        level = min(round(self.probability * 2**32), 2**32 - 1)
        return self.seed, level, 2**32 / (2**32 - level)


class Kernels:
    """The kernels for tensors of one type; they are compiled, or found in `folder`, when first used.

    Args:
        dtype: fp32 or bf16.
        compiler: of C, GCC or clang.
        folder: where the library is kept.
    """

    def __init__(self, dtype: torch.dtype, compiler: Path, folder: Path) -> None:
        self.dtype, self.compiler, self.folder = dtype, compiler, folder

    # -- what they compute; every tensor is contiguous, and of `dtype` where nothing else is said

    def gelu(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return GPT-2's GELU of `x`, and its slope there."""
        y, slope = torch.empty_like(x), torch.empty_like(x)
        self.library.gelu(*pointers(x, y, slope), x.numel(), torch.get_num_threads())
        return y, slope

    def cross_entropy(self, logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Return the rows' nats (N,), and log Σ exp (N,) of their logits (N, V); both fp32.

        Args:
            targets: (N,) int64.
        """
        _check_targets(targets, logits.shape[1])
        nats, log_sums = (torch.empty(len(logits)) for _ in range(2))
        counts = (*logits.shape, torch.get_num_threads())
        self.library.cross_entropy(*pointers(logits, targets, nats, log_sums), *counts)
        return nats, log_sums

    def cross_entropy_backward(
        self, logits: Tensor, targets: Tensor, log_sums: Tensor, slopes: Tensor | None
    ) -> Tensor:
        """Return the gradient by `logits` of Σ slopes·nats, in their place.

        Args:
            slopes: (N,) fp32; None is one for each.
        """
        slopes = torch.ones_like(log_sums) if slopes is None else slopes
        _check_targets(targets, logits.shape[1])
        counts = (*logits.shape, torch.get_num_threads())
        self.library.cross_entropy_backward(*pointers(logits, targets, log_sums, slopes), *counts)
        return logits

    def add_dropped(self, x: Tensor, branch: Tensor, mask: Mask) -> Tensor:
        """Return x + dropped(branch), fp32 as `x`."""
        y = torch.empty_like(x)
        counts = (x.numel(), *mask.arguments, torch.get_num_threads())
        self.library.add_dropped(*pointers(x, branch, y), *counts)
        return y

    def add_dropped_backward(self, grad: Tensor, mask: Mask) -> Tensor:
        """Return the gradient by `branch` of `add_dropped`, given the one by its result, fp32."""
        grad_branch = torch.empty_like(grad, dtype=self.dtype)
        counts = (grad.numel(), *mask.arguments, torch.get_num_threads())
        self.library.add_dropped_backward(*pointers(grad, grad_branch), *counts)
        return grad_branch

    @staticmethod
    def attends(batch: int, longest: int, heads: int, width: int) -> bool:
        """Tell whether `attention` takes B sentences of so many tokens at most, with H heads of width D."""
        fits = longest <= MOST_TOKENS and width <= MOST_HEAD_WIDTH and width % (4 * LANES) == 0
        return fits and batch * heads * MOST_TOKENS**2 < MOST_ELEMENTS

    def attention(self, qkv: Tensor, starts: Tensor, mask: Mask) -> Tensor:
        """Return dropped(softmax(q·kᵀ/√D, causal))·v, (N, H, D), of `qkv` (N, 3, H, D).

        Args:
            starts: (B + 1,) int64; sentence b has the rows from `starts[b]` up to `starts[b + 1]`.
        """
        _check_starts(starts, len(qkv))
        rows, _, heads, width = qkv.shape
        y = qkv.new_empty(rows, heads, width)
        rest = (*self._shape(qkv, starts), *mask.arguments, torch.get_num_threads())
        self.library.attention(*pointers(qkv, starts, y), *rest)
        return y

    def attention_backward(self, qkv: Tensor, starts: Tensor, grad: Tensor, mask: Mask) -> Tensor:
        """Return the gradient by `qkv` of `attention`, given the one (N, H, D) by its result."""
        _check_starts(starts, len(qkv))
        grad_qkv = torch.empty_like(qkv)
        rest = (*self._shape(qkv, starts), *mask.arguments, torch.get_num_threads())
        self.library.attention_backward(*pointers(qkv, starts, grad, grad_qkv), *rest)
        return grad_qkv

    @staticmethod
    def _shape(qkv: Tensor, starts: Tensor) -> tuple[int, int, int, float]:
        _, _, heads, width = qkv.shape
        return len(starts) - 1, heads, width, width**-0.5

    # -- how they come to be

    @cached_property
    def library(self) -> ctypes.CDLL:
        """The loaded library.

        Raises:
            BuildError: if it cannot be compiled, kept or loaded.
        """
        try:
            library = self._kept()
            if library is None:
                self._build()
                library = ctypes.CDLL(str(self.path))
            for name, arguments in SIGNATURES.items():
                function = getattr(library, name)
                function.argtypes, function.restype = arguments, None
        except (OSError, AttributeError) as error:
            raise BuildError(str(error)) from error
        return library

    def _kept(self) -> ctypes.CDLL | None:
        if not self.path.exists():
            return None
        if os.name == "posix" and self.path.stat().st_uid not in (0, os.geteuid()):
            raise BuildError(f"{self.path} is another user's")
        try:
            return ctypes.CDLL(str(self.path))
        except OSError:  # damaged, or made on another system
            return None

    @cached_property
    def path(self) -> Path:
        """File of the library; its name tells source, flags, compiler and processor."""
        compiler = self.compiler.stat()
        made_of = [
            *(SOURCE.read_text(encoding="utf-8"), *self._flags()),
            *(str(self.compiler), str(compiler.st_size), str(compiler.st_mtime_ns)),
            *(platform.machine(), _processor()),
        ]
        digest = hashlib.sha256("\0".join(made_of).encode()).hexdigest()
        return self.folder / f"kernels-{digest[:32]}.so"

    def _flags(self) -> list[str]:
        x86 = platform.machine() in ("x86_64", "AMD64")
        tuned = ["-march=native", "-mprefer-vector-width=512"] if x86 else ["-mcpu=native"]
        threads = ["-fopenmp"] if platform.system() == "Linux" else []  # torch's own runtime is found by name
        return [*FLAGS, *tuned, *threads, *(["-DBF16"] if self.dtype == torch.bfloat16 else [])]

    def _build(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        with replacing(self.path) as temporary:
            line = [str(self.compiler), *self._flags(), str(SOURCE), "-o", str(temporary), "-lm"]
            try:
                made = subprocess.run(  # noqa: S603 - the user's own compiler, on our own source
                    line, capture_output=True, text=True, errors="replace", timeout=BUILD_SECONDS, check=False
                )
            except subprocess.TimeoutExpired:
                raise BuildError(f"{self.compiler} took more than {BUILD_SECONDS:.0f} s") from None
            if made.returncode or not temporary.exists():
                said = made.stderr.strip().splitlines() or ["it said nothing"]
                raise BuildError(f"{self.compiler} failed: {said[0]}")


ACTIVE: ContextVar[Kernels | None] = ContextVar("ACTIVE", default=None)
"""The kernels that operations may use now; `colakit.runtime.device.Compute.autocast` sets them."""


def kernels_for(device: torch.device, dtype: torch.dtype) -> Kernels | None:
    """Return the kernels to compute with, None where the plain operations are to be used.

    They are for training on a CPU alone, so that a model answers the same with and without a compiler.
    """
    if device.type != "cpu" or torch.compiler.is_compiling() or not torch.is_grad_enabled():
        return None
    kernels = ACTIVE.get()
    return kernels if kernels is not None and kernels.dtype == dtype else None


def find_compiler() -> Path | None:
    """Return the compiler of C that `CC` names, or the first known one that is there."""
    names = filter(None, (os.environ.get("CC"), "cc", "gcc", "clang"))
    found = next(filter(None, map(shutil.which, names)), None)
    return Path(found) if found else None


def _processor() -> str:
    """Return what tells processors apart that know other instructions: several may share a cache."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(errors="replace").splitlines() if cpuinfo.exists() else []
    flags = [line for line in lines if line.startswith(("flags", "Features"))]
    return flags[0] if flags else f"{platform.processor()} {torch.cpu.get_capabilities()}"


def _check_starts(starts: Tensor, rows: int) -> None:
    """Raise `ValueError` unless `starts` (B + 1,) parts the rows into sentences that C has room for."""
    places = starts.tolist()
    lengths = [end - start for start, end in pairwise(places)]
    fits = all(0 <= length <= MOST_TOKENS for length in lengths)
    if starts.dtype != torch.int64 or not fits or places[0] != 0 or places[-1] != rows:
        raise ValueError(f"starts (={places}) must part {rows} rows into at most {MOST_TOKENS} each")


def _check_targets(targets: Tensor, vocabulary: int) -> None:
    """Raise `ValueError` unless `targets` are numbers of tokens."""
    if targets.dtype != torch.int64 or not bool(((targets >= 0) & (targets < vocabulary)).all()):
        raise ValueError(f"targets must be int64 from 0 to {vocabulary - 1}")


def pointers(*tensors: Tensor) -> list[int]:
    """Return where the elements of contiguous CPU tensors lie."""
    for tensor in tensors:
        assert tensor.is_contiguous()
        assert tensor.device.type == "cpu"
    return [tensor.data_ptr() for tensor in tensors]
