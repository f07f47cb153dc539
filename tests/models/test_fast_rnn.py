"""FastRNN and NumpyRNN equal DistilRNN, and the predictors equal the classifier."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from support.students import VOCAB, student
from threadpoolctl import threadpool_info
from torch import Tensor

from colakit.data.tokenizer import train_tokenizer
from colakit.data.tokens import Tokens
from colakit.errors import ColakitError
from colakit.inference import numpy_predictor
from colakit.inference.classifier import SentenceClassifier
from colakit.inference.decisions import predict_labels, probabilities
from colakit.inference.forward import Forward, compute_logits, fastest_forward
from colakit.inference.numpy_predictor import StudentPredictor
from colakit.inference.predictor import Predictor
from colakit.models.gpt.config import GPTConfig
from colakit.models.gpt.model import GPT
from colakit.models.rnn.config import CELLS, POOLINGS, RECURRENT_CELLS
from colakit.models.rnn.fast_rnn import FastRNN
from colakit.models.rnn.model import DistilRNN
from colakit.models.rnn.numpy_rnn import NumpyRNN
from colakit.runtime.device import Compute

LENGTHS = (1, 4, 60, 9, 30, 9)
SENTENCES = ("The dog barks.", "", "Dogs that the cat sees bark.", "The cat sees the dog.", "Bark!")


def ragged() -> tuple[Tensor, Tensor]:
    """Return (input_ids, attention_mask) of sentences of `LENGTHS`, padded with token 0."""
    generator = torch.Generator().manual_seed(1)
    mask = (torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS)[:, None]).long()
    return torch.randint(0, VOCAB, mask.shape, generator=generator) * mask, mask


def same(actual: Tensor, expected: Tensor) -> None:
    # both fp32, in another order of operations; errors do not add up over steps
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=0)


def in_numpy(model: DistilRNN) -> Forward:
    """Return a `NumpyRNN` of `model` that takes and returns tensors."""
    plain = NumpyRNN(model.config, {name: tensor.numpy() for name, tensor in model.state_dict().items()})
    return lambda input_ids, mask: torch.from_numpy(plain(input_ids.numpy(), mask.numpy()))


every_path = pytest.mark.parametrize("path", [FastRNN, in_numpy], ids=["torch", "numpy"])


@torch.no_grad()
@every_path
@pytest.mark.parametrize(
    ("cell", "pooling"), sorted(set(itertools.product(CELLS, POOLINGS)) - {("bag", "last")})
)
@pytest.mark.parametrize("bidirectional", [True, False], ids=["both", "forward"])
@pytest.mark.parametrize("num_layers", [1, 2])
def test_fast_paths_equal_the_module(
    cell: str, pooling: str, bidirectional: bool, num_layers: int, path: Callable[[DistilRNN], Forward]
) -> None:
    model = student(cell=cell, pooling=pooling, bidirectional=bidirectional, num_layers=num_layers)
    input_ids, mask = ragged()
    logits, fast = model(input_ids, mask), path(model)
    assert logits.std(dim=0).min() > 1e-3, "the sentences must differ for this to mean anything"
    same(fast(input_ids, mask), logits)
    for i, length in enumerate(LENGTHS):  # single sentences take the path without deduplication
        same(fast(input_ids[i : i + 1, :length], mask[i : i + 1, :length]), logits[i : i + 1])
        same(fast(input_ids[i : i + 1], mask[i : i + 1]), logits[i : i + 1])  # with its padding


@torch.no_grad()
@pytest.mark.parametrize("cell", RECURRENT_CELLS)
def test_bf16_logits_are_near_those_of_fp32(cell: str) -> None:
    model = student(cell=cell, num_layers=2)
    logits, found = model(*ragged()), FastRNN(model, torch.bfloat16)(*ragged())
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, logits, atol=0.02, rtol=0)
    assert not torch.equal(found, FastRNN(model)(*ragged()))


@torch.no_grad()
@every_path
def test_fast_paths_equal_the_module_with_shared_embedding_rows(path: Callable[[DistilRNN], Forward]) -> None:
    model = student(num_embeddings=12)
    model.embed_only(range(5, 16))
    same(path(model)(*ragged()), model(*ragged()))


@torch.no_grad()
@every_path
def test_closed_gates_do_not_overflow(path: Callable[[DistilRNN], Forward]) -> None:
    model = student(cell="lstm")
    model.layers[0][0].bias_hh_l0[:7] = -200.0  # exp(200) is beyond fp32
    same(path(model)(*ragged()), model(*ragged()))


def altered(name: str) -> dict[str, np.ndarray]:
    tensors = {key: tensor.numpy().copy() for key, tensor in student(num_embeddings=12).state_dict().items()}
    match name:
        case "missing":
            del tensors["score.bias"]
        case "shape":
            tensors["score.weight"] = tensors["score.weight"][:, 1:]
        case "kind":
            tensors["score.bias"] = tensors["score.bias"].astype(np.float64)
        case "beyond":
            tensors["row_of_token"][3] = 12
        case "before":
            tensors["row_of_token"][3] = -1
    return tensors


@pytest.mark.parametrize("name", ["missing", "shape", "kind", "beyond", "before"])
def test_numpy_rnn_refuses_tensors_of_another_shape(name: str) -> None:
    config = student(num_embeddings=12).config
    NumpyRNN(config, altered("nothing"))
    with pytest.raises(ValueError, match=r"is missing, or|must be (float32|int32) of shape|rows outside"):
        NumpyRNN(config, altered(name))


@torch.no_grad()
def test_fast_rnn_copies_the_recurrent_weights() -> None:
    model = student()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    fast = FastRNN(model)
    logits = fast(*ragged())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    for layer in model.layers.parameters():
        layer.zero_()
    assert torch.equal(fast(*ragged()), logits)


def test_only_a_student_on_a_cpu_uses_fast_rnn(fp32: Compute) -> None:
    model, gpu = student(), replace(fp32, device=torch.device("cuda"))
    gpt = GPT(GPTConfig(vocab_size=VOCAB, num_positions=8, width=8, num_layers=1, num_heads=2)).classifier(2)
    assert isinstance(fastest_forward(model, fp32), FastRNN)
    assert fastest_forward(model, gpu) is model
    assert fastest_forward(gpt, fp32) is gpt


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_compute_logits_of_a_student_is_fp32_in_every_precision(fp32: Compute, dtype: torch.dtype) -> None:
    model = student(dropout=0.5).train()  # what a run evaluates between two epochs
    rows = [row[mask.bool()].numpy().astype(np.int32) for row, mask in zip(*ragged(), strict=True)]
    found = compute_logits(model, Tokens.pack(rows), replace(fp32, dtype=dtype), batch_size=4)
    assert model.training
    same(torch.from_numpy(found), model.eval()(*ragged()))


@pytest.fixture
def classifier() -> SentenceClassifier:
    tokenizer = train_tokenizer(SENTENCES, 270)
    model = student(vocab_size=tokenizer.vocab_size, num_labels=2)
    return SentenceClassifier(model, tokenizer, ("bad", "good"), max_tokens=12, threshold=0.4)


@pytest.fixture(params=["torch", "numpy"])
def predictor(
    request: pytest.FixtureRequest, classifier: SentenceClassifier, fp32: Compute, tmp_path: Path
) -> Predictor | StudentPredictor:
    if request.param == "torch":
        return Predictor(classifier, fp32, batch_size=2)
    classifier.save(tmp_path / "ckpt.pt")
    return StudentPredictor(tmp_path, batch_size=2)


def test_predictors_label_as_the_classifier_does(
    predictor: Predictor | StudentPredictor, classifier: SentenceClassifier, fp32: Compute
) -> None:
    logits = classifier.logits(classifier.encode(SENTENCES), fp32)
    found = predictor(SENTENCES)
    assert found.labels.tolist() == classifier.predict_labels(logits).tolist()
    np.testing.assert_allclose(found.probs, probabilities(logits), atol=1e-5)
    alone = [predictor([sentence]) for sentence in SENTENCES]
    np.testing.assert_allclose(np.concatenate([one.probs for one in alone]), found.probs, atol=1e-5)
    assert found.num_truncated == sum(one.num_truncated for one in alone) == 1


def test_a_string_is_one_sentence(predictor: Predictor | StudentPredictor) -> None:
    np.testing.assert_array_equal(predictor(SENTENCES[0]).probs, predictor([SENTENCES[0]]).probs)


def test_predictions_name_their_labels(predictor: Predictor | StudentPredictor) -> None:
    found = predictor(SENTENCES)
    assert found.names == [predictor.label_names[label] for label in found.labels]
    predictor.threshold = 0.0
    assert predictor(SENTENCES).names == ["good"] * len(SENTENCES)


def test_a_threshold_is_refused_for_more_than_two_labels() -> None:
    with pytest.raises(ColakitError, match=r"threshold 0\.7: the model has 3 labels"):
        predict_labels(np.zeros((1, 3), dtype=np.float32), 0.7)


def test_predictors_accept_an_empty_list(predictor: Predictor | StudentPredictor) -> None:
    found = predictor([])
    assert (found.labels.shape, found.probs.shape, found.num_truncated) == ((0,), (0, 2), 0)


def test_predictors_have_the_classifier_s_name_and_labels(
    predictor: Predictor | StudentPredictor, classifier: SentenceClassifier
) -> None:
    assert predictor.name == classifier.name == "adapter (lstm)"
    assert (predictor.label_names, predictor.max_tokens) == (("bad", "good"), 12)


def gpt_classifier() -> SentenceClassifier:
    tokenizer = train_tokenizer(SENTENCES, 270)
    shape = GPTConfig(vocab_size=tokenizer.vocab_size, num_positions=64, width=8, num_layers=2, num_heads=2)
    torch.manual_seed(0)
    return SentenceClassifier(GPT(shape).classifier(2), tokenizer, ("bad", "good"), max_tokens=64)


def test_predictor_preserves_a_gpt_s_weights(fp32: Compute) -> None:
    classifier = gpt_classifier()
    before = {name: tensor.clone() for name, tensor in classifier.model.state_dict().items()}
    logits = classifier.logits(classifier.encode(SENTENCES), fp32)
    found = Predictor(classifier, fp32)(SENTENCES)
    assert logits.std() > 1e-3
    np.testing.assert_allclose(found.probs, probabilities(logits), atol=1e-6)
    for name, tensor in classifier.model.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_batches_of_long_sentences_are_smaller(
    classifier: SentenceClassifier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    classifier.save(tmp_path / "ckpt.pt")
    predictor = StudentPredictor(tmp_path)
    expected = predictor(SENTENCES).probs
    monkeypatch.setattr(numpy_predictor, "MAX_BATCH_TOKENS", 20)
    sizes = [len(index) for index in predictor._plan(np.array([3, 4, 5, 9, 15, 30]))]
    assert sizes == [1] * 6  # the batch's longest decides
    assert [len(index) for index in predictor._plan(np.array([3, 4, 5]))] == [3]
    np.testing.assert_allclose(predictor(SENTENCES).probs, expected, atol=1e-5)


def test_predicting_in_threads_restores_the_thread_limit(
    classifier: SentenceClassifier, tmp_path: Path
) -> None:
    classifier.save(tmp_path / "ckpt.pt")
    predictor = StudentPredictor(tmp_path, batch_size=2)
    expected, before = predictor(SENTENCES), threadpool_info()
    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(lambda _: predictor(SENTENCES), range(40)):
            np.testing.assert_allclose(found.probs, expected.probs, atol=1e-6)
    assert threadpool_info() == before


def test_student_predictor_says_what_the_folder_of_a_teacher_holds(tmp_path: Path) -> None:
    gpt_classifier().save(tmp_path / "ckpt.pt")
    (tmp_path / "summary.json").write_text('{"command": "finetune", "model": "finetune (GPT-2, rank 8)"}')
    for where in (tmp_path, tmp_path / "ckpt.pt"):
        with pytest.raises(ColakitError, match=r"holds finetune \(GPT-2, rank 8\), not a recurrent student"):
            StudentPredictor(where)
    (tmp_path / "summary.json").unlink()
    with pytest.raises(ColakitError, match=r"holds a ckpt\.pt, .*no student\.safetensors"):
        StudentPredictor(tmp_path)
    with pytest.raises(ColakitError, match="not found"):
        StudentPredictor(tmp_path / "nowhere")
    (tmp_path / "seeds").mkdir()
    (tmp_path / "seeds/runs.json").write_text("{}")
    with pytest.raises(ColakitError, match="holds several runs, not a recurrent student"):
        StudentPredictor(tmp_path / "seeds")


def test_predictor_uses_bf16_only_with_student_dtype(classifier: SentenceClassifier, fp32: Compute) -> None:
    halved, bf16 = replace(fp32, dtype=torch.bfloat16), {"student_dtype": torch.bfloat16}
    expected, default, found = (
        Predictor(classifier, compute, **options)(SENTENCES).probs
        for compute, options in ((fp32, {}), (halved, {}), (halved, bf16))
    )
    assert np.array_equal(default, expected)
    assert not np.array_equal(found, expected)
    np.testing.assert_allclose(found, expected, atol=0.01)
