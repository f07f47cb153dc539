"""Every setting of an experiment: its meaning, unit, bounds and default, and where its value came from.

One YAML file describes one experiment. `seed`, `base`, `device`, `precision`, `cache` and the section `data`
are shared; each command reads its own sections besides. Values are taken, first found first, from flags,
`--set`, the environment (`COLAKIT_FINETUNE__LR=1e-3`), the YAML file, and the defaults below.
"""

from __future__ import annotations

import types
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, Field

from colakit.config.data import DataSettings
from colakit.config.finetune import FinetuneSettings, LoRASettings
from colakit.config.pretrain import PretrainSettings, RealFakeSettings
from colakit.config.section import MAX_SEED, Section
from colakit.config.student import (
    DistillSettings,
    StudentSettings,
    StudentTrainingSettings,
    TrainScratchSettings,
    TransferSettings,
)
from colakit.config.training import LoopSettings, TrainingSettings
from colakit.config.usage import EvaluateSettings, GenerateSettings, PlotSettings, PredictSettings

__all__ = [
    "DataSettings",
    "LoRASettings",
    "LoopSettings",
    "PretrainSettings",
    "Section",
    "Settings",
    "TrainingSettings",
    "describe_type",
    "leaf_fields",
]


class Settings(Section):
    """One experiment."""

    seed: int = Field(0, ge=0, le=MAX_SEED, description="of initial weights, order and dropout")
    base: str = Field(
        "gpt2", description="pretrained GPT-2: `builtin`, a folder in the transformers layout, or a hub name"
    )
    device: str = Field(
        "auto", pattern=r"^(auto|cpu|cuda(:\d+)?|mps)$", description="auto, cpu, cuda, cuda:N or mps"
    )
    precision: Literal["auto", "fp32", "bf16"] = Field(
        "auto",
        description="of matrix products and of frozen weights; auto is bf16 where it is faster, "
        "but fp32 for what a student answers on a CPU and for minimal pairs",
    )
    cpu_kernels: Literal["auto", "always", "never"] = Field(
        "auto",
        description="train on a CPU with C code compiled here; auto is under Linux, with a compiler",
    )
    cuda_graphs: Literal["auto", "never"] = Field(
        "never",
        description="Record a GPT's training steps on a GPU as CUDA graphs; auto: with a single process.",
    )
    cache: str | None = Field(
        None, description="folder of downloads and computed arrays; null is the user's cache"
    )
    data: DataSettings = DataSettings()
    pretrain: PretrainSettings = PretrainSettings()
    real_fake: RealFakeSettings = RealFakeSettings()
    lora: LoRASettings = LoRASettings()
    finetune: FinetuneSettings = FinetuneSettings()
    student: StudentSettings = StudentSettings()
    student_training: StudentTrainingSettings = StudentTrainingSettings()
    distill: DistillSettings = DistillSettings()
    transfer: TransferSettings = TransferSettings()
    train_scratch: TrainScratchSettings = TrainScratchSettings()
    generate: GenerateSettings = GenerateSettings()
    predict: PredictSettings = PredictSettings()
    evaluate: EvaluateSettings = EvaluateSettings()
    plot: PlotSettings = PlotSettings()

    @property
    def cache_folder(self) -> Path | None:
        """The cache folder, where one is set."""
        return Path(self.cache).expanduser() if self.cache else None


def leaf_fields(model: type[BaseModel] = Settings, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (dotted key, pydantic field) of every setting."""
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from leaf_fields(field.annotation, f"{prefix}{name}.")
        else:
            yield prefix + name, field


def describe_type(annotation: Any) -> str:
    """Return a type as people write it: `int`, `png|svg|pdf`, `list`."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return describe_type(arguments[0])
    if origin is Literal:
        return "|".join(str(argument) for argument in arguments)
    if origin in (Union, types.UnionType):
        return describe_type(next(argument for argument in arguments if argument is not type(None)))
    if origin in (tuple, list):
        return "name,…" if arguments[0] is str else f"{describe_type(arguments[0])},…"
    return {"str": "text", "float": "number", "int": "integer"}.get(
        getattr(annotation, "__name__", ""), "value"
    )
