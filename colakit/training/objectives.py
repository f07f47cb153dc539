"""Training objectives: functions from (model, batch) to a loss summed over the batch, and the logits.

The training loop divides the sum by the step's real count, so that ragged micro-batches are weighted
correctly.

Shapes: B batch, T tokens, P pairs, C classes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from colakit.data.batches import UNLABELLED, Batch, PairBatch
from colakit.kernels.linear_cross_entropy import IGNORE_INDEX
from colakit.models.rnn.distillation_heads import StudentOutput


class Loss(NamedTuple):
    """Loss summed over a micro-batch, and its detached logits (B, C), or None for LM."""

    total: Tensor
    logits: Tensor | None


CROSS_ENTROPY = "cross-entropy"  # name of the loss of `classification`

Objective = Callable[[nn.Module, Batch], Loss]
Schedule = Callable[[float], float]
"""Maps the fraction of training done, 0 to 1, to a weight or temperature."""


def constant(value: float) -> Schedule:
    """Return a constant schedule."""
    return lambda progress: value


def line(start: float, end: float | None) -> Schedule:
    """Return a linear schedule from `start` to `end`; constant if `end` is None."""
    return constant(start) if end is None else lambda progress: start + (end - start) * progress


def classification(model: nn.Module, batch: Batch) -> Loss:
    """Cross-entropy with the labels."""
    assert batch.labels is not None
    states = {} if batch.states is None else {"states": batch.states}  # only a GPT takes them
    logits = model(batch.input_ids, batch.attention_mask, **states)  # (B, C)
    return Loss(F.cross_entropy(logits, batch.labels, reduction="sum"), logits.detach())


def language_modelling(model: nn.Module, batch: Batch) -> Loss:
    """Cross-entropy of every real token after the first, given those before it."""
    targets = batch.input_ids[:, 1:].masked_fill(batch.attention_mask[:, 1:] == 0, IGNORE_INDEX)  # (B, T-1)
    return Loss(model(batch.input_ids[:, :-1], targets=targets), None)


def discrimination(lm_weight: float, pair_weight: float) -> Objective:
    """Return the objective of pairs of a real sentence and its corrupted copy (`PairBatch`).

    The sum of three losses: cross-entropy of the labels real and corrupted; language modelling of the real
    sentences; and log(1 + p(corrupted)/p(real)), the pairwise logistic loss (Burges et al. 2005, RankNet, §3)
    of the language model's probabilities of the two.

    Args:
        lm_weight: weight of the language-modelling loss of a token.
        pair_weight: weight of the pairwise loss of a pair; 0 skips the corrupted sentences' tokens.
    """

    def reduce(nll: Tensor) -> Tensor:
        real, corrupted = nll.unbind(dim=1)  # each (P,), P pairs
        return lm_weight * real.sum() + pair_weight * F.softplus(real - corrupted).sum()

    def objective(model: nn.Module, batch: Batch) -> Loss:
        assert batch.labels is not None
        assert isinstance(batch, PairBatch)
        ignored = batch.attention_mask[:, 1:] == 0
        if not pair_weight:
            ignored = ignored | (batch.labels[:, None] == 0)
        targets = (
            batch.input_ids[:, 1:].masked_fill(ignored, IGNORE_INDEX).unflatten(0, (-1, 2))
        )  # (P, 2, T-1)
        logits, lm_loss = model(batch.input_ids, batch.attention_mask, targets=targets, reduce=reduce)
        return Loss(F.cross_entropy(logits, batch.labels, reduction="sum") + lm_loss, logits.detach())

    return objective


def supervised(lm_weight: Schedule) -> Objective:
    """Return the objective of a student without a teacher: cross-entropy with the labels.

    Args:
        lm_weight: weight of the loss of neighbouring tokens, if the model predicts them.
    """

    def objective(model: nn.Module, batch: Batch) -> Loss:
        assert batch.labels is not None
        output = _forward(model, batch)
        total = F.cross_entropy(output.logits, batch.labels, reduction="sum")
        return Loss(_add_token_loss(total, output, lm_weight, batch.progress), output.logits.detach())

    return objective


def distillation(
    *,
    kd_weight: Schedule,
    temperature: Schedule,
    soft_loss: str = "kl",
    hidden_weight: float = 0.0,
    lm_weight: Schedule | None = None,
) -> Objective:
    """Return the objective (1-w)·CE(labels) + w·soft loss (Hinton et al. 2015, arXiv:1503.02531, §2).

    A sentence without a label has only the soft loss, with weight 1.

    Args:
        kd_weight: w, from 0 (labels alone) to 1 (teacher alone).
        temperature: τ, softens both sides of the KL.
        soft_loss: `kl`, τ²·KL(teacher ‖ student); or `mse`, the mean over classes of the squared difference
            of logits (Kim et al. 2021, arXiv:2105.08919), without a temperature.
        hidden_weight: weight of 1 - cosine between the teacher's last hidden state and the student's
            prediction of it (after Sanh et al. 2019, arXiv:1910.01108, §2).
        lm_weight: weight of the loss of neighbouring tokens, if the model predicts them.
    """

    def objective(model: nn.Module, batch: Batch) -> Loss:
        assert batch.labels is not None
        assert batch.teacher_logits is not None
        output, progress = _forward(model, batch), batch.progress
        weight = kd_weight(progress)
        if soft_loss == "kl":
            soft = soft_kl(output.logits, batch.teacher_logits, temperature(progress))
        else:
            soft = logit_mse(output.logits, batch.teacher_logits)
        hard = F.cross_entropy(output.logits, batch.labels, reduction="sum", ignore_index=UNLABELLED)
        total = (1 - weight) * hard + (torch.where(batch.labels == UNLABELLED, 1.0, weight) * soft).sum()
        if hidden_weight:
            assert output.hidden is not None
            assert batch.teacher_hidden is not None
            similarity = F.cosine_similarity(output.hidden, batch.teacher_hidden.float(), dim=-1)  # (B,)
            total = total + hidden_weight * (1 - similarity).sum()
        return Loss(_add_token_loss(total, output, lm_weight, progress), output.logits.detach())

    return objective


def soft_kl(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """Return τ²·KL(teacher ‖ student) of (B, C) logits, (B,).

    The factor τ² keeps the scale of the gradient independent of τ.
    """
    student = F.log_softmax(student_logits / temperature, dim=-1)
    teacher = F.log_softmax(teacher_logits / temperature, dim=-1)
    return temperature**2 * F.kl_div(student, teacher, reduction="none", log_target=True).sum(dim=-1)


def logit_mse(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """Return the squared difference of (B, C) logits, averaged over classes, (B,)."""
    return (student_logits - teacher_logits).square().mean(dim=-1)


def _forward(model: nn.Module, batch: Batch) -> StudentOutput:
    """Return the output of a student with or without heads."""
    output = model(batch.input_ids, batch.attention_mask)
    return output if isinstance(output, StudentOutput) else StudentOutput(output)


def _add_token_loss(total: Tensor, output: StudentOutput, weight: Schedule | None, progress: float) -> Tensor:
    return total if output.nll is None or weight is None else total + weight(progress) * output.nll
