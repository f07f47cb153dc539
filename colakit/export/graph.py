"""A graph of ONNX, built node by node.

Shapes: B batch, T tokens, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from colakit.utils.extras import import_extra

OPSET = 18
IR_VERSION = 8  # the oldest that has opset 18, so that older runtimes read the file
EXTRA = "export"
MASKED = np.float32(-3.4e38)  # a score whose softmax is 0; -inf would give nan where all are masked


class Graph:
    """A classifier's graph: `input_ids` and `attention_mask` (B, T) int64 -> `logits` (B, C) fp32.

    A method that adds a node returns the name of its output.
    """

    def __init__(self) -> None:
        self.onnx = import_extra("onnx", EXTRA)
        self.nodes: list[Any] = []
        self.tensors: dict[str, Any] = {}

    def tensor(self, name: str, value: NDArray[Any]) -> str:
        """Add a constant tensor."""
        self.tensors[name] = self.onnx.numpy_helper.from_array(np.ascontiguousarray(value), name)
        return name

    def ints(self, *values: int) -> str:
        """Add a constant list of int64, such as axes or a shape."""
        return self.tensor("ints_" + "_".join(map(str, values)), np.array(values, dtype=np.int64))

    def scalar(self, value: float) -> str:
        """Add a constant fp32 number."""
        return self.tensor(f"scalar_{float(value)!r}", np.array(value, dtype=np.float32))

    def node(self, kind: str, *inputs: str, outputs: Sequence[str] = (), **attributes: Any) -> str:
        """Add a node; without `outputs`, its one output is named after it."""
        name = f"{kind}_{len(self.nodes)}"
        outputs = outputs or [name]
        self.nodes.append(self.onnx.helper.make_node(kind, list(inputs), list(outputs), name, **attributes))
        return outputs[0]

    def cast(self, x: str, dtype: str) -> str:
        """Add a cast to a type of ONNX, such as FLOAT."""
        return self.node("Cast", x, to=getattr(self.onnx.TensorProto, dtype))

    def finish(self, logits: str, num_labels: int) -> Any:
        """Return the checked model whose output is `logits`."""
        helper, types = self.onnx.helper, self.onnx.TensorProto
        self.node("Identity", logits, outputs=["logits"])
        shape = ["batch_size", "sequence_length"]
        inputs = [
            helper.make_tensor_value_info(name, types.INT64, shape)
            for name in ("input_ids", "attention_mask")
        ]
        output = helper.make_tensor_value_info("logits", types.FLOAT, ["batch_size", num_labels])
        graph = helper.make_graph(self.nodes, "classifier", inputs, [output], list(self.tensors.values()))
        model = helper.make_model(
            graph,
            producer_name="colakit",
            opset_imports=[helper.make_opsetid("", OPSET)],
            ir_version=IR_VERSION,
        )
        self.onnx.checker.check_model(model, full_check=True)
        return model
