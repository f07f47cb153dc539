"""Distillation from several teachers, its options, and the control."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch.testing import assert_close

from colakit.api.distill import _load_teachers, _token_embeddings
from colakit.api.session import Session
from colakit.config.resolve import resolve
from colakit.data.splits import left_out
from colakit.distillation.teachers import mean_logits, train_logits
from colakit.inference.classifier import SentenceClassifier, load_classifier
from colakit.models.rnn.config import RNNConfig
from colakit.models.rnn.distillation_heads import StudentWithHeads
from colakit.models.rnn.model import DistilRNN
from colakit.storage.gpt2 import load_gpt
from colakit.utils.console import Reporter

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def folds(toy: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two teachers, each fine-tuned on another half of train."""
    from colakit.cli.app import main

    folders = []
    for number in (1, 2):
        folder = tmp_path_factory.mktemp("folds") / str(number)
        arguments = ["finetune", "--base", toy / "base", "--data", toy / "corpus", "--epochs", 2, "--quiet"]
        fold = ["--set", f"finetune.leave_out={number}/2", "--out", folder]
        assert main([str(word) for word in (*arguments, *fold)]) == 0
        folders.append(folder)
    return folders


def distill_session(toy: Path, teachers: list[Path]) -> Session:
    named = ",".join(map(str, teachers))
    resolved = resolve(
        flags={},
        assignments=[f"data.path={toy / 'corpus'}", f"distill.teacher={named}", "precision=fp32"],
        config=None,
    )
    return Session("distill", resolved, Reporter(), None, False, False)


def test_logits_of_train_come_from_teachers_not_trained_on_it(toy: Path, folds: list[Path]) -> None:
    session = distill_session(toy, folds)
    task = session.load_task()
    first, second = _load_teachers(session, task)
    logits, num_out_of_fold = train_logits([first, second], task.train)
    alone = [mean_logits([teacher], task.train) for teacher in (first, second)]
    in_first = left_out(task.train.sentences, "1/2")
    assert 0.3 < in_first.mean() < 0.7
    np.testing.assert_allclose(logits, np.where(in_first[:, None], *alone), atol=1e-5)  # other batches
    assert num_out_of_fold == len(task.train)
    of_one, some = train_logits([first], task.train)
    np.testing.assert_array_equal(of_one, alone[0])
    assert some == in_first.sum()
    both = mean_logits([first, second], task.val)
    each = [mean_logits([teacher], task.val) for teacher in (first, second)]
    np.testing.assert_allclose(both, (each[0] + each[1]) / 2, rtol=1e-6)


def test_interrupted_teacher_logits_continue_from_the_cache(
    toy: Path, folds: list[Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    session = distill_session(toy, folds[:1])
    task = session.load_task()
    (teacher,) = _load_teachers(session, task)
    whole = teacher.logits(task.train)
    monkeypatch.setattr("colakit.distillation.teachers.PART", 50)
    monkeypatch.setattr(SentenceClassifier, "logits", stops_after(2, original := SentenceClassifier.logits))
    with pytest.raises(KeyboardInterrupt):
        teacher.logits(task.train)
    monkeypatch.setattr(SentenceClassifier, "logits", original)
    capsys.readouterr()
    logits = teacher.logits(task.train)
    assert (
        f"computing logits of {teacher.path} for {len(task.train) - 100} sentences" in capsys.readouterr().err
    )
    np.testing.assert_allclose(logits, whole, atol=1e-5)
    teacher.logits(task.train)
    assert "computing logits" not in capsys.readouterr().err


def stops_after(times: int, method: Callable[..., object]) -> Callable[..., object]:
    """Return the method with an interrupt after the given number of calls."""
    calls = iter(range(times))

    def stopping(*arguments: object, **named: object) -> object:
        if next(calls, None) is None:
            raise KeyboardInterrupt
        return method(*arguments, **named)

    return stopping


def test_teachers_with_different_tokenizers_need_a_student_base(
    toy: Path, folds: list[Path], colakit: Run, tmp_path: Path
) -> None:
    content = torch.load(folds[1] / "ckpt.pt", weights_only=True)
    tokenizer = json.loads(content["tokenizer"]["json"])
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["another"] = vocabulary.pop(max(vocabulary, key=vocabulary.get))  # of the last merge
    tokenizer["model"]["merges"].pop()
    changed = {**content["tokenizer"], "json": json.dumps(tokenizer)}
    torch.save({**content, "tokenizer": changed}, tmp_path / "ckpt.pt")
    both = ["distill", "--data", toy / "corpus", "--teacher", folds[0], "--teacher", tmp_path]
    code, _, err = colakit(*both)
    assert code == 2
    assert f"--teacher {tmp_path}: its tokenizer differs from that of {folds[0]}" in " ".join(err.split())
    quick = ["--transfer-size", 0, "--epochs", 1, "--student-base", toy / "base", "--json"]
    code, out, err = colakit(*both, *quick, "--out", tmp_path / "student")
    assert code == 0, err
    assert len(json.loads(out)["teachers"]) == 2


STUDENT_SETTINGS = {
    "student.vocabulary": 60,
    "student.embedding_size": 16,
    "student.hidden_size": 24,
    "student_training.lm_weight": 0.05,
    "student_training.lm_weight_end": 0,
    "student_training.max_steps": 40,
    "student_training.evaluate_every_steps": 20,
    "transfer.size": 2,
}


def test_default_data_is_that_of_the_teacher(toy: Path, colakit: Run, tmp_path: Path) -> None:
    quick = ["--epochs", 1, "--quiet"]
    tuning = ["finetune", "--base", toy / "base", "--data", toy / "corpus", *quick]
    assert colakit(*tuning, "--out", tmp_path / "teacher")[0] == 0
    distill = ["distill", "--teacher", tmp_path / "teacher", "--epochs", 1, "--transfer-size", 0]
    code, _, err = colakit(*distill, "--out", tmp_path / "student")
    assert code == 0, err
    assert f"data: {toy / 'corpus'}, recorded by {tmp_path / 'teacher'}" in " ".join(err.split())
    settings = resolve(config=tmp_path / "student" / "settings.yaml", environment={}).settings
    assert settings.data.path == str(toy / "corpus")
    assert colakit("distill", "--resume", "--out", tmp_path / "student")[0] == 0
    code, _, err = colakit(*distill, "--data", tmp_path / "nowhere", "--out", tmp_path / "other")
    assert code == 2  # the option overrides it


def test_distillation_and_control_accept_the_same_settings(
    toy: Path, folds: list[Path], colakit: Run, tmp_path: Path
) -> None:
    common = ["--base", toy / "base", "--data", toy / "corpus", "--json"]
    for key, value in STUDENT_SETTINGS.items():
        common += ["--set", f"{key}={value}"]
    distill = ["--teacher", folds[0], "--teacher", folds[1], "--set", "distill.hidden_weight=0.5"]
    code, out, err = colakit("distill", *common, *distill, "--out", tmp_path / "distill")
    assert code == 0, err
    student = json.loads(out)
    code, out, err = colakit(
        *("train-scratch", *common, "--set", "train_scratch.augmented=true", "--out", tmp_path / "scratch")
    )
    assert code == 0, err
    control = json.loads(out)
    assert student["steps"] == control["steps"] == 40
    assert student["parameters"] == control["parameters"]  # training heads are not saved
    assert len(student["teachers"]) == 2
    assert student["transfer"]["sentences"] == control["augmented"] > 0
    assert student["out_of_fold"] > 0
    a, b = (load_classifier(tmp_path / name).model for name in ("distill", "scratch"))
    assert isinstance(a, DistilRNN)
    assert a.config == b.config
    assert a.embedding.num_embeddings == 61
    code, out, err = colakit("predict", "--model", tmp_path / "distill", toy / "corpus" / "nothing")
    assert code == 2


def test_samples_come_from_the_base_of_the_teachers(
    toy: Path, folds: list[Path], colakit: Run, tmp_path: Path
) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(toy / "base", moved)
    wanted = ["--set", "transfer.size=0.2", "--set", "transfer.sources={lm_sample: 1}"]
    common = ["distill", "--data", toy / "corpus", "--epochs", 1, *wanted]
    code, _, err = colakit(
        *common, "--teacher", folds[0] / "adapter", "--base", moved, "--out", tmp_path / "a"
    )
    assert code == 0, err
    tensors = load_file(moved / "model.safetensors")
    tensors = {name: tensor + 1 if "ln_f" in name else tensor for name, tensor in tensors.items()}
    save_file(tensors, moved / "model.safetensors", metadata={"format": "pt"})
    code, _, err = colakit(*common, "--teacher", folds[0], "--base", moved, "--set", "transfer.seed=1")
    assert code == 2
    assert f"{moved}: is not the base that {folds[0]} was tuned from" in " ".join(err.split())
    student = [*common, "--teacher", tmp_path / "a", "--set", "transfer.seed=2"]
    code, _, err = colakit(*student)
    assert code == 2
    assert "has no base to sample from" in " ".join(err.split())


def test_steps_without_a_label_have_no_training_accuracy(
    toy: Path, folds: list[Path], colakit: Run, tmp_path: Path
) -> None:
    """With five transfer sentences to one of train, some steps have no labels and log no accuracy."""
    run = tmp_path / "run"
    code, _, err = colakit(
        *("distill", "--data", toy / "corpus", "--teacher", folds[0], "--batch-size", 2, "--out", run),
        *("--set", "transfer.size=5", "--set", "student_training.max_steps=3"),
        *("--set", "student_training.evaluate_every_steps=1"),
    )
    assert code == 0, err
    evaluations = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    seen = [set(line["train"]) for line in evaluations if line["event"] == "evaluation"]
    assert len(seen) == 3
    assert {"loss"} in seen
    assert all(figures in ({"loss"}, {"loss", "accuracy", "mcc"}) for figures in seen)
    code, _, err = colakit("plot", run, "--out", tmp_path / "plots")
    assert code == 0, err


def test_upsampling_train_preserves_the_transfer_set(
    toy: Path, folds: list[Path], colakit: Run, tmp_path: Path
) -> None:
    summaries = []
    for repeats in (1, 3):
        code, out, err = colakit(
            *("distill", "--data", toy / "corpus", "--teacher", folds[0], "--epochs", 1, "--batch-size", 8),
            *("--set", "transfer.size=2", "--set", f"distill.upsample={repeats}", "--json"),
            *("--set", "distill.hidden_weight=0.5", "--out", tmp_path / str(repeats)),
        )
        assert code == 0, err
        summaries.append(json.loads(out))
    one, three = summaries
    assert one["transfer"] == three["transfer"]
    num_train = 240 - one["splits"]["val"]["num_examples"]
    sentences = one["transfer"]["sentences"]
    assert [run["steps"] for run in summaries] == [-(-(num_train * n + sentences) // 8) for n in (1, 3)]


@pytest.mark.parametrize("more", [0, 3])
def test_embeddings_start_from_the_base(toy: Path, more: int, colakit: Run, tmp_path: Path) -> None:
    """One step with a tiny learning rate keeps the initial embeddings, whose angles equal the base's."""
    base = load_gpt(toy / "base").transformer.wte.weight.detach().bfloat16().float()
    width = base.shape[1]
    shape = ["--set", f"student.embedding_size={width + more}"]
    still = ["--set", "student_training.max_steps=1", "--set", "student_training.lr=1e-12"]
    code, _, err = colakit(
        *("train-scratch", "--base", toy / "base", "--data", toy / "corpus", "--quiet"),
        *(*shape, *still, "--out", tmp_path / "run"),
    )
    assert code == 0, err
    model = load_classifier(tmp_path / "run").model
    assert isinstance(model, DistilRNN)
    initial, random = model.embedding.weight.detach().split([width, more], dim=1)
    assert initial.std().item() == pytest.approx(0.1, rel=1e-3)
    if more:
        assert random.std(dim=0).min().item() == pytest.approx(0.1, rel=0.2)
    centred = base - base.mean(dim=0)
    expected = F.cosine_similarity(centred[:50, None], centred[None, :50], dim=-1)
    assert_close(
        F.cosine_similarity(initial[:50, None], initial[None, :50], dim=-1), expected, atol=1e-3, rtol=0
    )


@pytest.fixture
def student() -> DistilRNN:
    torch.manual_seed(0)
    return DistilRNN(RNNConfig(11, hidden_size=5, embedding_size=4, num_embeddings=7, dropout=0.0))


def test_loaded_student_has_a_vector_for_every_token(student: DistilRNN) -> None:
    student.embed_only([3, 9, 4, 0, 1, 2])
    vectors = _token_embeddings(student)
    assert vectors.shape == (11, 4)
    weight = student.embedding.weight.detach().numpy()
    np.testing.assert_array_equal(vectors[[3, 9, 5, 10]], weight[[1, 2, 0, 0]])


def test_rare_tokens_share_one_row(student: DistilRNN) -> None:
    student.embed_only([3, 9, 4, 0, 1, 2])
    mask = torch.ones(1, 3, dtype=torch.long)
    rare = [student(torch.tensor([[3, token, 9]]), mask) for token in (5, 10)]
    assert_close(rare[0], rare[1])
    assert not torch.allclose(rare[0], student(torch.tensor([[3, 4, 9]]), mask))
    assert student.row_of_token is not None
    assert student.row_of_token.tolist() == [4, 5, 6, 1, 3, 0, 0, 0, 0, 2, 0]


def test_checkpoint_with_tokens_without_rows_is_refused(student: DistilRNN) -> None:
    student.check_rows()
    assert student.row_of_token is not None
    for row in (7, -1):
        student.row_of_token[2] = row
        with pytest.raises(ValueError, match="rows outside the embedding"):
            student.check_rows()
    for rows in (0, 13):
        with pytest.raises(ValueError, match="num_embeddings"):
            RNNConfig(11, num_embeddings=rows)


def test_lm_head_predicts_neighbours_from_both_directions(student: DistilRNN) -> None:
    student.embed_only([0, 1, 2, 3, 4, 5])
    with_heads = StudentWithHeads(student, teacher_width=3, predicts_tokens=True)
    ids = torch.tensor([[0, 1, 2, 9], [3, 4, 0, 0]])  # 9 is rare, so not a target
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    output = with_heads(ids, mask)
    assert output.hidden is not None
    assert output.hidden.shape == (2, 3)
    assert_close(output.logits, student(ids, mask))
    states = student.encode(ids, mask).first
    table = student.embedding.weight

    def nats(head: int, row: int, position: int, target: int) -> torch.Tensor:
        part = states[row, position, :5] if head == 0 else states[row, position, 5:]
        logits = table @ with_heads.to_tokens[head](part)
        return F.cross_entropy(logits[None], torch.tensor([target + 1]))

    following = nats(0, 0, 0, 1) + nats(0, 0, 1, 2) + nats(0, 1, 0, 4)
    preceding = nats(1, 0, 1, 0) + nats(1, 0, 2, 1) + nats(1, 0, 3, 2) + nats(1, 1, 1, 3)
    assert_close(output.nll, following + preceding)


def test_no_direction_sees_its_target(student: DistilRNN) -> None:
    with_heads = StudentWithHeads(student, predicts_tokens=True)
    student.embed_only([0, 1, 2, 3, 4, 5])
    mask = torch.ones(1, 4, dtype=torch.long)
    one, other = (student.encode(torch.tensor([[0, 1, last, 3]]), mask).first for last in (2, 4))
    assert_close(one[:, :2, :5], other[:, :2, :5])  # forward, before the token that differs
    assert_close(one[:, 3:, 5:], other[:, 3:, 5:])  # backward, after it
    assert with_heads(torch.tensor([[0, 1, 2, 3]]), mask).nll is not None
