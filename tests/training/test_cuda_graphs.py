"""CUDA graphs of training steps: recording, padding and replay, with a fake recorder."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from colakit.data.batches import Batch
from colakit.models.gpt.config import GPTConfig
from colakit.models.gpt.model import GPT, GPTClassifier
from colakit.models.lora import LoRAConfig, inject, train_modules
from colakit.runtime.device import Compute
from colakit.storage.run_folder import RunFolder
from colakit.training.cuda_graphs import WIDTH, Gradients, Replay, StepGraphs
from colakit.training.loop import StepBatch, StepReport, train
from colakit.training.objectives import classification

Run = Callable[..., tuple[int, str, str]]
Work = Callable[[], Gradients]
LENGTHS = (5, 8, 11, 3, 12, 20)  # widest sentences of the batches: padded to 8, 8, 16, 8, 16 and 20
CLOSE = {"rtol": 1e-4, "atol": 1e-5}  # fp32 sums in another order, over several steps


class Again:
    """Repeats the recorded work and writes its results in place, like a CUDA graph."""

    def __init__(self, parameters: Sequence[nn.Parameter], spoil: Callable[[Tensor], Tensor] = Tensor.clone):
        self.parameters, self.spoil = parameters, spoil
        self.count = 0

    def rehearse(self, work: Work) -> Gradients:
        return work()

    def record(self, work: Work) -> tuple[Gradients, Replay]:
        self.count += 1
        results = work()
        kept = self.written(results)

        def replay() -> None:
            for target, value in zip(kept, self.written(work()), strict=True):
                target.copy_(self.spoil(value))

        return results, replay

    def written(self, results: Gradients) -> list[Tensor]:
        logits = [logits for logits, _ in results.predictions]
        grads = [p.grad for p in self.parameters if p.grad is not None]
        return [results.total, results.norm, *logits, *grads]


class Refusing(Again):
    def record(self, work: Work) -> tuple[Gradients, Replay]:
        work()
        raise RuntimeError("operation not permitted when stream is capturing\nand more lines")


def classifier(dropout: float, layers: tuple[int, ...] | None = None) -> GPTClassifier:
    torch.manual_seed(0)
    config = GPTConfig(50, 20, 16, 2, 2, None, "gelu_new", 1e-5, dropout, dropout, dropout)
    model = GPT(config).classifier(2)
    inject(model, LoRAConfig(rank=2, layers_to_transform=layers))
    train_modules(model, layers=layers)
    return model.train()


def batch(number: int, sentences: int = 4) -> StepBatch:
    generator = torch.Generator().manual_seed(number)
    longest = LENGTHS[number % len(LENGTHS)]
    lengths = torch.randint(1, longest + 1, (sentences,), generator=generator)
    lengths[0] = longest
    mask = (torch.arange(longest) < lengths[:, None]).long()
    ids = torch.randint(50, (sentences, longest), generator=generator) * mask
    labels = torch.randint(2, (sentences,), generator=generator)
    return StepBatch([Batch(ids, mask, labels)], sentences, 0, f"batch {number}")


def fit(
    compute: Compute,
    batches: Sequence[StepBatch],
    recorder: type[Again] | Callable[..., Again] | None,
    dropout: float = 0.0,
    layers: tuple[int, ...] | None = None,
) -> tuple[list[StepReport], nn.Module, StepGraphs | None]:
    model = classifier(dropout, layers)
    parameters = [p for p in model.parameters() if p.requires_grad]
    made = None
    if recorder is not None:
        made = StepGraphs(parameters, compute.device, batch_size=4, widest=20, recorder=recorder(parameters))
    optimizer = torch.optim.AdamW(parameters, lr=0.01)
    options = {"lr_at": lambda step: 1.0, "compute": compute, "max_grad_norm": 0.5, "graphs": made}
    return list(train(model, batches, classification, optimizer, **options)), model, made  # type: ignore[arg-type]


def assert_same_training(
    one: tuple[list[StepReport], nn.Module, object], other: tuple[list[StepReport], nn.Module, object]
) -> None:
    assert_close([r.loss for r in one[0]], [r.loss for r in other[0]], **CLOSE)
    norms = ([r.grad_norm for r in each[0]] for each in (one, other))
    assert_close(*norms, rtol=1e-3, atol=1e-5)  # without AVX512 they differ by 2.4e-4 after ten steps
    for first, second in zip(one[0], other[0], strict=True):
        for (logits, labels), (wanted, truth) in zip(first.predictions, second.predictions, strict=True):
            assert_close(logits, wanted, **CLOSE)
            assert torch.equal(labels, truth)
    assert_close(one[1].state_dict(), other[1].state_dict(), **CLOSE)


def test_replayed_steps_equal_eager_steps(fp32: Compute) -> None:
    batches = [batch(number) for number in range(12)]
    assert_same_training(fit(fp32, batches, Again), fit(fp32, batches, None))


def test_replayed_steps_use_the_cached_states_of_their_batch(fp32: Compute) -> None:
    body = classifier(0.0, layers=(1,)).transformer
    plain = [batch(number) for number in range(12)]
    with torch.no_grad():
        known = [
            replace(step, micro_batches=[replace(b, states=body.frozen_states(b.input_ids))])
            for step in plain
            for b in step.micro_batches
        ]
    wanted, actual = fit(fp32, plain, None, layers=(1,)), fit(fp32, known, Again, layers=(1,))
    assert actual[2] is not None
    assert set(actual[2].recorded) == {WIDTH, 2 * WIDTH, 20}
    assert_same_training(actual, wanted)


def test_one_graph_for_each_width_and_none_for_other_batch_sizes(fp32: Compute) -> None:
    batches = [*(batch(number) for number in range(12)), batch(0, sentences=3)]
    reports, _, made = fit(fp32, batches, Again)
    assert made is not None
    assert set(made.recorded) == {WIDTH, 2 * WIDTH, 20}  # 20 is the context length
    assert made.recorder.count == 3  # type: ignore[attr-defined]
    assert len(reports) == 13
    assert reports[-1].predictions[0][0].shape == (3, 2)


def test_micro_batches_are_not_recorded(fp32: Compute) -> None:
    (whole,) = batch(1).micro_batches
    halves = [whole._part(slice(0, 2)), whole._part(slice(2, 4))]
    parted = StepBatch(halves, 4, 0, "halves")
    reports, _, made = fit(fp32, [parted], Again)
    assert made is not None
    assert made.recorded == {}
    assert len(reports[0].predictions) == 2


def test_recording_preserves_the_random_state(fp32: Compute) -> None:
    def one_by_one(fresh: bool) -> Iterator[float]:
        """Take three steps, with graphs made anew before each, as a resumed run does, or once."""
        model = classifier(dropout=0.3)
        parameters = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(parameters, lr=0.01)
        made = None
        for _ in range(3):
            if fresh or made is None:
                made = StepGraphs(
                    parameters, fp32.device, batch_size=4, widest=20, recorder=Again(parameters)
                )
            options = {"lr_at": lambda step: 1.0, "compute": fp32, "graphs": made}
            (report,) = train(model, [batch(1)], classification, optimizer, **options)  # type: ignore[arg-type]
            yield report.loss

    assert list(one_by_one(fresh=True)) == list(one_by_one(fresh=False))


@pytest.mark.parametrize(
    ("recorder", "why"),
    [
        (lambda parameters: Again(parameters, lambda value: value * 1.5), "replayed loss is"),
        (Refusing, "operation not permitted when stream is capturing"),
    ],
)
def test_training_continues_eagerly_with_the_same_bits_after_a_graph_failure(
    recorder: Callable[..., Again], why: str, fp32: Compute
) -> None:
    batches = [batch(number) for number in range(6)]
    reports, model, made = fit(fp32, batches, recorder, dropout=0.3)
    wanted, plain, _ = fit(fp32, batches, None, dropout=0.3)
    assert made is not None
    assert made.failure is not None
    assert made.failure.startswith(why)
    assert made.recorded == {}
    assert [r.loss for r in reports] == [r.loss for r in wanted]
    for one, other in zip(model.parameters(), plain.parameters(), strict=True):
        assert torch.equal(one, other)


def test_non_finite_loss_is_reported_with_graphs(fp32: Compute) -> None:
    model = classifier(0.0)
    parameters = [p for p in model.parameters() if p.requires_grad]
    parameters[0].data.fill_(float("nan"))
    made = StepGraphs(parameters, fp32.device, batch_size=4, widest=20, recorder=Again(parameters))
    actual = made.gradients(batch(0).micro_batches[0], lambda whole: nan_pass(model, whole, parameters))
    assert actual is not None  # a NaN in eager steps too is not a graph failure
    assert made.failure is None
    assert actual.total.isnan()


def nan_pass(model: nn.Module, whole: Batch, parameters: list[nn.Parameter]) -> Gradients:
    loss = classification(model, whole)
    loss.total.backward()
    return Gradients(loss.total.detach(), torch.nn.utils.clip_grad_norm_(parameters, 1.0), [])


def test_graphs_need_a_gpu_and_the_setting(fp32: Compute) -> None:
    gpu = replace(fp32, device=torch.device("cuda", 0))
    assert fp32.with_graphs("auto") is fp32
    assert gpu.with_graphs("never") is gpu
    assert gpu.with_graphs("auto").graphs
    assert gpu.with_graphs("auto").arithmetic == "cuda, torch.float32, graphs"


@pytest.mark.parametrize("refuses", [False, True])
def test_finetune_uses_graphs_or_explains_why_not(
    refuses: bool, toy: Path, colakit: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    common = ["finetune", "--base", toy / "base", "--data", toy / "corpus", "--epochs", 2]
    common += ["--set", "cpu_kernels=never", "--set", "finetune.base_dropout=0"]
    code, _, err = colakit(*common, "--out", tmp_path / "plain")
    assert code == 0, err
    made: list[StepGraphs] = []

    class OnCpu(StepGraphs):
        def __init__(self, parameters, device, **sizes) -> None:  # type: ignore[no-untyped-def]
            stand_in = (Refusing if refuses else Again)(parameters)
            super().__init__(parameters, device, recorder=stand_in, **sizes)
            made.append(self)

    monkeypatch.setattr("colakit.training.trainer.StepGraphs", OnCpu)
    monkeypatch.setattr(Compute, "with_graphs", lambda self, wanted: replace(self, graphs=wanted == "auto"))
    recorded = [*common, "--set", "cuda_graphs=auto"]
    code, _, err = colakit(*recorded, "--out", tmp_path / "graphs")
    assert code == 0, err
    assert ("continuing without CUDA graphs (operation not permitted" in " ".join(err.split())) == refuses
    assert bool(made[0].recorded) != refuses
    actual, wanted = (
        json.loads((tmp_path / name / "summary.json").read_text())["splits"]["val"]
        for name in ("graphs", "plain")
    )
    assert actual["loss"] == pytest.approx(wanted["loss"], rel=1e-3)

    if refuses:
        state = RunFolder(tmp_path / "graphs").checkpoints.load(pytest.fail).state
        assert state["graphs_failed"] is True

    code, _, err = colakit(*common, "--out", tmp_path / "graphs", "--resume", "--set", "cuda_graphs=never")
    assert code == 2
    assert "--set cuda_graphs=auto" in err
    code, _, err = colakit(*recorded, "--out", tmp_path / "plain", "--resume")
    assert code == 0, err  # what began without goes on without
