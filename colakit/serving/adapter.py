"""The part of a fine-tuned classifier that differs from its base.

Shapes: D_in and D_out of a linear layer, D width, R rank, C classes, N rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from colakit.errors import ColakitError
from colakit.models.gpt.model import GPTClassifier
from colakit.models.lora import NORMS, LoRALinear, block_of, lora_layers

WHOLE_MODEL = "Merge it into its base with PEFT (merge_and_unload) and serve the folder of the whole model."


@dataclass(frozen=True)
class LinearChange:
    """Change of a frozen linear layer y = W x + b to scale·y + shift + up·down·x.

    LoRA and PiSSA have neither scale nor shift. DoRA's scale is magnitude / ‖W + ΔW‖ of each output row. A
    trained bias is a shift.

    Attributes:
        down: A, (R, D_in); None if only the bias is trained.
        up: B with its scaling, transposed, (R, D_out).
        scale, shift: (D_out,).
    """

    down: Tensor | None
    up: Tensor | None
    scale: Tensor | None
    shift: Tensor | None

    def rescale(self, y: Tensor) -> None:
        """Apply scale and shift to the base's output (N, D_out), in place."""
        if self.scale is not None:
            y.mul_(self.scale)
        if self.shift is not None:
            y.add_(self.shift)


@dataclass(frozen=True)
class Adapter:
    """A classifier without its base.

    Attributes:
        linears: module name -> change.
        norms: module name -> weight and bias (None for RMSNorm), each (D,) fp32.
        head: (C, D) fp32.
        first_block: lowest block that differs from the base's; the number of blocks if none does.
    """

    linears: Mapping[str, LinearChange]
    norms: Mapping[str, tuple[Tensor, Tensor | None]]
    head: Tensor
    first_block: int

    @property
    def num_bytes(self) -> int:
        """Memory of the tensors."""
        parts = [self.head, *(part for pair in self.norms.values() for part in pair)]
        for change in self.linears.values():
            parts += [change.down, change.up, change.scale, change.shift]
        return sum(part.numel() * part.element_size() for part in parts if part is not None)


def extract_adapter(
    model: GPTClassifier, base: Mapping[str, Tensor], dtype: torch.dtype, where: str
) -> Adapter:
    """Return what differs between a classifier and its base.

    Args:
        model: its untrained parameters must be the tensors of `base` themselves.
        base: parameter name -> tensor.
        dtype: of the products.

    Raises:
        ColakitError: if the adapter trains a matrix or an embedding in full.
    """
    modules = dict(model.named_modules())
    layers = dict(lora_layers(model))
    linears = {name: _low_rank_change(name, layer, base, dtype) for name, layer in layers.items()}
    norms: dict[str, tuple[Tensor, Tensor | None]] = {}
    for parameter, tensor in model.named_parameters():
        name, _, leaf = parameter.rpartition(".")
        original = base.get(parameter)
        is_base = original is not None and tensor.data_ptr() == original.data_ptr()
        if is_base or name == "score" or name.removesuffix(".base") in layers:
            continue
        if isinstance(modules[name], NORMS):
            bias = getattr(modules[name], "bias", None)
            norms[name] = _copy(modules[name].weight), None if bias is None else _copy(bias)
        elif leaf == "bias" and original is not None:
            linears[name] = LinearChange(None, None, None, _copy(tensor - original, dtype))
        else:
            raise ColakitError(
                f"{where}: trains {parameter} in full; on a shared base, only changes of low rank are served",
                hint=WHOLE_MODEL,
            )
    blocks = [block_of(f"{name}.") for name in (*linears, *norms)]
    first = min((block for block in blocks if block is not None), default=len(model.body.blocks))
    return Adapter(linears, norms, _copy(model.score.weight), first)


def _low_rank_change(
    name: str, layer: LoRALinear, base: Mapping[str, Tensor], dtype: torch.dtype
) -> LinearChange:
    down, up = layer.lora_a.data, layer.lora_b.data * layer.scaling
    if hasattr(layer, "start_a"):  # PiSSA trains the change B·A - B₀·A₀ of W
        down = torch.cat([down, layer.get_buffer("start_a")])
        up = torch.cat([up, -layer.get_buffer("start_b") * layer.scaling], dim=1)
    bias, original = layer.base.bias, base.get(f"{name}.bias")
    is_trained = bias is not None and original is not None and bias.data_ptr() != original.data_ptr()
    scale = None if layer.magnitude is None else layer.magnitude / layer.row_norms()
    shift = None
    if bias is not None and original is not None and (is_trained or scale is not None):
        shift = bias - (original if scale is None else scale * original)
    if scale is not None:
        up = scale[:, None] * up
    return LinearChange(
        _copy(down, dtype),
        _copy(up.t(), dtype),
        None if scale is None else _copy(scale, dtype),
        None if shift is None else _copy(shift, dtype),
    )


def _copy(tensor: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    return tensor.detach().to(dtype, copy=True).contiguous()
