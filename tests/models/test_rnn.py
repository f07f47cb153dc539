"""The student: padding does not change logits, and states equal those of torch's packed networks."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
import torch
from support.students import VOCAB, student
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from colakit.data.batches import Batch
from colakit.models.rnn.config import POOLINGS, RECURRENT_CELLS, RNNConfig
from colakit.models.rnn.model import CELL_MODULES, DistilRNN, trains_in_bf16
from colakit.runtime.device import Compute
from colakit.training.loop import StepBatch, train
from colakit.training.objectives import classification

every_cell = pytest.mark.parametrize("cell", RECURRENT_CELLS)
every_pooling = pytest.mark.parametrize("pooling", POOLINGS)
both_directions = pytest.mark.parametrize("bidirectional", [True, False], ids=["both", "forward"])
one_or_two_layers = pytest.mark.parametrize("num_layers", [1, 2])


def ragged(padding: int = 0, fill: int = 0) -> tuple[Tensor, Tensor]:
    """Return (input_ids, attention_mask) of sentences of 1, 4, 6 and 9 tokens, and `padding` more columns."""
    ids = torch.randint(0, VOCAB, (4, 9), generator=torch.Generator().manual_seed(1))
    mask = (torch.arange(9 + padding) < torch.tensor([[1], [4], [6], [9]])).long()
    return nn.functional.pad(ids, (0, padding)).where(mask.bool(), torch.tensor(fill)), mask


def same(actual: Tensor, expected: Tensor) -> None:
    # the same fp32 operations, in matrix products of other shapes
    torch.testing.assert_close(actual, expected, atol=1e-6, rtol=1e-6)


@torch.no_grad()
@every_cell
@every_pooling
@both_directions
@one_or_two_layers
def test_padding_and_batching_never_change_logits(
    cell: str, pooling: str, bidirectional: bool, num_layers: int
) -> None:
    model = student(cell=cell, pooling=pooling, bidirectional=bidirectional, num_layers=num_layers)
    input_ids, mask = ragged()
    logits = model(input_ids, mask)
    assert logits.std(dim=0).min() > 1e-3, "the sentences must differ for this to mean anything"
    same(model(*ragged(padding=5, fill=17)), logits)
    lengths = mask.sum(dim=1).tolist()
    alone = [model(input_ids[i : i + 1, :n], mask[i : i + 1, :n]) for i, n in enumerate(lengths)]
    same(torch.cat(alone), logits)
    order = torch.tensor([2, 0, 3, 1])
    same(model(input_ids[order], mask[order]), logits[order])


def torch_twin(model: DistilRNN) -> nn.RNNBase:
    """Return a torch RNN, GRU or LSTM with the weights of `model`."""
    config = model.config
    twin = CELL_MODULES[config.cell](
        config.embedding_size,
        config.hidden_size,
        num_layers=config.num_layers,
        bidirectional=config.bidirectional,
        batch_first=True,
    )
    weights = {
        name.replace("_l0", f"_l{depth}") + ("_reverse" if direction else ""): tensor
        for depth, layer in enumerate(model.layers)
        for direction, part in enumerate(layer.children())
        for name, tensor in part.state_dict().items()
    }
    twin.load_state_dict(weights)
    return twin.eval()


@torch.no_grad()
@every_cell
@pytest.mark.parametrize("pooling", ["last", "mean", "max"])
@both_directions
@one_or_two_layers
def test_states_equal_those_of_torch_s_packed_network(
    cell: str, pooling: str, bidirectional: bool, num_layers: int
) -> None:
    model = student(cell=cell, pooling=pooling, bidirectional=bidirectional, num_layers=num_layers)
    input_ids, mask = ragged()
    lengths = mask.sum(dim=1)
    packed = pack_padded_sequence(model.embedding(input_ids), lengths, batch_first=True, enforce_sorted=False)
    states, final = torch_twin(model)(packed)
    states, _ = pad_packed_sequence(states, batch_first=True, padding_value=-torch.inf)  # (B, T, W)
    final = final[0] if cell == "lstm" else final  # (layers · directions, B, H)
    pooled = {
        "last": torch.cat(list(final[-2 if bidirectional else -1 :]), dim=-1),
        "mean": states.masked_fill(mask[:, :, None] == 0, 0).sum(dim=1) / lengths[:, None],
        "max": states.amax(dim=1),
    }
    same(model(input_ids, mask), model.score(pooled[pooling]))


@torch.no_grad()
def test_attention_is_a_softmax_over_real_tokens() -> None:
    model = student(pooling="attention")
    assert model.attention is not None
    nn.init.zeros_(model.attention.weight)  # every token scores alike, so the weighted sum is the mean
    mean = student(pooling="mean")
    mean.load_state_dict({k: v for k, v in model.state_dict().items() if not k.startswith("attention")})
    same(model(*ragged()), mean(*ragged()))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"cell": "qrnn"}, r"cell .='qrnn'. must be one of rnn, gru, lstm"),
        ({"pooling": "first"}, r"pooling .='first'. must be one of last, mean, max, attention"),
    ],
)
def test_unknown_cell_or_pooling_is_an_error(settings: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RNNConfig(vocab_size=VOCAB, **settings)  # type: ignore[arg-type]


def test_dropout_acts_only_in_training_mode() -> None:
    model = student(dropout=0.5)
    assert torch.equal(model(*ragged()), model(*ragged()))
    model.train()
    assert not torch.equal(model(*ragged()), model(*ragged()))


def low_precision() -> torch.autocast:
    return torch.autocast("cpu", dtype=torch.bfloat16)


@every_cell
def test_logits_do_not_depend_on_autocast(cell: str) -> None:
    model = student(cell=cell, num_layers=2)
    with low_precision():
        under_autocast = model(*ragged())
    assert torch.equal(under_autocast, model(*ragged()))


@every_cell
@both_directions
def test_bf16_gradients_are_near_those_of_fp32(cell: str, bidirectional: bool) -> None:
    model = student(cell=cell, pooling="mean", bidirectional=bidirectional, num_layers=2, dropout=0).train()
    labels = torch.tensor([0, 1, 2, 1])

    def gradients() -> dict[str, Tensor]:
        model.zero_grad()
        logits = model(*ragged())
        assert logits.dtype == torch.float32
        nn.functional.cross_entropy(logits, labels).backward()
        return {name: weight.grad.clone() for name, weight in model.named_parameters()}  # type: ignore[union-attr]

    exact = gradients()
    with low_precision():
        rough = gradients()
    for name, gradient in exact.items():
        error = (rough[name] - gradient).norm() / gradient.norm()
        assert error < 0.05, name  # bf16 has 8 bits, and errors add up over 9 tokens
        if trains_in_bf16():
            assert not torch.equal(rough[name], gradient), f"{name}: nothing was rounded"


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Use one thread: on a busy machine, several threads mostly wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@every_cell
@pytest.mark.usefixtures("one_thread")
def test_a_student_overfits_sixteen_sentences(cell: str, fp32: Compute) -> None:
    generator = torch.Generator().manual_seed(2)
    mask = (torch.arange(9) < torch.randint(2, 10, (16, 1), generator=generator)).long()
    input_ids = torch.randint(0, VOCAB, (16, 9), generator=generator) * mask
    batch = Batch(input_ids, mask, torch.randint(0, 3, (16,), generator=generator))
    model = student(cell=cell, embedding_size=16, hidden_size=16).train()
    steps = [StepBatch([batch], 16, 0, "batch")] * 60
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    began = time.thread_time()
    for _ in train(model, steps, classification, optimizer, lr_at=lambda step: 1.0, compute=fp32):
        pass
    assert torch.equal(model.eval()(input_ids, mask).argmax(dim=1), batch.labels)
    assert time.thread_time() - began < 10  # seconds
