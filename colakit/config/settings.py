"""The settings of an experiment, with their types, bounds, defaults and descriptions.

A value comes from, in order of precedence: flags, `--set`, the environment (`COLAKIT_FINETUNE__LR=1e-3`),
the YAML file of `--config`, the default.
"""

from __future__ import annotations

import re
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, BeforeValidator, Field, field_validator

from colakit.config.baseline import BaselineSettings
from colakit.config.data import DataSettings
from colakit.config.finetune import FinetuneSettings, LoRASettings
from colakit.config.pretrain import PretrainSettings, RealFakeSettings
from colakit.config.section import MAX_SEED, Section, split_commas
from colakit.config.serve import ServeSettings
from colakit.config.student import (
    DistillSettings,
    StudentSettings,
    StudentTrainingSettings,
    TrainScratchSettings,
    TransferSettings,
)
from colakit.config.sweep import SweepSettings
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
    """All settings of an experiment."""

    seed: int = Field(
        0, ge=0, le=MAX_SEED, description="Random seed (initial weights, batch order, dropout)."
    )
    base: str = Field(
        "gpt2",
        description="Pretrained GPT-2, Llama, Qwen2 or Qwen3: `builtin`, `smollm2`, a folder in the "
        "transformers layout, a GGUF file, or a hub name.",
    )
    start_token: str | None = Field(
        None,
        min_length=1,
        description="Token before a sentence or text; null: <|endoftext|> if the base has it, else BOS.",
    )
    device: str = Field("auto", description="Device: auto, cpu, cuda, cuda:N or mps.")
    precision: Literal["auto", "fp32", "bf16", "int8"] = Field(
        "auto",
        description="Precision of matrix products and frozen weights; auto: bf16 where it is faster, but "
        "fp32 for predictions of students and for minimal pairs; int8: frozen linear layers, on a CPU.",
    )
    cpu_kernels: Literal["auto", "always", "never"] = Field(
        "auto",
        description="Train and serve on a CPU with C kernels compiled here; auto: on Linux with a compiler.",
    )
    cuda_graphs: Literal["auto", "never"] = Field(
        "never",
        description="Record a GPT's training steps on a GPU as CUDA graphs; auto: with a single process.",
    )
    track: Annotated[tuple[Literal["tensorboard", "mlflow", "wandb"], ...], BeforeValidator(split_commas)] = (
        Field((), description="Stores that also get the metrics of a training: tensorboard, mlflow, wandb.")
    )
    evaluate_dev: bool = Field(
        True, description="Evaluate the splits beside train and val at the end of a training; else only val."
    )
    cache: str | None = Field(
        None, description="Folder of downloads and cached arrays; null: the user's cache folder."
    )
    data: DataSettings = Field(default_factory=DataSettings)
    pretrain: PretrainSettings = Field(default_factory=PretrainSettings)
    real_fake: RealFakeSettings = Field(default_factory=RealFakeSettings)
    lora: LoRASettings = Field(default_factory=LoRASettings)
    finetune: FinetuneSettings = Field(default_factory=FinetuneSettings)
    student: StudentSettings = Field(default_factory=StudentSettings)
    student_training: StudentTrainingSettings = Field(default_factory=StudentTrainingSettings)
    distill: DistillSettings = Field(default_factory=DistillSettings)
    transfer: TransferSettings = Field(default_factory=TransferSettings)
    train_scratch: TrainScratchSettings = Field(default_factory=TrainScratchSettings)
    baseline: BaselineSettings = Field(default_factory=BaselineSettings)
    generate: GenerateSettings = Field(default_factory=GenerateSettings)
    predict: PredictSettings = Field(default_factory=PredictSettings)
    serve: ServeSettings = Field(default_factory=ServeSettings)
    evaluate: EvaluateSettings = Field(default_factory=EvaluateSettings)
    plot: PlotSettings = Field(default_factory=PlotSettings)
    sweep: SweepSettings = Field(default_factory=SweepSettings)

    @field_validator("device")
    @classmethod
    def _check_device(cls, device: str) -> str:
        if not re.fullmatch("auto|cpu|cuda(:[0-9]{1,2})?|mps", device):
            raise ValueError("must be auto, cpu, cuda, cuda:N or mps")
        return device

    @property
    def cache_folder(self) -> Path | None:
        """`cache` as a path, None if unset."""
        return Path(self.cache).expanduser() if self.cache else None


def leaf_fields(model: type[BaseModel] = Settings, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (dotted key, pydantic field) of every setting."""
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from leaf_fields(field.annotation, f"{prefix}{name}.")
        else:
            yield prefix + name, field


def describe_type(annotation: Any) -> str:
    """Return a type for help texts: `integer`, `png|svg|pdf`, `name,…`."""
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
