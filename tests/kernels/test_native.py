"""The kernels in C equal what torch computes, and are done without where they cannot be had."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.testing import assert_close

from colakit.errors import ColakitError
from colakit.kernels.attention import aligned_ends, short_attention
from colakit.kernels.fused import Dropout, gelu_tanh
from colakit.kernels.linear_cross_entropy import IGNORE_INDEX
from colakit.kernels.native import MAX_TOKENS, DropoutMask, Kernels, find_compiler, kernels_for
from colakit.models.gpt.config import GPTConfig
from colakit.models.gpt.model import GPT, set_dropout
from colakit.models.lora import LoRAConfig, inject
from colakit.runtime.device import Compute, resolve_compute
from colakit.training.loop import StepBatch, train

TIGHT = {"rtol": 1e-5, "atol": 1e-5}  # fp32; sums are taken in another order
ROUNDED = {"rtol": 2**-7, "atol": 2**-7}  # bf16 keeps eight bits
DTYPES = [torch.float32, torch.bfloat16]

pytestmark = pytest.mark.skipif(find_compiler() is None, reason="needs a C compiler")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("kernels")


@pytest.fixture
def compute(folder: Path, fp32: Compute) -> Compute:
    """The CPU in full precision, with kernels."""
    return fp32.with_kernels("always", folder)


def made(dtype: torch.dtype, folder: Path) -> Kernels:
    compiler = find_compiler()
    assert compiler is not None
    return Kernels(dtype, compiler, folder)


def starts_of(*lengths: int) -> Tensor:
    """Return where sentences of these lengths start, one after another, and where the last one ends."""
    return F.pad(torch.tensor(lengths).cumsum(0), (1, 0))


def plain_attention(qkv: Tensor, factors: Tensor | None = None) -> Tensor:
    """Causal attention of (B, T, 3, H, D) in fp32; `factors` (B, H, T, T) are dropout's."""
    q, k, v = qkv.float().permute(2, 0, 3, 1, 4)
    future = torch.ones(q.shape[2], q.shape[2], dtype=torch.bool).triu(1)
    probs = (q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5).masked_fill(future, -torch.inf).softmax(dim=-1)
    return ((probs if factors is None else probs * factors) @ v).transpose(1, 2)


@pytest.mark.parametrize("dtype", DTYPES)
def test_gelu_and_its_derivative(dtype: torch.dtype, folder: Path) -> None:
    x = torch.cat([torch.linspace(-9, 9, 4001), torch.tensor([-1e4, -60.0, 60.0, 1e4])]).to(dtype)
    y, derivative = made(dtype, folder).gelu(x)
    leaf = x.double().requires_grad_()
    expected = F.gelu(leaf, approximate="tanh")
    tolerance = TIGHT if dtype == torch.float32 else ROUNDED
    assert_close(y.double(), expected, **tolerance)
    assert_close(derivative.double(), torch.autograd.grad(expected.sum(), leaf)[0], **tolerance)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "vocabulary"), [(1, 1), (3, 17), (50, 1000)])
def test_cross_entropy_and_its_gradient(dtype: torch.dtype, rows: int, vocabulary: int, folder: Path) -> None:
    torch.manual_seed(rows)
    logits = (20 * torch.randn(rows, vocabulary) + 300).to(dtype)  # whose exponentials overflow
    targets, grad_nll = torch.randint(vocabulary, (rows,)), torch.randn(rows)
    leaf = logits.float().requires_grad_()
    expected = F.cross_entropy(leaf, targets, reduction="none")
    (wanted,) = torch.autograd.grad(expected, leaf, grad_nll)
    kernels = made(dtype, folder)
    nll, log_sums = kernels.cross_entropy(logits, targets)
    assert_close(nll, expected, rtol=1e-5, atol=1e-4)  # of sums of some hundred
    gradient = kernels.cross_entropy_backward(logits, targets, log_sums, grad_nll)
    assert gradient.data_ptr() == logits.data_ptr()
    assert_close(
        gradient.float(), wanted, **({"rtol": 1e-4, "atol": 1e-5} if dtype.itemsize == 4 else ROUNDED)
    )


def test_a_token_that_cannot_be_keeps_a_gradient_of_zero(folder: Path) -> None:
    kernels, targets = made(torch.float32, folder), torch.tensor([1])
    logits = torch.tensor([[-torch.inf, 2.0, 2.0]])
    nll, log_sums = kernels.cross_entropy(logits, targets)
    assert nll.item() == pytest.approx(math.log(2))
    gradient = kernels.cross_entropy_backward(logits, targets, log_sums, torch.ones(1))
    assert_close(gradient, torch.tensor([[0.0, -0.5, 0.5]]))


@pytest.mark.parametrize("target", [-100, 7])
def test_a_target_outside_the_vocabulary_is_refused(target: int, folder: Path) -> None:
    with pytest.raises(ValueError, match="from 0 to 6"):
        made(torch.float32, folder).cross_entropy(torch.randn(2, 7), torch.tensor([0, target]))


def test_a_language_models_loss_is_the_same_with_kernels(compute: Compute, fp32: Compute) -> None:
    torch.manual_seed(0)
    model = GPT(GPTConfig(vocab_size=50, num_positions=90, width=64, num_layers=1, num_heads=1))
    set_dropout(model, 0.0)
    ids = torch.randint(50, (3, 81))
    ids[0, 60:] = IGNORE_INDEX
    inputs, targets = ids[:, :-1].clamp_min(0), ids[:, 1:]

    def loss_and_gradients(how: Compute) -> list[Tensor]:
        with how.autocast():
            loss = model(inputs, targets=targets)
        return [loss.detach(), *torch.autograd.grad(loss, list(model.parameters()))]

    for found, wanted in zip(loss_and_gradients(compute), loss_and_gradients(fp32), strict=True):
        assert_close(found, wanted, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("tokens", "width"), [(1, 64), (5, 64), (16, 64), (17, 128), (MAX_TOKENS, 64)])
def test_attention_and_its_gradient_sentence_by_sentence(
    dtype: torch.dtype, tokens: int, width: int, folder: Path
) -> None:
    torch.manual_seed(tokens)
    lengths = [tokens, max(1, tokens // 3), tokens]
    starts = starts_of(*lengths)
    qkv, grad = (torch.randn(sum(lengths), *shape, 3, width).to(dtype) for shape in ((3,), ()))
    kernels, nothing = made(dtype, folder), DropoutMask(0.0, 0)
    leaf = qkv.float().requires_grad_()
    expected = torch.cat([plain_attention(part[None])[0] for part in leaf.split(lengths)])
    tolerance = TIGHT if dtype == torch.float32 else ROUNDED
    assert_close(kernels.attention(qkv, starts, nothing).float(), expected, **tolerance)
    (wanted,) = torch.autograd.grad(expected, leaf, grad.float())
    assert_close(kernels.attention_backward(qkv, starts, grad, nothing).float(), wanted, **tolerance)


def test_the_gradient_of_attention_uses_the_same_dropout_mask(folder: Path) -> None:
    torch.manual_seed(0)
    batch, tokens, heads, width = 3, 20, 2, 64
    kernels, mask = made(torch.float32, folder), DropoutMask(0.3, 1234567890123456789)
    qkv = torch.zeros(batch, tokens, 3, heads, width)
    qkv[:, :, 2] = torch.eye(tokens, width)[:, None]  # what comes out are the weights themselves
    starts = starts_of(*[tokens] * batch)
    weights = kernels.attention(qkv.flatten(0, 1), starts, mask).view(batch, tokens, heads, width)
    weights = weights[..., :tokens].transpose(1, 2)  # (B, H, T, T)
    factors = weights * torch.arange(1, tokens + 1)[:, None]  # over 1/(number of tokens seen)
    assert_close(factors.round(decimals=4).unique(), torch.tensor([0.0, 1 / 0.7]), rtol=0.0, atol=1e-4)
    seen = factors[torch.ones(batch, heads, tokens, tokens).tril() > 0]
    assert (seen == 0).double().mean().item() == pytest.approx(0.3, abs=5 * (0.21 / len(seen)) ** 0.5)

    qkv, grad = torch.randn_like(qkv), torch.randn(batch, tokens, heads, width)
    leaf = qkv.clone().requires_grad_()
    expected = plain_attention(leaf, factors)
    (wanted,) = torch.autograd.grad(expected, leaf, grad)
    qkv, grad = qkv.flatten(0, 1), grad.flatten(0, 1)
    assert_close(kernels.attention(qkv, starts, mask), expected.flatten(0, 1), **TIGHT)
    assert_close(kernels.attention_backward(qkv, starts, grad, mask), wanted.flatten(0, 1), **TIGHT)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("probability", [0.1, 0.5])
def test_a_branch_is_dropped_and_so_is_its_gradient(
    dtype: torch.dtype, probability: float, folder: Path
) -> None:
    count = 100_003  # no multiple of what is computed at a time
    kernels, mask = made(dtype, folder), DropoutMask(probability, 42)
    x, ones = torch.randn(count), torch.ones(count, dtype=dtype)
    added = kernels.add_dropped(x, ones, mask) - x
    dropped = (added.abs() < 0.5).double().mean().item()
    assert dropped == pytest.approx(probability, abs=5 * (probability * (1 - probability) / count) ** 0.5)
    assert_close(added[added > 0.5].max(), torch.tensor(1 / (1 - probability)), rtol=1e-4, atol=1e-4)
    grad = kernels.add_dropped_backward(torch.ones(count), mask)
    assert torch.equal(grad > 0, added > 0.5)
    assert_close(grad.max().float(), torch.tensor(1 / (1 - probability)), rtol=2**-8, atol=0.0)


def test_draws_of_neighbours_and_of_other_seeds_are_independent(folder: Path) -> None:
    count, kernels = 100_000, made(torch.float32, folder)
    nothing, ones = torch.zeros(count), torch.ones(count)
    first, *others = [
        kernels.add_dropped(nothing, ones, DropoutMask(0.5, seed)) != 0
        for seed in (7, 8, -7, 7 + 2**32, 8 + 2**32)
    ]
    neighbours = [(first[lag:], first[:-lag]) for lag in (1, 2, 16, 64)]
    for one, other in neighbours + [(first, other) for other in others]:
        agreeing = (one == other).double().mean().item()
        assert agreeing == pytest.approx(0.5, abs=5 * 0.5 / count**0.5)


def test_a_mask_is_drawn_from_torchs_generator() -> None:
    torch.manual_seed(3)
    first, second = DropoutMask.draw(0.1), DropoutMask.draw(0.1)
    torch.manual_seed(3)
    assert DropoutMask.draw(0.1) == first != second
    state = torch.get_rng_state()
    assert DropoutMask.draw(0.0).arguments == (0, 0, 1.0)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("value", [torch.nan, -torch.nan, torch.inf])
@pytest.mark.parametrize("dtype", DTYPES)
def test_values_that_are_not_finite_stay_so(dtype: torch.dtype, value: float, folder: Path) -> None:
    kernels = made(dtype, folder)
    assert not kernels.gelu(torch.full((40,), value, dtype=dtype))[0].isfinite().any()
    qkv = torch.zeros(5, 3, 1, 64, dtype=dtype)
    qkv[1, 2, 0, 5] = value  # of one value: the tokens of its sentence from there on see it
    seen = kernels.attention(qkv, starts_of(3, 2), DropoutMask(0.0, 0))[:, 0, 5].isfinite()
    assert seen[1:].tolist() == [False, False, True, True]
    ones = torch.ones(40, dtype=dtype)
    assert not kernels.add_dropped(torch.full((40,), value), ones, DropoutMask(0.1, 1)).isfinite().any()


def test_the_number_of_threads_changes_no_bit(folder: Path) -> None:
    kernels, mask, found = made(torch.float32, folder), DropoutMask(0.1, 5), []
    torch.manual_seed(0)
    qkv, grad, starts = torch.randn(200, 3, 3, 64), torch.randn(200, 3, 64), starts_of(*[9, 1, 30] * 5)
    threads = torch.get_num_threads()
    for count in (1, 3):
        torch.set_num_threads(count)
        found.append([
            *kernels.gelu(qkv),
            kernels.attention(qkv, starts, mask),
            kernels.attention_backward(qkv, starts, grad, mask),
            kernels.add_dropped(grad, grad, mask),
            kernels.add_dropped_backward(grad, mask),
        ])  # fmt: skip
    torch.set_num_threads(threads)
    for one, three in zip(*found, strict=True):
        assert torch.equal(one, three)


# -- in a model


def small(dropout: float) -> torch.nn.Module:
    torch.manual_seed(0)
    rates = dict.fromkeys(("embedding_dropout", "attention_dropout", "residual_dropout"), dropout)
    model = GPT(GPTConfig(31, 80, 128, 3, 2, **rates)).classifier(2)
    inject(model, LoRAConfig(rank=2))
    for name, parameter in model.named_parameters():
        if "lora_b" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return model


def gradients(model: torch.nn.Module, compute: Compute, tokens: int) -> list[Tensor]:
    torch.manual_seed(1)
    ids, lengths = torch.randint(31, (6, tokens)), torch.randint(1, tokens + 1, (6, 1))
    with compute.autocast():
        loss = model(ids, (torch.arange(tokens) < lengths).long()).square().sum()
    loss.backward()
    return [loss.detach(), *(p.grad for p in model.parameters() if p.grad is not None)]


@pytest.mark.parametrize("tokens", [9, MAX_TOKENS + 1])
def test_gradients_of_a_tuned_model_are_the_plain_ones(tokens: int, compute: Compute, fp32: Compute) -> None:
    model = small(dropout=0.0)
    expected = gradients(copy.deepcopy(model), fp32, tokens)
    found = gradients(model, compute, tokens)
    assert len(found) > 20
    for one, two in zip(found, expected, strict=True):
        assert_close(one, two, **TIGHT)


def test_with_dropout_the_mean_of_many_gradients_is_the_plain_one(compute: Compute) -> None:
    torch.manual_seed(0)
    layer, x = Dropout(0.25), torch.zeros(64, 64)
    branch = torch.randn(64, 64, requires_grad=True)
    with compute.autocast():
        for _ in range(400):
            layer.add_to(x, branch).sum().backward()
    assert branch.grad is not None
    assert_close(branch.grad / 400, torch.ones(64, 64), rtol=0.0, atol=5 * (0.25 / 0.75 / 400) ** 0.5)


def test_kernels_are_used_in_training_only(compute: Compute, monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[str] = []

    def noted(name: str) -> Callable[..., object]:
        real = getattr(Kernels, name)
        return lambda *arguments: (used.append(name), real(*arguments))[1]

    for name in ("gelu", "attention", "attention_backward", "add_dropped", "add_dropped_backward"):
        monkeypatch.setattr(Kernels, name, noted(name))
    model = small(dropout=0.1)
    gradients(model, compute, tokens=9)
    assert set(used) == {"gelu", "attention", "attention_backward", "add_dropped", "add_dropped_backward"}
    used.clear()
    with torch.no_grad(), compute.autocast():
        model(torch.randint(31, (2, 9)), torch.ones(2, 9, dtype=torch.long))
    gelu_tanh(torch.ones(3, requires_grad=True))  # outside the context
    assert used == []
    assert kernels_for(torch.device("cpu"), torch.float32) is None


def test_torch_computes_unsupported_inputs(compute: Compute) -> None:
    with compute.autocast():
        row, rows = torch.ones(1, 4, requires_grad=True), torch.ones(3, 4)
        assert Dropout(0.5).add_to(row, rows).shape == (3, 4)
        assert Dropout(0.5).add_to(row.bfloat16(), row).dtype == torch.float32
    qkv = torch.randn(2, 5, 3, 4, 24, requires_grad=True)  # heads of 24
    with compute.autocast():
        assert_close(short_attention(qkv), plain_attention(qkv), **TIGHT)
        x = torch.randn(5, dtype=torch.float64, requires_grad=True)
        assert_close(gelu_tanh(x), F.gelu(x, approximate="tanh"), rtol=1e-6, atol=1e-6)


def test_a_classifier_trains_without_padding(compute: Compute, monkeypatch: pytest.MonkeyPatch) -> None:
    rows: list[int] = []
    attention = Kernels.attention
    monkeypatch.setattr(
        Kernels, "attention", lambda self, qkv, *rest: (rows.append(len(qkv)), attention(self, qkv, *rest))[1]
    )
    ids, lengths = torch.randint(31, (6, 9)), torch.tensor([9, 1, 4, 4, 2, 9])
    with compute.autocast():
        small(dropout=0.1)(ids, (torch.arange(9) < lengths[:, None]).long())
    assert rows == [32] * 3  # 29, and what makes them a multiple of four


@pytest.mark.parametrize(
    ("lengths", "rounded"),
    [
        ([9, 1, 4, 4, 2, 9], [9, 4, 4, 4, 2, 9]),
        ([8, 4, 8, 2, 8, 1], [9, 4, 8, 2, 8, 1]),
        ([8, 8, 9, 1, 9, 9], [8, 8, 9, 1, 9, 9]),
        ([8, 8, 9, 7, 9, 9], [9, 9, 9, 7, 9, 9]),
        ([9, 9, 9], [9, 9, 9]),
    ],
)
def test_sentences_are_rounded_up_with_the_padding_there_is(lengths: list[int], rounded: list[int]) -> None:
    assert (aligned_ends(torch.tensor(lengths) - 1, 9) + 1).tolist() == rounded


@pytest.mark.parametrize(
    "mask", [torch.ones(2, 9), torch.ones(2, 60, dtype=torch.long), torch.ones(2, 4000, dtype=torch.long)]
)
def test_a_mask_that_does_not_fit_is_refused_with_and_without(
    mask: Tensor, compute: Compute, fp32: Compute
) -> None:
    ids = torch.zeros(2, 9, dtype=torch.long)
    for place in (compute, fp32):
        with place.autocast(), pytest.raises(IndexError):
            small(dropout=0.0)(ids, mask)


@pytest.mark.parametrize(
    "starts",
    [
        torch.tensor([0.0, 4.0, 80.0]),
        torch.tensor([0, 4, 79]),
        torch.tensor([1, 40, 80]),
        torch.tensor([0, 50, 40, 80]),
        torch.tensor([0, MAX_TOKENS + 1, 80]),
    ],
)
def test_starts_that_do_not_divide_the_rows_are_refused(starts: Tensor, folder: Path) -> None:
    kernels, qkv, grad = made(torch.float32, folder), torch.zeros(80, 3, 1, 64), torch.zeros(80, 1, 64)
    with pytest.raises(ValueError, match="must split 80 rows"):
        kernels.attention(qkv, starts, DropoutMask(0.0, 0))
    with pytest.raises(ValueError, match="must split 80 rows"):
        kernels.attention_backward(qkv, starts, grad, DropoutMask(0.0, 0))


def test_packed_or_padded_a_sentence_may_be_too_long(compute: Compute) -> None:
    with compute.autocast(), pytest.raises(ValueError, match="81 tokens; the model supports 80"):
        small(dropout=0.0)(torch.zeros(1, 81, dtype=torch.long), torch.ones(1, 81, dtype=torch.long))


# -- how they come to be


def test_a_library_is_compiled_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compute = resolve_compute("cpu", "fp32").with_kernels("always", tmp_path)
    assert "kernels by" in str(compute)
    assert compute.arithmetic == "cpu, torch.float32, kernels"
    (made_file,) = tmp_path.iterdir()
    monkeypatch.setattr(Kernels, "_build", lambda self: pytest.fail("compiled again"))
    assert resolve_compute("cpu", "fp32").with_kernels("auto", tmp_path).kernels is not None
    assert list(tmp_path.iterdir()) == [made_file]


def test_a_damaged_library_is_compiled_again(tmp_path: Path) -> None:
    resolve_compute("cpu", "fp32").with_kernels("always", tmp_path)
    (library,) = tmp_path.iterdir()
    library.unlink()  # what is mapped stays
    library.write_bytes(b"no library")
    compute = resolve_compute("cpu", "fp32").with_kernels("always", tmp_path)
    assert compute.kernels is not None
    assert compute.kernels.gelu(torch.zeros(1))[0].item() == 0.0


def script(path: Path, text: str) -> str:
    path.write_text(f"#!/bin/sh\n{text}\n", encoding="ascii")
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("echo no headers here >&2; exit 1", "failed: no headers here"),
        ("exit 0", "failed: no message"),
        ('while [ "$1" != -o ]; do shift; done; echo junk > "$2"', "file too short|invalid ELF header"),
    ],
)
def test_a_failing_compiler_is_reported_and_kernels_are_off(
    text: str, why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CC", script(tmp_path / "compiler", text))
    plain = resolve_compute("cpu", "fp32")
    found = plain.with_kernels("auto", tmp_path / "kept")
    assert found.kernels is None
    assert "without kernels" in str(found)
    assert found.arithmetic == plain.arithmetic
    with pytest.raises(ColakitError, match=f"cpu_kernels: always, but: .*({why})"):
        plain.with_kernels("always", tmp_path / "kept")


def test_without_a_compiler_kernels_are_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    plain = resolve_compute("cpu", "fp32")
    assert "no C compiler found" in str(plain.with_kernels("auto", tmp_path))
    with pytest.raises(ColakitError, match="no C compiler found"):
        plain.with_kernels("always", tmp_path)
    assert plain.with_kernels("never", tmp_path) is plain


def test_a_library_that_another_user_left_is_not_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    resolve_compute("cpu", "fp32").with_kernels("always", tmp_path)
    monkeypatch.setattr("os.geteuid", lambda: 4321)
    (library,) = tmp_path.iterdir()
    if library.stat().st_uid == 0:
        import os

        os.chown(library, 1234, -1)
    with pytest.raises(ColakitError, match="belongs to another user"):
        resolve_compute("cpu", "fp32").with_kernels("always", tmp_path)


def test_the_loop_trains_alike_with_and_without_kernels(compute: Compute, fp32: Compute) -> None:
    from colakit.data.batches import Batch
    from colakit.training.objectives import classification

    torch.manual_seed(2)
    batch = Batch(torch.randint(31, (4, 7)), torch.ones(4, 7, dtype=torch.long), torch.tensor([0, 1, 1, 0]))
    losses = []
    for place in (compute, fp32):
        model = small(dropout=0.0)
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.01)
        steps = train(
            model.train(), [StepBatch([batch], 4, 0, "all")] * 5, classification, optimizer,
            lr_at=lambda step: 1.0, compute=place,
        )  # fmt: skip
        losses.append([step.loss for step in steps])
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)  # each step starts from the last one's sums
    assert losses[0][-1] != losses[0][0]


def test_a_run_resumes_with_the_kernels_it_started_with(
    toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, colakit: Callable[..., tuple[int, str, str]]
) -> None:
    def tune(*words: object) -> tuple[int, str]:
        tuned = ("finetune", "--base", toy / "base", "--data", toy / "corpus", "--epochs", 1, "--rank", 2)
        code, _, err = colakit(*tuned, *words)
        return code, " ".join(err.split())

    plain, quick = tmp_path / "plain", tmp_path / "quick"
    code, said = tune("--set", "cpu_kernels=never", "--out", plain)
    assert code == 0
    assert "kernels" not in said
    code, said = tune("--out", quick)
    assert code == 0
    assert "kernels by" in said
    code, said = tune("--out", plain, "--resume")
    assert code == 0
    assert "nothing to resume" in said
    monkeypatch.setenv("CC", script(tmp_path / "compiler", "exit 1"))
    (quick / "summary.json").unlink()  # the last step is to be repeated
    code, said = tune("--out", quick, "--resume")
    assert code == 2
    assert "The run started with CPU kernels: install a C compiler" in said


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("inputs", "outputs", "ranks"), [(16, 48, [1, 8, 3]), (1040, 16, [256, 5])])
def test_low_rank_products_of_groups_equal_a_product_for_each(
    dtype: torch.dtype, inputs: int, outputs: int, ranks: list[int], folder: Path
) -> None:
    torch.manual_seed(0)
    bounds = [1, 6, 77, 100][: len(ranks) + 1]  # row 0 and the last rows belong to no group
    x = torch.randn(104, inputs).to(dtype)
    y = torch.randn(104, outputs).to(dtype)
    factors = [
        ((torch.randn(rank, inputs) / 50).to(dtype), torch.randn(rank, outputs).to(dtype)) for rank in ranks
    ]
    groups = [(*pair, *span) for pair, span in zip(factors, itertools.pairwise(bounds), strict=True)]
    expected = y.double()
    for down, up, start, stop in groups:
        expected[start:stop] += x[start:stop].double() @ down.double().t() @ up.double()
    made(dtype, folder).add_low_rank(x, y, groups)
    assert_close(y.double(), expected, **(TIGHT if dtype == torch.float32 else ROUNDED))


def test_kernels_are_active_without_gradients_only_for_the_server(compute: Compute, folder: Path) -> None:
    server = compute.plain().with_kernels("always", folder, inference=True)
    for each, is_used in ((compute, False), (server, True)):
        with torch.inference_mode(), each.autocast():
            assert (kernels_for(torch.device("cpu"), torch.float32) is not None) == is_used
