"""What a step minimises. An objective maps (model, batch) to a loss summed over the batch, and its logits.

The loop divides the sum by the step's real count, so that ragged micro-batches weigh what they should.

Shapes: B batch, T tokens, C classes, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from colakit.data.batches import Batch
from colakit.models.fused import IGNORED


class Loss(NamedTuple):
    """Loss summed over a micro-batch, and the logits behind it, detached: (B, C), or None for LM."""

    total: Tensor
    logits: Tensor | None


Objective = Callable[[nn.Module, Batch], Loss]


def classification(model: nn.Module, batch: Batch) -> Loss:
    """Cross-entropy with the labels."""
    assert batch.labels is not None
    logits = model(batch.input_ids, batch.attention_mask)  # (B, C)
    return Loss(F.cross_entropy(logits, batch.labels, reduction="sum"), logits.detach())


def language_modelling(model: nn.Module, batch: Batch) -> Loss:
    """Cross-entropy of every real token after the first, given those before it."""
    targets = batch.input_ids[:, 1:].masked_fill(batch.attention_mask[:, 1:] == 0, IGNORED)  # (B, T-1)
    return Loss(model(batch.input_ids[:, :-1], targets=targets), None)


def discrimination(lm_weight: float) -> Objective:
    """Return the objective of real and corrupted sentences: which a sentence is, and language modelling.

    The real sentences (label 1) are also predicted token by token, so that the body stays a language model.

    Args:
        lm_weight: weight of a token's cross-entropy beside a sentence's.
    """

    def objective(model: nn.Module, batch: Batch) -> Loss:
        assert batch.labels is not None
        ignored = (batch.attention_mask[:, 1:] == 0) | (batch.labels[:, None] == 0)
        targets = batch.input_ids[:, 1:].masked_fill(ignored, IGNORED)  # (B, T-1)
        logits, nats = model(batch.input_ids, batch.attention_mask, targets=targets)
        total = F.cross_entropy(logits, batch.labels, reduction="sum") + lm_weight * nats
        return Loss(total, logits.detach())

    return objective


def distillation(*, kd_weight: float, temperature: float, soft_loss: str = "kl") -> Objective:
    """Return the objective (1-w)·CE(labels) + w·soft loss (Hinton et al. 2015, arXiv:1503.02531, §2).

    Args:
        kd_weight: w, from 0 (labels alone) to 1 (teacher alone).
        temperature: τ, softens both sides of the KL.
        soft_loss: `kl`, τ²·KL(teacher ‖ student); or `mse`, the mean over classes of the squared difference
            of logits (Kim et al. 2021, arXiv:2105.08919), which knows no temperature.
    """
    soft = {"kl": lambda s, t: soft_kl(s, t, temperature), "mse": logit_mse}[soft_loss]

    def objective(model: nn.Module, batch: Batch) -> Loss:
        assert batch.labels is not None
        assert batch.teacher_logits is not None
        logits = model(batch.input_ids, batch.attention_mask)  # (B, C)
        hard = F.cross_entropy(logits, batch.labels, reduction="sum")
        total = (1 - kd_weight) * hard + kd_weight * soft(logits, batch.teacher_logits)
        return Loss(total, logits.detach())

    return objective


def soft_kl(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """Return τ²·KL(teacher ‖ student) of (B, C) logits, summed over the batch.

    The factor τ² keeps the gradient's size independent of τ.
    """
    student = F.log_softmax(student_logits / temperature, dim=-1)
    teacher = F.log_softmax(teacher_logits / temperature, dim=-1)
    return temperature**2 * F.kl_div(student, teacher, reduction="sum", log_target=True)


def logit_mse(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """Return the squared difference of (B, C) logits, averaged over classes, summed over the batch."""
    return (student_logits - teacher_logits).square().mean(dim=-1).sum()
