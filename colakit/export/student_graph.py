"""The ONNX graph of a student, with ONNX's own RNN, GRU and LSTM.

torch's exporters freeze the length of most recurrent networks, so the graph is built here. ONNX's recurrent
operators take the length of each sentence, so padding changes nothing.

Shapes: B batch, T tokens, E embedding width, H hidden width per direction, W width of all directions' states.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from colakit.export.graph import MASKED, Graph
from colakit.models.rnn.config import RNNConfig

Arrays = Mapping[str, NDArray[Any]]
OPERATORS = {"rnn": "RNN", "gru": "GRU", "lstm": "LSTM"}
GATE_ORDER = {"rnn": (0,), "gru": (1, 0, 2), "lstm": (0, 3, 1, 2)}  # torch rzn, ifgo -> ONNX zrn, iofg


def student_graph(config: RNNConfig, tensors: Arrays) -> Any:
    """Return the ONNX model of a `DistilRNN` from its state dict as numpy arrays.

    Raises:
        ColakitError: if onnx is not installed.
    """
    graph = Graph()
    token_mask = graph.node("Transpose", "attention_mask", perm=[1, 0])  # (T, B)
    lengths = graph.node(
        "ReduceSum", graph.cast("attention_mask", "INT32"), graph.ints(1), keepdims=0
    )  # (B,)
    rows = graph.node("Transpose", "input_ids", perm=[1, 0])
    if config.num_embeddings is not None:
        rows = graph.node("Gather", graph.tensor("row_of_token", tensors["row_of_token"]), rows)
    x = graph.node("Gather", graph.tensor("embedding.weight", tensors["embedding.weight"]), rows)  # (T, B, E)
    final = ""
    for layer in range(config.recurrent_layers):
        x, final = _recurrent(graph, config, tensors, layer, x, lengths)
    pooled = _pool(graph, config, tensors, x, token_mask, lengths, final)
    head = [graph.tensor(name, tensors[name]) for name in ("score.weight", "score.bias")]
    return graph.finish(graph.node("Gemm", pooled, *head, transB=1), config.num_labels)


def _recurrent(
    graph: Graph, config: RNNConfig, tensors: Arrays, layer: int, x: str, lengths: str
) -> tuple[str, str]:
    """Add a layer; return its states (T, B, W), zero at padding, and the final state (directions, B, H)."""

    def stacked(*names: str) -> NDArray[np.float32]:
        """Return the weights of all directions, (directions, …), their gates in ONNX's order."""
        directions = []
        for d in range(config.directions):
            weights = [tensors[f"layers.{layer}.{d}.{name}_l0"] for name in names]
            gates = [np.split(weight, len(GATE_ORDER[config.cell])) for weight in weights]
            directions.append(np.concatenate([g[k] for g in gates for k in GATE_ORDER[config.cell]]))
        return np.stack(directions)

    weights = [
        graph.tensor(f"layers.{layer}.{part}", stacked(*names))
        for part, names in (("W", ["weight_ih"]), ("R", ["weight_hh"]), ("B", ["bias_ih", "bias_hh"]))
    ]
    states, final = f"layers.{layer}.states", f"layers.{layer}.final"
    graph.node(
        OPERATORS[config.cell],
        *(x, *weights, lengths),
        outputs=[states, final],
        hidden_size=config.hidden_size,
        direction="bidirectional" if config.bidirectional else "forward",
        **({"linear_before_reset": 1} if config.cell == "gru" else {}),
    )
    states = graph.node("Transpose", states, perm=[0, 2, 1, 3])  # (T, B, directions, H)
    return graph.node("Reshape", states, graph.ints(0, 0, config.width)), final


def _pool(
    graph: Graph, config: RNNConfig, tensors: Arrays, states: str, token_mask: str, lengths: str, final: str
) -> str:
    """Return sentence vectors (B, W) from states (T, B, W); `token_mask` is (T, B)."""
    if config.pooling == "last":
        final = graph.node("Transpose", final, perm=[1, 0, 2])  # (B, directions, H)
        return graph.node("Reshape", final, graph.ints(0, config.width))
    axes = graph.ints(0)
    mask = graph.node("Unsqueeze", token_mask, graph.ints(2))  # (T, B, 1)
    if config.pooling == "mean":
        total = graph.node(
            "ReduceSum", graph.node("Mul", states, graph.cast(mask, "FLOAT")), axes, keepdims=0
        )
        return graph.node("Div", total, graph.node("Unsqueeze", graph.cast(lengths, "FLOAT"), graph.ints(1)))
    is_real, masked = graph.cast(mask, "BOOL"), graph.tensor("masked", np.array(MASKED))
    if config.pooling == "max":
        return graph.node("ReduceMax", graph.node("Where", is_real, states, masked), axes, keepdims=0)
    weight = graph.tensor("attention.weight", tensors["attention.weight"].T)  # (W, 1)
    bias = graph.tensor("attention.bias", tensors["attention.bias"])
    scores = graph.node("Add", graph.node("MatMul", states, weight), bias)
    shares = graph.node("Softmax", graph.node("Where", is_real, scores, masked), axis=0)  # (T, B, 1)
    return graph.node("ReduceSum", graph.node("Mul", shares, states), axes, keepdims=0)
