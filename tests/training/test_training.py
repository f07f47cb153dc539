"""The training loop: accumulation, clipping, errors, reports."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from torch import nn

from colakit.config.training import LoopSettings
from colakit.data.batches import Batch, Examples, PairExamples, micro_batches
from colakit.data.tokens import Tokens
from colakit.errors import EXIT_FAILED, ColakitError
from colakit.models.gpt.config import GPTConfig
from colakit.models.gpt.model import GPT
from colakit.models.lora import LoRAConfig, inject, train_modules
from colakit.models.rnn.config import RNNConfig
from colakit.models.rnn.model import DistilRNN
from colakit.runtime.device import Compute
from colakit.runtime.distributed import Processes
from colakit.training.epochs import steps, steps_per_epoch
from colakit.training.loop import StepBatch, StepReport, train
from colakit.training.objectives import (
    Loss,
    Objective,
    classification,
    constant,
    discrimination,
    distillation,
)
from colakit.training.schedule import warmup_then

VOCABULARY = 50


def make_examples(count: int, *, with_teacher: bool = False) -> Examples:
    generator = np.random.default_rng(0)
    lengths = generator.integers(1, 9, size=count)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    ids = generator.integers(0, VOCABULARY, size=offsets[-1]).astype(np.int32)
    logits = generator.normal(size=(count, 2)).astype(np.float32) if with_teacher else None
    return Examples(Tokens(ids, offsets), generator.integers(0, 2, size=count), logits)


def make_classifier(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    config = GPTConfig(VOCABULARY, 16, 16, 2, 2, None, "gelu_new", 1e-5, 0.0, 0.0, 0.0)
    model = GPT(config).classifier(2)
    inject(model, LoRAConfig(rank=2))
    train_modules(model)
    return model.train()


def make_pairs(count: int) -> Examples:
    """Real sentences, each followed by its corrupted version."""
    labels = np.tile(np.array([1, 0], dtype=np.int64), count)
    return PairExamples(make_examples(2 * count).tokens, labels)


def make_student() -> nn.Module:
    torch.manual_seed(0)
    return DistilRNN(RNNConfig(VOCABULARY, embedding_size=8, hidden_size=8, dropout=0.0)).train()


def step_batches(
    examples: Examples, batch_size: int, micro_batch_size: int, epochs: int = 2
) -> Iterator[StepBatch]:
    for epoch in range(epochs):
        for index in examples.plan_epoch(batch_size, 0, epoch):
            yield StepBatch(micro_batches(examples, index, micro_batch_size), len(index), epoch, "a batch")


def run(
    model: nn.Module, batches: Iterator[StepBatch], compute: Compute, **options: object
) -> list[StepReport]:
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    arguments = {"objective": classification, "lr_at": lambda step: 1.0, **options}
    return list(train(model, batches, optimizer=optimizer, compute=compute, **arguments))  # type: ignore[arg-type]


@pytest.mark.parametrize("micro_batch_size", [1, 2, 4])
@pytest.mark.parametrize("make_model", [make_classifier, make_student])
def test_accumulation_equals_the_whole_batch(make_model: type, micro_batch_size: int, fp32: Compute) -> None:
    examples = make_examples(21)  # 21 = 2 · 8 + 5: the last batch is ragged
    whole, parts = make_model(), make_model()
    expected = run(whole, step_batches(examples, 8, 8), fp32)
    actual = run(parts, step_batches(examples, 8, micro_batch_size), fp32)
    assert [r.count for r in actual] == [r.count for r in expected]
    # sums in another order differ in the last digits; the error grows over six steps
    np.testing.assert_allclose([r.loss for r in actual], [r.loss for r in expected], rtol=1e-5)
    for name, parameter in whole.named_parameters():
        torch.testing.assert_close(dict(parts.named_parameters())[name], parameter, rtol=1e-4, atol=1e-6)


def test_a_step_reports_the_mean_loss_over_its_examples(fp32: Compute) -> None:
    examples = make_examples(6)
    model = make_classifier()
    batch = examples.batch(np.arange(6))
    expected = classification(model, batch).total.item() / 6
    report = run(model, iter([StepBatch([batch], 6, 0, "a batch")]), fp32)[0]
    assert report.loss == pytest.approx(expected, rel=1e-6)
    assert report.step == 1


def test_only_adapters_norms_and_head_change(fp32: Compute) -> None:
    model = make_classifier()
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    run(model, step_batches(make_examples(16), 8, 8), fp32)
    changed = {
        name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])
    }
    assert changed == {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def test_gradients_are_clipped_to_the_given_norm(fp32: Compute) -> None:
    free, clipped = make_classifier(), make_classifier()
    norm = run(free, step_batches(make_examples(8), 8, 8, epochs=1), fp32, max_grad_norm=None)[0].grad_norm
    before = {name: p.detach().clone() for name, p in clipped.named_parameters()}
    run(clipped, step_batches(make_examples(8), 8, 8, epochs=1), fp32, max_grad_norm=norm / 4)
    moved = sum((p.detach() - before[name]).square().sum() for name, p in clipped.named_parameters())
    # plain SGD at rate 0.1 moves by 0.1 times the clipped norm
    assert float(moved) ** 0.5 == pytest.approx(0.1 * norm / 4, rel=1e-3)


def test_lr_follows_the_schedule_in_every_group(fp32: Compute) -> None:
    model = make_classifier()
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        [{"params": parameters[:3], "lr": 1.0}, {"params": parameters[3:], "lr": 4.0}]
    )
    lr_at = warmup_then("linear", warmup_steps=1, max_steps=4)
    seen = []
    batches = step_batches(make_examples(16), 8, 8)
    for _ in train(model, batches, classification, optimizer, lr_at=lr_at, compute=fp32):
        seen.append([group["lr"] for group in optimizer.param_groups])
    assert seen == [[lr_at(step), 4 * lr_at(step)] for step in range(4)]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_ends_the_run_before_the_step(value: float, fp32: Compute) -> None:
    model = make_classifier()
    calls = 0

    def not_finite(model: nn.Module, batch: Batch) -> Loss:
        nonlocal calls
        calls += 1
        loss = classification(model, batch)
        return loss if calls < 3 else Loss(loss.total * value, loss.logits)

    reports = []
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    loop = train(
        model,
        step_batches(make_examples(40), 8, 8),
        not_finite,
        optimizer,
        lr_at=lambda step: 1.0,
        compute=fp32,
    )
    before = {}
    for _ in range(2):
        reports.append(next(loop))
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
    with pytest.raises(
        ColakitError, match=r"step 3: loss (nan|inf) and gradient norm nan on a batch"
    ) as error:
        next(loop)
    assert error.value.exit_code == EXIT_FAILED
    assert len(reports) == 2
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


def test_same_seed_same_losses(fp32: Compute) -> None:
    first = run(make_classifier(), step_batches(make_examples(32), 8, 8), fp32)
    second = run(make_classifier(), step_batches(make_examples(32), 8, 8), fp32)
    assert [r.loss for r in first] == [r.loss for r in second]


def test_two_threads_follow_one_within_rounding(fp32: Compute) -> None:
    losses = []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            losses.append(
                [r.loss for r in run(make_classifier(), step_batches(make_examples(64), 16, 16), fp32)]
            )
    finally:
        torch.set_num_threads(before)
    # threads sum in another order: errors in the last digits, which grow over 8 steps
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-5)


def test_sixteen_sentences_can_be_overfitted(fp32: Compute) -> None:
    model, examples = make_classifier(), make_examples(16)
    # with a constant rate, rounding on some processors makes the last step diverge
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    batches = step_batches(examples, 16, 16, epochs=150)
    losses = [
        r.loss
        for r in train(
            model, batches, classification, optimizer, lr_at=lambda step: 1 - step / 150, compute=fp32
        )
    ]
    assert losses[-1] < 0.05 < losses[0]


def test_student_trained_on_logits_only_reproduces_them(fp32: Compute) -> None:
    model, examples = make_student(), make_examples(16, with_teacher=True)
    assert examples.teacher_logits is not None
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-2)
    objective = distillation(kd_weight=constant(1.0), temperature=constant(1.0), soft_loss="mse")
    batches = step_batches(examples, 16, 16, epochs=200)
    for _ in train(model, batches, objective, optimizer, lr_at=lambda step: 1.0, compute=fp32):
        pass
    batch = examples.batch(np.arange(16))
    actual = model(batch.input_ids, batch.attention_mask)
    torch.testing.assert_close(actual, torch.from_numpy(examples.teacher_logits), rtol=0, atol=0.1)


def test_bf16_follows_fp32_within_its_precision(fp32: Compute) -> None:
    bf16 = Compute(torch.device("cpu"), torch.bfloat16, "a test")
    model = bf16.place(make_classifier())
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    frozen = {p.dtype for p in model.parameters() if not p.requires_grad and p.ndim > 1}
    assert frozen == {torch.bfloat16}
    expected = [r.loss for r in run(make_classifier(), step_batches(make_examples(32), 8, 8), fp32)]
    actual = [r.loss for r in run(model, step_batches(make_examples(32), 8, 8), bf16)]
    # bf16 keeps 8 bits: 2^-8 relative per product, averaged over a batch
    np.testing.assert_allclose(actual, expected, rtol=2e-2)


def test_only_the_body_of_a_gpt_is_stored_in_bf16() -> None:
    bf16 = Compute(torch.device("cpu"), torch.bfloat16, "a test")
    model = bf16.place(make_classifier().requires_grad_(False))
    low = {name for name, p in model.named_parameters() if p.dtype == torch.bfloat16}
    assert low
    assert all(name.endswith((".base.weight", "wte.weight", "wpe.weight")) for name in low)
    student = bf16.place(make_student().requires_grad_(False))
    assert {p.dtype for p in student.parameters()} == {torch.float32}


# -- out of memory


def out_of_memory_above(limit: int, on_backward: bool = False) -> Objective:
    """Classification that raises out-of-memory errors for batches of more than `limit` sentences."""

    class RaiseOnBackward(torch.autograd.Function):
        @staticmethod
        def forward(ctx: object, total: torch.Tensor) -> torch.Tensor:
            return total.clone()

        @staticmethod
        def backward(ctx: object, gradient: torch.Tensor) -> torch.Tensor:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    def objective(model: nn.Module, batch: Batch) -> Loss:
        loss = classification(model, batch)  # the retry must repeat the random draws of the failed attempt
        if len(batch) <= limit:
            return loss
        if on_backward:
            return Loss(RaiseOnBackward.apply(loss.total), loss.logits)
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    return objective


def make_student_with_dropout() -> nn.Module:
    torch.manual_seed(0)
    return DistilRNN(RNNConfig(VOCABULARY, embedding_size=8, hidden_size=8, dropout=0.3)).train()


@pytest.mark.parametrize("on_backward", [False, True], ids=["forward", "backward"])
@pytest.mark.parametrize("make_model", [make_classifier, make_student_with_dropout])
def test_run_after_out_of_memory_equals_one_with_smaller_micro_batches(
    make_model: Callable[[], nn.Module], on_backward: bool, fp32: Compute
) -> None:
    examples = make_examples(40)
    small, reduced = make_model(), make_model()
    torch.manual_seed(1)
    expected = run(small, step_batches(examples, 8, 2), fp32)
    torch.manual_seed(1)
    actual = run(reduced, step_batches(examples, 8, 8), fp32, objective=out_of_memory_above(3, on_backward))
    assert [r.max_micro_batch_size for r in expected] == [None] * 10
    assert [r.max_micro_batch_size for r in actual] == [2] * 10  # 8, 4, 2; failed sizes are not tried again
    assert [r.loss for r in actual] == [r.loss for r in expected]
    assert [r.count for r in actual] == [r.count for r in expected]
    assert [len(r.predictions) for r in actual] == [4] * 10
    assert all(torch.equal(p, dict(reduced.named_parameters())[name]) for name, p in small.named_parameters())


def test_step_that_runs_out_of_memory_is_rolled_back(fp32: Compute) -> None:
    examples = make_examples(40)
    calls = 0

    def failing(model: nn.Module, batch: Batch) -> Loss:
        nonlocal calls
        calls += 1
        loss = classification(model, batch)
        if calls == 6:  # the last micro-batch of the third step
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return loss

    def sizes() -> Iterator[StepBatch]:
        for step, index in enumerate(examples.plan_epoch(8, 0, 0)):
            yield StepBatch(micro_batches(examples, index, 4 if step < 2 else 2), len(index), 0, "a batch")

    expected_model, actual_model = make_student_with_dropout(), make_student_with_dropout()
    torch.manual_seed(1)
    expected = run(expected_model, sizes(), fp32)
    torch.manual_seed(1)
    actual = run(actual_model, step_batches(examples, 8, 4, epochs=1), fp32, objective=failing)
    assert [r.max_micro_batch_size for r in actual] == [None, None, 2, 2, 2]
    assert [r.loss for r in actual] == [r.loss for r in expected]
    parameters = dict(actual_model.named_parameters())
    assert all(torch.equal(p, parameters[name]) for name, p in expected_model.named_parameters())


@pytest.mark.parametrize("limit", [3, 5, 8])
@pytest.mark.parametrize("micro_batch_size", [2, 6, 8])
def test_micro_batches_never_split_pairs(micro_batch_size: int, limit: int, fp32: Compute) -> None:
    """Accumulation and halving after out-of-memory errors give the steps of the whole batch."""
    examples, objective = make_pairs(11), discrimination(0.3, 0.7)

    def limited(model: nn.Module, batch: Batch) -> Loss:
        if len(batch) > limit:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return objective(model, batch)

    whole, parts = make_classifier(), make_classifier()
    expected = run(whole, step_batches(examples, 8, 8), fp32, objective=objective)
    actual = run(parts, step_batches(examples, 8, micro_batch_size), fp32, objective=limited)
    np.testing.assert_allclose([r.loss for r in actual], [r.loss for r in expected], rtol=1e-5)
    max_micro_batch_size = actual[-1].max_micro_batch_size
    assert (max_micro_batch_size is None) == (micro_batch_size <= limit)
    assert max_micro_batch_size is None or max_micro_batch_size in (2, 4)


def test_pair_that_exceeds_memory_is_an_error(fp32: Compute) -> None:
    with pytest.raises(ColakitError, match="out of memory with micro-batches of 2"):
        run(make_classifier(), step_batches(make_pairs(4), 8, 8), fp32, objective=out_of_memory_above(1))


def test_pair_losses_of_processes_sum_to_the_whole_batch() -> None:
    examples, objective, model = make_pairs(11), discrimination(0.3, 0.7), make_classifier()
    for index in examples.plan_epoch(8, 0, 0):
        expected = objective(model, examples.batch(index)).total.item()
        for world_size in (2, 3):
            shares = [
                share
                for rank in range(world_size)
                for share in micro_batches(examples, index, 2, rank=rank, world_size=world_size)
            ]
            actual = sum(objective(model, share).total.item() * share.weight for share in shares)
            assert actual == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("max_steps", [1, 4, 5, 9, 12])
def test_training_starts_at_any_step_and_ends_at_max_steps(max_steps: int) -> None:
    examples = make_examples(30)
    assert steps_per_epoch(examples, 8) == 4

    def taken(start: int) -> list[tuple[list[int], int, str, float]]:
        actual = steps(
            examples,
            LoopSettings.model_construct(batch_size=8, micro_batch_size=3),
            seed=5,
            start=start,
            max_steps=max_steps,
            processes=Processes(),
        )
        return [
            (
                torch.cat([micro.input_ids.flatten() for micro in step.micro_batches]).tolist(),
                step.count,
                step.name,
                step.micro_batches[0].progress,
            )
            for step in actual
        ]

    every = taken(0)
    assert len(every) == max_steps
    assert [progress for *_, progress in every] == pytest.approx(
        [step / max_steps for step in range(1, max_steps + 1)]
    )
    assert all(taken(start) == every[start:] for start in range(max_steps + 1))
    if max_steps > 4:
        assert every[4][2] == "batch 1 of epoch 2"
        assert every[4][0] != every[0][0]


def test_sentence_that_exceeds_memory_is_an_error(fp32: Compute) -> None:
    with pytest.raises(ColakitError, match=r"step 1: out of memory with micro-batches of 1 \(CUDA") as error:
        run(make_classifier(), step_batches(make_examples(8), 8, 8), fp32, objective=out_of_memory_above(0))
    assert error.value.exit_code == EXIT_FAILED
    assert "max_tokens" in str(error.value)
