"""The ONNX graph of a student equals the module at every shape."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.students import VOCAB, student

from colakit.errors import ColakitError
from colakit.export import graph as graph_module
from colakit.export.student_graph import student_graph
from colakit.models.rnn.config import CELLS, POOLINGS
from colakit.models.rnn.model import DistilRNN

TOLERANCE = 1e-5  # both fp32, in another order of operations
KINDS = sorted(set(itertools.product(CELLS, POOLINGS)) - {("bag", "last")})


def graph_of(model: DistilRNN) -> Any:
    return student_graph(model.config, {name: tensor.numpy() for name, tensor in model.state_dict().items()})


def session_of(model: DistilRNN) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(
        graph_of(model).SerializeToString(), providers=["CPUExecutionProvider"]
    )


@torch.no_grad()
def difference(
    model: DistilRNN, session: onnxruntime.InferenceSession, lengths: list[int], seed: int
) -> float:
    """Return the largest difference of the logits of sentences with these lengths, with random padding."""
    generator = torch.Generator().manual_seed(seed)
    mask = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()
    ids = torch.randint(0, VOCAB, mask.shape, generator=generator)
    (logits,) = session.run(None, {"input_ids": ids.numpy(), "attention_mask": mask.numpy()})
    assert logits.dtype == np.float32
    return float(np.abs(model(ids, mask).numpy() - logits).max())


@pytest.mark.parametrize(("cell", "pooling"), KINDS)
@pytest.mark.parametrize("bidirectional", [True, False], ids=["both", "forward"])
def test_every_cell_and_pooling_equals_the_module(cell: str, pooling: str, bidirectional: bool) -> None:
    for num_layers, rows in ((1, None), (2, 12)):
        shape = {"cell": cell, "pooling": pooling, "bidirectional": bidirectional, "num_layers": num_layers}
        model = student(**shape, num_embeddings=rows)
        if rows:
            model.embed_only(list(range(5, 16)))
        session = session_of(model)
        for lengths in ([1], [7], [1] * 5, [60, 1, 9, 30], [1024]):
            assert difference(model, session, lengths, seed=1) <= TOLERANCE


students = st.tuples(
    st.sampled_from(KINDS),
    st.booleans(),
    st.integers(1, 3),
    st.integers(1, 9),
    st.sampled_from([None, 2, 12]),
)


def check(shape: Any, lengths: list[int], seed: int) -> float:
    """Return the difference of a random student's graph from its module, at most the tolerance."""
    (cell, pooling), bidirectional, num_layers, hidden_size, rows = shape
    model = student(
        cell=cell,
        pooling=pooling,
        bidirectional=bidirectional,
        num_layers=num_layers,
        hidden_size=hidden_size,
        num_embeddings=rows,
    )
    if rows:
        model.embed_only(list(range(5, 4 + rows)))
    for name, weight in model.named_parameters():
        if "weight_hh" in name:  # as initialised: a doubled recurrence may amplify rounding at each token
            weight.data /= 2
    largest = difference(model, session_of(model), lengths, seed)
    assert largest <= TOLERANCE
    return largest


every_case = given(students, st.lists(st.integers(1, 70), min_size=1, max_size=6), st.integers(0, 2**31))


@settings(max_examples=60, deadline=None)
@every_case
def test_random_students_equal_their_graphs(shape: Any, lengths: list[int], seed: int) -> None:
    check(shape, lengths, seed)


@pytest.mark.slow
def test_a_thousand_random_students_equal_their_graphs(capsys: pytest.CaptureFixture[str]) -> None:
    differences = []

    @settings(max_examples=1000, deadline=None)
    @every_case
    def run(shape: Any, lengths: list[int], seed: int) -> None:
        differences.append(check(shape, lengths, seed))

    run()
    with capsys.disabled():
        print(f"\n{len(differences):,} students: largest difference {max(differences):.1e}")


def test_the_graph_has_the_interface_of_a_transformers_export() -> None:
    model = graph_of(student())
    assert [(each.domain, each.version) for each in model.opset_import] == [("", 18)]
    names = {
        value.name: [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]
        for value in (*model.graph.input, *model.graph.output)
    }
    assert names == {
        "input_ids": ["batch_size", "sequence_length"],
        "attention_mask": ["batch_size", "sequence_length"],
        "logits": ["batch_size", 3],
    }
    assert {value.type.tensor_type.elem_type for value in model.graph.input} == {onnx.TensorProto.INT64}
    assert not any(tensor.external_data for tensor in model.graph.initializer)


def test_a_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "onnx", None)
    with pytest.raises(ColakitError) as error:
        graph_module.Graph()
    assert error.value.exit_code == 2
    assert "pip install 'colakit[export]'" in (error.value.hint or "")
