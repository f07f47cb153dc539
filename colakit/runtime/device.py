"""Where to compute and in which precision, and why."""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from colakit.errors import ColakitError, first_line
from colakit.kernels.native import ACTIVE, BuildError, Kernels, find_compiler
from colakit.runtime.cpu import keep_freed_memory


@dataclass(frozen=True)
class Compute:
    """A device with a precision.

    Attributes:
        device: where tensors live.
        dtype: what frozen weights are stored in and matrices multiplied in; trainable parameters are fp32.
        reason: why, for people.
        kernels: C code for training on a CPU, compiled when first used; None computes everything with torch.
        graphs: whether a training step on a GPU is recorded as a CUDA graph, where it can be.
    """

    device: torch.device
    dtype: torch.dtype
    reason: str
    kernels: Kernels | None = None
    graphs: bool = False

    @property
    def arithmetic(self) -> str:
        """What sums depend on, as plain data: two runs that agree in it can give the same bytes."""
        fast = f"{', kernels' if self.kernels else ''}{', graphs' if self.graphs else ''}"
        return f"{self.device.type}, {self.dtype}{fast}"

    @contextlib.contextmanager
    def autocast(self) -> Iterator[None]:
        """Enter the session in which forward passes run."""
        token = ACTIVE.set(self.kernels)
        full = self.dtype == torch.float32
        try:
            with contextlib.nullcontext() if full else torch.autocast(self.device.type, dtype=self.dtype):
                yield
        finally:
            ACTIVE.reset(token)

    def with_kernels(self, wanted: str, folder: Path) -> Compute:
        """Return this compute for training: with kernels, compiled, where they are wanted and can be had.

        Args:
            wanted: `always`, `never`, or `auto`, which is on a CPU with a C compiler under Linux: elsewhere
                they have one thread.
            folder: where compiled ones are kept.

        Raises:
            ColakitError: if they are always wanted and cannot be had.
        """
        usual = self.device.type == "cpu" and platform.system() == "Linux"
        if wanted == "never" or (wanted == "auto" and not usual):
            return self
        compiler = find_compiler() if self.device.type == "cpu" else None
        if compiler is None:
            why = (
                "no C compiler found"
                if self.device.type == "cpu"
                else f"{self.device.type} has no use for them"
            )
        else:
            kernels = Kernels(self.dtype, compiler, folder)
            try:
                kernels.library  # noqa: B018 - compiles it
                return replace(self, reason=f"{self.reason}; kernels by {compiler.name}", kernels=kernels)
            except BuildError as error:
                why = first_line(error)
        if wanted == "always":
            raise ColakitError(f"cpu_kernels: always, but: {why}", hint="Install a C compiler, or say auto.")
        return replace(self, reason=f"{self.reason}; without kernels: {why}")

    def with_graphs(self, wanted: str) -> Compute:
        """Return this compute for training in one process: with CUDA graphs on a GPU, where they are wanted.

        Args:
            wanted: `auto` or `never`.
        """
        if wanted == "never" or self.device.type != "cuda":
            return self
        return replace(self, reason=f"{self.reason}; steps as CUDA graphs", graphs=True)

    def plain(self) -> Compute:
        """Return this compute without CPU kernels and CUDA graphs."""
        return replace(self, kernels=None, graphs=False, reason=f"{self.reason}; both off in this run")

    def place(self, model: nn.Module) -> nn.Module:
        """Move `model` to the device; a GPT's frozen matrices are stored in `dtype`, everything else in fp32.

        Adapters, head and norms stay fp32 in training and afterwards, and so does a recurrent student.
        """
        model.to(self.device).float()
        body = getattr(model, "transformer", None)
        for module in body.modules() if isinstance(body, nn.Module) else ():
            if isinstance(module, nn.Linear | nn.Embedding) and not module.weight.requires_grad:
                module.weight.data = module.weight.data.to(self.dtype)
        return model

    def __str__(self) -> str:
        return f"{self.device}, {str(self.dtype).removeprefix('torch.')} ({self.reason})"


def resolve_compute(device: str, precision: str, *, local_rank: int | None = None) -> Compute:
    """Choose the device and precision.

    Args:
        device: `auto`, `cpu`, `cuda`, `cuda:N` or `mps`.
        precision: `auto`, `fp32` or `bf16`; `auto` is bf16 where the hardware multiplies it.
        local_rank: number of this process on its machine, under torchrun; it picks the GPU.

    Raises:
        ColakitError: if the device is named but not there.
    """
    chosen, why_device = _choose_device(device, local_rank)
    has_bf16, why_bf16 = is_bf16_faster(chosen)
    if precision == "auto":
        dtype = torch.bfloat16 if has_bf16 else torch.float32
        return Compute(chosen, dtype, f"{why_device}; {why_bf16}")
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
    note = "" if has_bf16 or dtype == torch.float32 else f"; slow: {why_bf16}"
    return Compute(chosen, dtype, f"{why_device}; {precision} was asked for{note}")


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
            found = torch.cuda.device_count() if torch.cuda.is_available() else 0
            raise ColakitError(
                f"--device {device}: not there ({found} CUDA devices found)", hint="Use --device auto."
            )
        return torch.device("cuda", index), torch.cuda.get_device_name(index)
    if chosen.type == "mps" and not torch.backends.mps.is_available():
        raise ColakitError("--device mps: no Apple GPU here", hint="Use --device auto.")
    return chosen, f"{device} was asked for"


def is_bf16_faster(device: torch.device) -> tuple[bool, str]:
    """Tell whether `device` multiplies bf16 matrices sooner than fp32 ones, and name what decides it.

    Intel's processors have AVX512-BF16 too, but take nearly twice as long with it as with fp32
    (docs/performance.md). Where their AMX is switched off, as in some virtual machines, fp32 is the sooner.
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


def prepare_cpu() -> None:
    """Let the CPU compute sooner: keep memory that is freed, and take denormal numbers for 0.

    Denormals lie below fp32's usual range, as the tails of GELU do; a product that meets them takes several
    times as long on Intel's cores (docs/performance.md). A thread does as the one that started it: call this
    before anything is computed.
    """
    keep_freed_memory()
    torch.set_flush_denormal(True)


def compiles(device: torch.device, wanted: str) -> tuple[bool, str]:
    """Tell whether `torch.compile` is to be used, and why.

    Args:
        wanted: `always`, `never`, or `auto`, which is where there is a compiler to build kernels with.

    Raises:
        ColakitError: if it is wanted and there is no compiler.
    """
    if wanted == "never":
        return False, "not compiled, as was asked for"
    compiler = next(filter(None, map(shutil.which, (os.environ.get("CXX", "c++"), "g++", "clang++"))), None)
    found = compiler is not None if device.type == "cpu" else device.type == "cuda"
    if not found and wanted == "always":
        raise ColakitError("compile: always, but there is no C++ compiler", hint="Install g++, or say auto.")
    if not found:
        return False, "not compiled: no C++ compiler found"
    return True, f"compiled with {Path(compiler).name if compiler else 'triton'}"
