"""Smaller weights in an ONNX model: int8 with dynamic activations, or 8 or 4 bits in blocks.

Embeddings are int8 with a scale for each row, in all. The head stays fp32: it is small, and its errors are
those of the logits.

Dynamic int8 gives the activations of a product one scale. Where some are outliers, the others lose their
digits (SmolLM2: 23 % of the answers flip). In blocks, 32 values share a scale; activations can stay fp32.

Shapes: V rows, D width, G rows of all gates, K columns.
"""

from __future__ import annotations

import contextlib
import logging
import re
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from colakit.export.graph import EXTRA
from colakit.utils.extras import import_extra

FILES = {"int8": "model_quantized.onnx", "int4": "model_q4.onnx"}  # names that transformers.js reads
VNNI = ("avx512_vnni", "avx_vnni", "avx10_vnni", "dot")  # 8-bit products that do not saturate
MIN_ROWS, MIN_WEIGHTS = 64, 2**12  # smaller embeddings and products stay fp32
BLOCK = 32  # weights that share a scale


@dataclass(frozen=True)
class Recipe:
    """How weights are stored and multiplied.

    Attributes:
        name: in reports.
        kind: `int8` or `int4`.
        accuracy: of the activations of products in blocks, as in ONNX Runtime's MatMulNBits: 4 is int8 with a
            scale for each block, 1 is fp32; None multiplies without blocks.
        eight_bits: pattern of the modules that have 8 bits in blocks; the others have 4.
    """

    name: str
    kind: str
    accuracy: int | None = None
    eight_bits: str = ""


DYNAMIC = Recipe("int8, dynamic", "int8")
BLOCKS = [
    Recipe("int8 in blocks", "int8", accuracy=4),
    Recipe("int8 weights only", "int8", accuracy=1),
]
INT4_BLOCKS = [
    Recipe("int4 in blocks", "int4", accuracy=4, eight_bits="(?!)"),
    Recipe("int4 and int8", "int4", accuracy=4, eight_bits=r"attn\.|\.(h|layers)\.0\."),
]


def recipes(kind: str, family: str | None) -> list[Recipe]:
    """Return what to try for `int8` or `int4`, the fastest first, until the answers stay.

    Args:
        family: of a GPT; None for a student, whose recurrent layers have no blocks.
    """
    if family is None:
        return [DYNAMIC]
    if kind == "int4":
        return INT4_BLOCKS
    return [DYNAMIC, *BLOCKS] if family == "gpt2" else BLOCKS


def quantize(model: Any, recipe: Recipe) -> Any:
    """Return a copy of an fp32 ONNX model with smaller weights."""
    small = type(model)()
    small.CopyFrom(model)
    _quantize_embeddings(small)
    with _quiet():
        if recipe.accuracy is not None:
            return _blocks(small, recipe)
        _quantize_recurrent(small)
        return _dynamic(small)


def _dynamic(model: Any) -> Any:
    onnx, library = import_extra("onnx", EXTRA), import_extra("onnxruntime.quantization", EXTRA)
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "fp32.onnx", Path(folder) / "int8.onnx"
        onnx.save(model, source)
        library.quantize_dynamic(
            source,
            target,
            op_types_to_quantize=["MatMul", "LSTM"],
            per_channel=True,
            reduce_range=not any(torch.cpu.get_capabilities().get(flag) for flag in VNNI),
            weight_type=library.QuantType.QInt8,
            nodes_to_exclude=_small_products(model),
            extra_options={"MatMulConstBOnly": True},
        )
        return onnx.load(target)


def _small_products(model: Any) -> list[str]:
    """Return the names of products with few weights: the head, and the scores of attention."""
    sizes = {tensor.name: int(np.prod(tensor.dims)) for tensor in model.graph.initializer}
    nodes = [node for node in model.graph.node if node.op_type in ("MatMul", "Gemm")]
    small = [node.name for node in nodes if sizes.get(node.input[1], MIN_WEIGHTS) < MIN_WEIGHTS]
    return [*small, *(f"{name}_MatMul" for name in small)]  # the library makes a MatMul of a Gemm


def _blocks(model: Any, recipe: Recipe) -> Any:
    names = [node.name for node in model.graph.node if re.search(recipe.eight_bits, node.name)]
    return _in_blocks(_in_blocks(model, 4, recipe.accuracy, names), 8, recipe.accuracy, [])


def _in_blocks(model: Any, bits: int, accuracy: int | None, excluded: list[str]) -> Any:
    library = import_extra("onnxruntime.quantization.matmul_nbits_quantizer", EXTRA)
    quantizer = library.MatMulNBitsQuantizer(
        model,
        bits=bits,
        block_size=BLOCK,
        accuracy_level=accuracy,
        nodes_to_exclude=[*excluded, *_small_products(model)],
    )
    quantizer.process()
    return quantizer.model.model


def _quantize_embeddings(model: Any) -> None:
    """Replace each lookup in an embedding (V, D) by one in int8 rows and one in their scales (V, 1)."""
    helper = import_extra("onnx", EXTRA).helper
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    for position, node in reversed(list(enumerate(model.graph.node))):
        table = constants.get(node.input[0]) if node.op_type == "Gather" else None
        if table is None or len(table.dims) != 2 or table.dims[0] < MIN_ROWS:
            continue
        name, index = table.name, node.input[1]
        _replace_constant(model, table, axis=1)
        names = [f"{name}_{part}" for part in ("picked", "float", "scales_picked")]
        new = [
            helper.make_node("Gather", [f"{name}_int8", index], [names[0]], names[0]),
            helper.make_node("Cast", [names[0]], [names[1]], names[1], to=1),  # FLOAT
            helper.make_node("Gather", [f"{name}_scale", index], [names[2]], names[2]),
            helper.make_node("Mul", names[1:], list(node.output), f"{name}_scaled"),
        ]
        del model.graph.node[position]
        for each in reversed(new):
            model.graph.node.insert(position, each)


def _quantize_recurrent(model: Any) -> None:
    """Store the weights (directions, G, K) of RNN and GRU in int8; the library knows LSTM only."""
    helper = import_extra("onnx", EXTRA).helper
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in list(model.graph.node):
        if node.op_type not in ("RNN", "GRU"):
            continue
        for slot in (1, 2):
            name = node.input[slot]
            _replace_constant(model, constants[name], axis=2)
            node.input[slot] = f"{name}_fp32"
            cast = helper.make_node("Cast", [f"{name}_int8"], [f"{name}_float"], f"{name}_float", to=1)
            scaled = helper.make_node(
                "Mul", [f"{name}_float", f"{name}_scale"], [f"{name}_fp32"], f"{name}_fp32"
            )
            model.graph.node.insert(0, scaled)
            model.graph.node.insert(0, cast)


def _replace_constant(model: Any, tensor: Any, axis: int) -> None:
    """Replace a constant by its int8 values and their scales along `axis`."""
    helper = import_extra("onnx", EXTRA).numpy_helper
    values, scales = _to_int8(helper.to_array(tensor), axis)
    for part, array in (("int8", values), ("scale", scales)):
        model.graph.initializer.append(helper.from_array(array, f"{tensor.name}_{part}"))
    model.graph.initializer.remove(tensor)


def _to_int8(weight: NDArray[np.float32], axis: int) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Return int8 values and fp32 scales; the largest magnitude along `axis` becomes 127."""
    scales = np.maximum(np.abs(weight).max(axis=axis, keepdims=True), 1e-12) / np.float32(127)
    return np.round(weight / scales).astype(np.int8), scales.astype(np.float32)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence the library's advice on preprocessing, and its lists of nodes."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
