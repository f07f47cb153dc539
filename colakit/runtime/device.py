"""Device, precision, CPU kernels and torch.compile."""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from colakit.errors import ColakitError, first_line
from colakit.kernels.int8 import Int8Linear
from colakit.kernels.matmul import Linear
from colakit.kernels.native import ACTIVE, BuildError, Kernels, find_compiler
from colakit.models.gpt.model import GPTClassifier
from colakit.models.lora import lora_layers
from colakit.runtime.cpu import keep_freed_memory

MEASUREMENTS = 20  # of `int8_speedup`; the fastest counts


@dataclass(frozen=True)
class Compute:
    """A device with a precision.

    Attributes:
        device: of all tensors.
        dtype: of frozen weights and of matrix products; trainable parameters are fp32.
        reason: why this device and dtype were chosen, for logs.
        int8: multiply by a GPT's frozen linear layers in int8; `dtype` is that of everything else.
        kernels: C kernels for the CPU; None uses torch only.
        graphs: record training steps as CUDA graphs.
    """

    device: torch.device
    dtype: torch.dtype
    reason: str
    int8: bool = False
    kernels: Kernels | None = None
    graphs: bool = False

    @property
    def precision(self) -> str:
        """`float32`, `bfloat16`, or one of these with int8."""
        return f"{'int8, ' if self.int8 else ''}{str(self.dtype).removeprefix('torch.')}"

    @property
    def arithmetic(self) -> str:
        """Key of the floating-point behaviour; only runs with equal keys can give equal bytes."""
        int8 = ", int8" if self.int8 else ""
        fast = f"{', kernels' if self.kernels else ''}{', graphs' if self.graphs else ''}"
        return f"{self.device.type}, {self.dtype}{int8}{fast}"

    @contextlib.contextmanager
    def autocast(self) -> Iterator[None]:
        """Run forward passes in `dtype` and with `kernels` inside the block."""
        token = ACTIVE.set(self.kernels)
        full = self.dtype == torch.float32
        try:
            with contextlib.nullcontext() if full else torch.autocast(self.device.type, dtype=self.dtype):
                yield
        finally:
            ACTIVE.reset(token)

    def with_kernels(self, wanted: str, folder: Path, *, inference: bool = False) -> Compute:
        """Return this compute with the C kernels compiled.

        Args:
            wanted: `always`, `never`, or `auto` (CPU under Linux; elsewhere kernels use one thread).
            folder: cache of compiled kernels.
            inference: use them without gradients, too.

        Raises:
            ColakitError: if `wanted` is `always` and they cannot be compiled.
        """
        on_cpu = self.device.type == "cpu"
        if self.kernels is not None:
            return self
        if wanted == "never" or (wanted == "auto" and not (on_cpu and platform.system() == "Linux")):
            return self
        compiler = find_compiler() if on_cpu else None
        if compiler is None:
            why = "no C compiler found" if on_cpu else f"the device is {self.device.type}"
        else:
            kernels = Kernels(self.dtype, compiler, folder, inference=inference or self.int8)
            try:
                kernels.library  # noqa: B018 - compiles it
                return replace(self, reason=f"{self.reason}; kernels by {compiler.name}", kernels=kernels)
            except BuildError as error:
                why = first_line(error)
        if wanted == "always":
            raise ColakitError(
                f"cpu_kernels: always, but: {why}", hint="Install a C compiler, or set cpu_kernels to auto."
            )
        return replace(self, reason=f"{self.reason}; without kernels: {why}")

    def with_graphs(self, wanted: str) -> Compute:
        """Return this compute with CUDA graphs if it is a GPU and `wanted` is `auto` (not `never`)."""
        if wanted == "never" or self.device.type != "cuda":
            return self
        return replace(self, reason=f"{self.reason}; steps as CUDA graphs", graphs=True)

    def plain(self) -> Compute:
        """Return this compute without CPU kernels and CUDA graphs."""
        if self.kernels is None and not self.graphs:
            return self
        return replace(self, kernels=None, graphs=False, reason=f"{self.reason}; both off in this run")

    def place(self, model: nn.Module) -> nn.Module:
        """Move `model` to the device: a GPT's frozen matrices in `dtype` or int8, other parameters in fp32.

        The embeddings of a classifier without adapters stay in fp32: they were trained and evaluated in it.

        Raises:
            ColakitError: if all of a GPT's linear layers train, and the precision is int8.
        """
        model.to(self.device).float()
        body, adapted = getattr(model, "body", None), list(lora_layers(model))
        keeps_embeddings = isinstance(model, GPTClassifier) and not adapted
        kinds = nn.Linear if keeps_embeddings else (nn.Linear, nn.Embedding)
        for module in body.modules() if isinstance(body, nn.Module) else ():
            if isinstance(module, kinds) and not module.weight.requires_grad:
                module.weight.data = module.weight.data.to(self.dtype)
        if self.int8 and isinstance(body, nn.Module):
            linears = [(name, part) for name, part in body.named_modules() if isinstance(part, nn.Linear)]
            frozen = [(name, part) for name, part in linears if not part.weight.requires_grad]
            if linears and not frozen:
                raise ColakitError(
                    "--precision int8: is for frozen weights, and all linear layers train",
                    hint="Use --precision bf16, or finetune --method lora.",
                )
            for name, linear in frozen:
                parent, _, leaf = name.rpartition(".")
                setattr(body.get_submodule(parent), leaf, Int8Linear(linear))
        for _, layer in adapted:
            layer.reset_magnitude()
        return model

    def __str__(self) -> str:
        return f"{self.device}, {self.precision} ({self.reason})"


def resolve_compute(device: str, precision: str, *, local_rank: int | None = None) -> Compute:
    """Choose device and precision.

    Args:
        device: `auto`, `cpu`, `cuda`, `cuda:N` or `mps`.
        precision: `auto`, `fp32`, `bf16` or `int8`; `auto` is bf16 if it is faster (`is_bf16_faster`), and so
            is everything but the frozen linear layers with `int8`.
        local_rank: LOCAL_RANK under torchrun; selects the GPU.

    Raises:
        ColakitError: if a named device is not available.
    """
    chosen, why_device = _choose_device(device, local_rank)
    has_bf16, why_bf16 = is_bf16_faster(chosen)
    if precision in ("auto", "int8"):
        dtype = torch.bfloat16 if has_bf16 else torch.float32
        if precision == "auto":
            return Compute(chosen, dtype, f"{why_device}; {why_bf16}")
        if chosen.type != "cpu":
            raise ColakitError(
                f"--precision int8: is for a CPU, the device is {chosen}", hint="Use --precision bf16."
            )
        return Compute(chosen, dtype, f"{why_device}; {why_bf16}; {int8_units()}", int8=True)
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
    note = "" if has_bf16 or dtype == torch.float32 else f"; slow: {why_bf16}"
    return Compute(chosen, dtype, f"{why_device}; {precision} requested{note}")


def _choose_device(device: str, local_rank: int | None) -> tuple[torch.device, str]:
    if device == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda", local_rank or 0), torch.cuda.get_device_name(local_rank or 0)
        if torch.backends.mps.is_available():
            return torch.device("mps"), "Apple GPU"
        return torch.device("cpu"), "no usable GPU"
    chosen = torch.device(device)
    if chosen.type == "cuda":
        index = chosen.index if chosen.index is not None else (local_rank or 0)
        if not torch.cuda.is_available() or index >= torch.cuda.device_count():
            count = torch.cuda.device_count() if torch.cuda.is_available() else 0
            raise ColakitError(
                f"--device {device}: not available ({count} CUDA devices)", hint="Use --device auto."
            )
        return torch.device("cuda", index), torch.cuda.get_device_name(index)
    if chosen.type == "mps" and not torch.backends.mps.is_available():
        raise ColakitError("--device mps: no Apple GPU available", hint="Use --device auto.")
    return chosen, f"{device} requested"


def is_bf16_faster(device: torch.device) -> tuple[bool, str]:
    """Return whether `device` multiplies bf16 matrices faster than fp32 ones, and the reason.

    Intel CPUs without AMX (or with AMX disabled, as in some virtual machines) are nearly 2 times slower with
    AVX512-BF16 than with fp32 (docs/performance.md).
    """
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        return major >= 8, f"compute capability {major}.{minor}"
    if device.type == "cpu":
        flags = torch.cpu.get_capabilities()
        if flags.get("amx_bf16"):
            return True, "CPU with AMX"
        if flags.get("avx512_bf16"):
            slow = "intel" in str(flags.get("cpu_name")).lower()
            return not slow, f"{'Intel ' if slow else ''}CPU with AVX512-BF16{', no AMX' if slow else ''}"
        return False, "CPU without bf16 matrix units"
    return False, f"{device.type} trains in fp32"


def int8_units() -> str:
    """Return which units of this CPU multiply int8 matrices, or that there are none, for logs."""
    flags = torch.cpu.get_capabilities()
    units = [name for name in ("amx_int8", "avx512_vnni", "avx_vnni", "i8mm") if flags.get(name)]
    return f"int8 units: {units[0]}" if units else "slow: no int8 units"


def int8_speedup(compute: Compute) -> float:
    """Measure how much faster int8 is than `compute` in a frozen layer, forwards and backwards, on a CPU.

    The layer is GPT-2 small's largest. Returns seconds of `compute` per second of int8.
    """
    dense = Linear(768, 3072, dtype=compute.dtype).requires_grad_(False)
    ways = [dense, Int8Linear(dense)]
    rows = torch.zeros(480, 768, dtype=compute.dtype, requires_grad=True)
    seconds: list[list[float]] = [[], []]
    with compute.autocast():
        for _ in range(MEASUREMENTS):
            for way, times in zip(ways, seconds, strict=True):
                began = time.perf_counter()
                way(rows).sum().backward()
                times.append(time.perf_counter() - began)
    exact, quantized = map(min, seconds)
    return exact / quantized


def prepare_cpu() -> None:
    """Speed up the CPU: keep freed memory, and flush denormal numbers to 0.

    Matrix products with denormals, as in the tails of GELU, are several times slower on Intel CPUs
    (docs/performance.md). Threads inherit the setting, so call this before any computation.
    """
    keep_freed_memory()
    torch.set_flush_denormal(True)


def compiles(device: torch.device, wanted: str) -> tuple[bool, str]:
    """Return whether to use `torch.compile`, and the reason.

    Args:
        wanted: `always`, `never`, or `auto` (if a compiler is installed).

    Raises:
        ColakitError: if `wanted` is `always` and there is no compiler.
    """
    if wanted == "never":
        return False, "not compiled, as requested"
    compiler = next(filter(None, map(shutil.which, (os.environ.get("CXX", "c++"), "g++", "clang++"))), None)
    available = compiler is not None if device.type == "cpu" else device.type == "cuda"
    if not available and wanted == "always":
        raise ColakitError(
            "compile: always, but no C++ compiler found", hint="Install g++, or set compile to auto."
        )
    if not available:
        return False, "not compiled: no C++ compiler found"
    return True, f"compiled with {Path(compiler).name if compiler else 'triton'}"


def peak_memory_mib(device: torch.device) -> int:
    """Return the peak memory of this process in MiB: on a GPU torch's, else the resident set; 0 if unknown.

    The resident set is Linux' `VmHWM`. `ru_maxrss` would be that of a parent process, if larger.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) // 2**20
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) // 2**10 for line in lines if line.startswith("VmHWM:")), 0)
