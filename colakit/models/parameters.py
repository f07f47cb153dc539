"""Parameter counts by module and in total."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn


@dataclass(frozen=True)
class ParameterCount:
    """Parameters of one group of tensors."""

    name: str
    trainable: int
    total: int


@dataclass(frozen=True)
class ParameterReport:
    """Counts of trainable and frozen parameters.

    Attributes:
        rows: one count per kind of module; blocks are summed under `h.*`.
        trainable, total: totals; a shared tensor counts once.
    """

    rows: tuple[ParameterCount, ...]
    trainable: int
    total: int

    @property
    def reduction(self) -> float:
        """Percentage of parameters that are frozen."""
        return 100.0 * (1 - self.trainable / self.total)

    def as_dict(self) -> dict[str, object]:
        """Return the report as JSON-serialisable data."""
        modules = {row.name: {"trainable": row.trainable, "total": row.total} for row in self.rows}
        return {
            "trainable": self.trainable,
            "total": self.total,
            "reduction_percent": round(self.reduction, 2),
            "modules": modules,
        }


def count_parameters(model: nn.Module) -> ParameterReport:
    """Count the parameters of `model` by module, summed over blocks."""
    counts: dict[str, list[int]] = {}
    for name, parameter in model.named_parameters():
        entry = counts.setdefault(_group(name), [0, 0])
        entry[0] += parameter.numel() if parameter.requires_grad else 0
        entry[1] += parameter.numel()
    rows = tuple(ParameterCount(name, trainable, total) for name, (trainable, total) in counts.items())
    return ParameterReport(rows, sum(r.trainable for r in rows), sum(r.total for r in rows))


def _group(name: str) -> str:
    """`transformer.h.3.attn.c_attn.base.weight` -> `h.*.attn.c_attn`; adapters are counted separately."""
    parts = [
        "*" if part.isdigit() else part
        for part in name.removeprefix("transformer.").removeprefix("model.").split(".")
    ]
    if parts[-1] in ("lora_a", "lora_b", "magnitude"):
        return ".".join(parts[:-1]) + " (adapter)"
    return ".".join(part for part in parts[:-1] if part != "base")
