"""The ONNX graph of a GPT-2 or Llama classifier, by torch's exporter over colakit's own class.

Shapes: B batch, T tokens, D width, C classes.
"""

from __future__ import annotations

import ast
import contextlib
import io
import logging
import warnings
from typing import Any

import torch
from torch import Tensor, nn

from colakit.export.graph import EXTRA, IR_VERSION, OPSET
from colakit.models.gpt.model import GPTClassifier
from colakit.utils.extras import import_extra


class _Padded(nn.Module):
    """A classifier whose head reads the last real token by one gather, without a loop over sentences.

    Args:
        bias: (C,), added to the logits; None adds nothing.
    """

    def __init__(self, model: GPTClassifier, bias: Tensor | None) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("bias", bias)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Return logits (B, C) of (B, T) tokens."""
        hidden = self.model.body(input_ids)  # (B, T, D)
        last = (attention_mask.sum(dim=1) - 1)[:, None, None].expand(-1, 1, hidden.shape[2])
        logits = self.model.score(hidden.gather(1, last)[:, 0])
        return logits if self.bias is None else logits + self.bias


def gpt_graph(model: GPTClassifier, bias: Tensor | None = None) -> Any:
    """Return the ONNX model of a classifier without adapters, fp32 and on the CPU.

    Raises:
        ColakitError: if onnx or onnxscript is not installed.
    """
    import_extra("onnx", EXTRA)
    import_extra("onnxscript", EXTRA)
    shape = dict.fromkeys((0, 1), torch.export.Dim.DYNAMIC)
    names = ["input_ids", "attention_mask"]
    example = torch.zeros(3, min(5, model.config.num_positions), dtype=torch.int64)
    with _quiet(), torch.no_grad():
        program = torch.onnx.export(
            _Padded(model, bias).eval(),
            (example, torch.ones_like(example)),
            input_names=names,
            output_names=["logits"],
            dynamic_shapes=dict.fromkeys(names, shape),
            opset_version=OPSET,
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    assert program is not None
    onnx_model = program.model_proto
    onnx_model.ir_version = IR_VERSION
    _name_dimensions(onnx_model)
    _name_products(onnx_model)
    return onnx_model


def _name_dimensions(model: Any) -> None:
    """Name the dimensions as the students' graphs do."""
    for value in (*model.graph.input, *model.graph.output):
        for dimension, name in zip(
            value.type.tensor_type.shape.dim, ("batch_size", "sequence_length"), strict=False
        ):
            if dimension.dim_param:
                dimension.dim_param = name


def _name_products(model: Any) -> None:
    """Name the products with weights after their modules, and drop the exporter's notes, which hold paths."""
    constants = {tensor.name for tensor in model.graph.initializer}
    for node in model.graph.node:
        scopes = {each.key: each.value for each in node.metadata_props}.get("pkg.torch.onnx.name_scopes")
        if scopes is not None and node.op_type in ("MatMul", "Gemm") and constants & set(node.input):
            node.name = ast.literal_eval(scopes)[-2]
    for each in (model, model.graph, *model.graph.node, *model.graph.value_info):
        del each.metadata_props[:]


@contextlib.contextmanager
def _quiet() -> Any:
    """Silence the exporter's progress, its notes on packages that are not needed, and its deprecations."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
