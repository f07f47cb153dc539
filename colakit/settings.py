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

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)
from typing_extensions import Self

MAX_SEED = 2**32 - 1  # the most that numpy's older generators, and so scikit-learn, take
Share = Annotated[float, Field(ge=0, lt=1)]
Cell = Literal["rnn", "gru", "lstm"]
Pooling = Literal["last", "mean", "max", "attention"]


def _split_commas(value: Any) -> Any:
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


def _no_bool(value: Any) -> Any:
    """YAML reads `no` and `on` as booleans, and Python would take those for 0 and 1."""
    if isinstance(value, bool):
        raise ValueError(f"a boolean is not allowed here; quote it if you mean the word ({value})")
    return value


Names = Annotated[tuple[str, ...], BeforeValidator(_split_commas)]


class Section(BaseModel):
    """A group of settings: unknown keys are refused, numbers must be finite, and `no` is not a number."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, validate_default=True)

    @field_validator("*", mode="before")
    @classmethod
    def _bool_only_where_wanted(cls, value: Any, info: ValidationInfo) -> Any:
        assert info.field_name is not None
        annotation = cls.model_fields[info.field_name].annotation
        return value if annotation is bool or bool in get_args(annotation) else _no_bool(value)


class DataSettings(Section):
    """What is learnt from."""

    path: str = Field(
        "cola", description="`cola` (fetched once), `builtin` (made here), or a zip, folder, TSV or CSV"
    )
    splits: dict[str, str] = Field(
        {}, description="split name -> file, instead of `path`, for a task of your own"
    )
    text_column: str | None = Field(None, description="column of the text; needed for a table with a header")
    label_column: str | None = Field(None, description="column of the label, of any number of classes")
    label_names: Names = Field((), description="labels in order; by default what train holds, sorted")
    holdout: float = Field(
        0.1, gt=0, lt=1, description="share of train held out to choose epoch and threshold"
    )
    holdout_seed: int = Field(
        0, ge=0, le=MAX_SEED, description="draw of that slice; the same for every run that is compared"
    )
    max_tokens: int | None = Field(
        None, ge=3, description="longest sentence in tokens; null is the model's own limit"
    )
    mirrors: Names = Field((), description="URLs of CoLA's zip, tried before the CoLA site")


class LoRASettings(Section):
    """Which weights are adapted, and how."""

    rank: int = Field(8, ge=1, description="R, rank of the update")
    alpha: float = Field(16.0, gt=0, description="the update is scaled by alpha/rank")
    dropout: Share = Field(0.0, description="probability of dropping an adapter's input")
    target_modules: Names = Field(
        ("c_attn", "attn.c_proj", "c_fc", "mlp.c_proj"),
        min_length=1,
        description="exact dotted tails of linear layers",
    )
    overrides: dict[str, dict[str, Annotated[float, BeforeValidator(_no_bool), Field(gt=0)]]] = Field(
        {}, description="rank and alpha of single modules, by dotted tail"
    )
    rslora: bool = Field(False, description="scale by alpha/sqrt(rank)")
    dora: bool = Field(False, description="learn row magnitudes apart (DoRA)")
    init: Literal["kaiming", "pissa"] = Field("kaiming", description="start of A and B")
    lr_ratio: float = Field(1.0, ge=1, description="LoRA+: learning rate of B over that of A")
    train_layernorm: bool = Field(True, description="train the LayerNorms too")
    train_head: bool = Field(True, description="train the classification head too")

    @field_validator("overrides")
    @classmethod
    def _whole_ranks(cls, value: dict[str, dict[str, float]]) -> dict[str, dict[str, float]]:
        for name, changes in value.items():
            if unknown := set(changes) - {"rank", "alpha"}:
                raise ValueError(f"{name}: only rank and alpha can be overridden (got {', '.join(unknown)})")
            if not float(changes.get("rank", 1)).is_integer():
                raise ValueError(f"{name}: rank must be a whole number (got {changes['rank']})")
        return {name: {k: int(v) if k == "rank" else v for k, v in c.items()} for name, c in value.items()}

    @model_validator(mode="after")
    def _one_variant(self) -> LoRASettings:
        if self.dora and self.init == "pissa":
            raise ValueError("dora and init: pissa cannot be combined; choose one")
        return self


class LoopSettings(Section):
    """How fast, in what portions, and how often a run speaks and saves."""

    lr: float = Field(1e-3, gt=0, description="peak learning rate")
    batch_size: int = Field(32, ge=1, description="sentences a step, over all processes")
    micro_batch_size: int | None = Field(
        None, ge=1, description="sentences a backward pass; null is the whole batch"
    )
    weight_decay: float = Field(0.01, ge=0, description="of matrices; vectors do not decay")
    schedule: Literal["linear", "cosine", "constant"] = Field(
        "linear", description="fall of the rate after warm-up"
    )
    warmup: Share = Field(0.06, description="share of the steps in which the rate rises")
    decay: float = Field(
        1.0, gt=0, le=1, description="share of the steps after warm-up, at the end, in which the rate falls"
    )
    clip_norm: float | None = Field(1.0, gt=0, description="longest gradient (2-norm); null does not clip")
    evaluate_every_steps: int | None = Field(
        None, ge=1, description="steps between evaluations; null: by epochs, where there are any"
    )
    log_every: int = Field(20, ge=1, description="steps between lines of metrics.jsonl")
    save_every_steps: int | None = Field(
        None, ge=1, description="steps between resumable states; null: at evaluations"
    )

    @model_validator(mode="after")
    def _batches_divide(self) -> Self:
        if self.micro_batch_size is not None and self.batch_size % self.micro_batch_size:
            raise ValueError(
                f"batch_size (={self.batch_size}) must be a multiple of "
                f"micro_batch_size (={self.micro_batch_size})"
            )
        return self


class TrainingSettings(LoopSettings):
    """How long a classifier trains, and by what its best moment is chosen."""

    epochs: int = Field(10, ge=1, description="passes over train")
    evaluate_every_epochs: int = Field(
        1, ge=1, description="epochs between evaluations on the held-out slice"
    )
    patience: int | None = Field(
        None, ge=1, description="stop after so many evaluations without a better one"
    )
    select_by: Literal["mcc", "accuracy", "loss"] = Field(
        "mcc", description="held-out figure that names the best model"
    )
    threshold: Literal["tuned", "argmax"] = Field(
        "tuned", description="two classes: decide at the threshold best on the held-out slice, or at one half"
    )
    track_dev: bool = Field(
        False, description="also measure dev at every evaluation, for curves; chooses nothing"
    )


class PretrainSettings(LoopSettings):
    """Causal language modelling from scratch: what is read, the model's shape, and how it learns."""

    text: dict[str, str] = Field({}, description="name -> text file or folder (plain, .gz, .xz)")
    repeats: dict[str, Annotated[int, BeforeValidator(_no_bool), Field(ge=1)]] = Field(
        {}, description="name -> times that an epoch reads it; 1 where not given"
    )
    tokenizer: str | None = Field(
        None, description="folder with a tokenizer; null trains one of `vocab_size` tokens on the text"
    )
    vocab_size: int = Field(8192, ge=257, description="V of a tokenizer that is trained")
    num_layers: int = Field(6, ge=1, description="blocks")
    width: int = Field(384, ge=1, description="D, of the residual stream")
    num_heads: int = Field(6, ge=1, description="attention heads")
    num_positions: int = Field(
        128, ge=8, description="tokens a window holds, and the most the model can read"
    )
    dropout: Share = Field(0.0, description="in embeddings, attention and residual branches")
    tokens: int = Field(
        300_000_000, ge=1, description="training tokens in all; may grow before the rate begins to fall"
    )
    optimizer: Literal["muon", "adamw"] = Field(
        "muon", description="of the blocks' matrices; all else is AdamW's"
    )
    muon_lr: float = Field(0.006, gt=0, description="peak rate of Muon, in the spectral norm of an update")
    holdout: Share = Field(0.01, description="share of each text held out")
    evaluate_windows: int = Field(512, ge=1, description="windows of each held-out text measured in a run")
    compile: Literal["auto", "always", "never"] = Field(
        "auto", description="torch.compile; auto: where there is a compiler"
    )
    lr: float = Field(1e-3, gt=0, description="peak learning rate of AdamW")
    batch_size: int = Field(128, ge=1, description="windows a step, over all processes")
    micro_batch_size: int | None = Field(32, ge=1, description="windows a backward pass; null is the batch")
    weight_decay: float = Field(0.1, ge=0, description="of matrices; vectors do not decay")
    warmup: Share = Field(0.01, description="share of the steps in which the rate rises")
    decay: float = Field(
        0.25, gt=0, le=1, description="share of the steps after warm-up, at the end, in which the rate falls"
    )
    evaluate_every_steps: int | None = Field(500, ge=1, description="steps between evaluations")
    save_every_steps: int | None = Field(100, ge=1, description="steps between resumable states")

    @model_validator(mode="after")
    def _shape_fits(self) -> Self:
        if self.width % self.num_heads:
            raise ValueError(f"width (={self.width}) must be divisible by num_heads (={self.num_heads})")
        if strangers := sorted(set(self.repeats) - set(self.text)):
            raise ValueError(f"repeats: {', '.join(strangers)} is not among pretrain.text")
        return self


class DiscriminateSettings(TrainingSettings):
    """The second stage of pre-training, on sentences of `pretrain.text`: real, or corrupted in one place."""

    sentences: int = Field(400_000, ge=10, description="real sentences; as many corrupted ones join them")
    holdout: Share = Field(0.01, description="share of them held out")
    lm_weight: float = Field(
        0.07, ge=0, description="weight of a real token's cross-entropy beside a sentence's"
    )
    epochs: int = Field(1, ge=1, description="passes over the sentences")
    lr: float = Field(3e-4, gt=0, description="peak learning rate")
    batch_size: int = Field(64, ge=1, description="sentences a step, over all processes")
    warmup: Share = Field(0.02, description="share of the steps in which the rate rises")
    decay: float = Field(
        0.4, gt=0, le=1, description="share of the steps after warm-up, at the end, in which the rate falls"
    )
    evaluate_every_steps: int | None = Field(
        500, ge=1, description="steps between evaluations on the held-out slice"
    )


class FinetuneSettings(TrainingSettings):
    """Tuning the base."""

    objective: Literal["classification", "language_modelling"] = Field(
        "classification", description="label sentences, or write sentences like those of train"
    )
    method: Literal["lora", "full"] = Field(
        "lora", description="train an adapter on the frozen base, or every weight of it"
    )
    from_scratch: bool = Field(
        False, description="draw the base's weights anew: the control for pre-training; needs method: full"
    )
    leave_out: str | None = Field(
        None, description="fold of train left out, written i/k, so that this teacher has not seen it"
    )
    add_bos: bool = Field(False, description="put the end-of-text token before each sentence")
    add_eos: bool = Field(
        False, description="put the end-of-text token after each sentence; the head reads it"
    )
    base_dropout: float | None = Field(
        None, ge=0, lt=1, description="dropout inside the base; null is its own"
    )

    @field_validator("leave_out")
    @classmethod
    def _fold_of_several(cls, value: str | None) -> str | None:
        number, _, folds = (value or "1/2").partition("/")
        if not (number.isdecimal() and folds.isdecimal() and 1 <= int(number) <= int(folds) != 1):
            raise ValueError(f"a fold is written i/k, 1 ≤ i ≤ k and k > 1, such as 2/5 (got {value!r})")
        return value

    @model_validator(mode="after")
    def _random_weights_must_train(self) -> Self:
        if self.from_scratch and self.method != "full":
            raise ValueError("from_scratch needs method: full; an adapter on random weights learns little")
        return self


class StudentSettings(Section):
    """Shape and start of the recurrent student, for `distill` and `train-scratch` alike."""

    cell: Cell = Field("lstm", description="recurrent cell")
    embedding_size: int = Field(128, ge=1, description="width of the token embedding")
    hidden_size: int = Field(256, ge=1, description="width of each direction's state")
    num_layers: int = Field(1, ge=1, le=8, description="recurrent layers")
    bidirectional: bool = Field(True, description="read from both ends")
    pooling: Pooling = Field("attention", description="how the states of a sentence become one vector")
    dropout: Share = Field(0.3, description="on embeddings, between layers, before the head")
    vocabulary: int | None = Field(
        None, ge=1, description="embed only so many tokens, the most frequent in training; the rest are one"
    )
    embeddings: Literal["random", "base"] = Field(
        "random", description="start of the embedding: drawn, or the base's own in fewer dimensions (PCA)"
    )


class StudentTrainingSettings(TrainingSettings):
    """One budget for `distill` and for its control `train-scratch`."""

    max_steps: int | None = Field(
        None, ge=1, description="optimizer steps in all, whatever is trained on; null: `epochs` decide"
    )
    lm_weight: float = Field(
        0.0, ge=0, description="weight of predicting the next and the previous token, for each token"
    )
    lm_weight_end: float | None = Field(
        None, ge=0, description="that weight at the end; it moves in a line; null keeps it"
    )


class DistillSettings(Section):
    """How the student learns from its teachers."""

    teacher: Names = Field(
        (), description="ckpt.pt, run folder or adapter folder; of several, the mean logits are learnt"
    )
    kd_weight: float = Field(
        0.5, ge=0, le=1, description="weight of the soft loss; the rest is cross-entropy"
    )
    kd_weight_end: float | None = Field(
        None, ge=0, le=1, description="that weight at the end; it moves in a line; null keeps it"
    )
    temperature: float = Field(2.0, gt=0, description="softens teacher and student in the KL")
    temperature_end: float | None = Field(
        None, gt=0, description="the temperature at the end; it moves in a line; null keeps it"
    )
    soft_loss: Literal["kl", "mse"] = Field(
        "kl", description="temperature²·KL(teacher ‖ student), or logit MSE"
    )
    hidden_weight: float = Field(
        0.0,
        ge=0,
        description="weight of matching the first teacher's last hidden state, through a projection",
    )


class TransferSettings(Section):
    """Sentences beyond train: a teacher labels them for `distill`, a rule for `train-scratch`."""

    size: float = Field(0.0, ge=0, le=1000, description="sentences, as a multiple of train; 0 is none")
    sources: dict[
        Literal["edits", "samples", "text", "text_edits"],
        Annotated[float, BeforeValidator(_no_bool), Field(gt=0)],
    ] = Field(
        {"edits": 1.0},
        min_length=1,
        description="source -> share: near misses of train sentences, sentences sampled from "
        "`language_model`, whole sentences of `text`, near misses of those",
    )
    text: str | None = Field(
        None, description="text file or folder (plain, .gz, .xz), a sentence a line or prose"
    )
    language_model: str | None = Field(
        None, description="base to sample from; `finetune --objective language_modelling` makes one"
    )
    temperature: float = Field(1.0, gt=0, description="of sampling")
    seed: int = Field(0, ge=0, le=MAX_SEED, description="of the set; runs that are compared should share it")

    @model_validator(mode="after")
    def _sources_have_what_they_need(self) -> Self:
        if {"text", "text_edits"} & set(self.sources) and self.text is None:
            raise ValueError("sources text and text_edits need transfer.text")
        if "samples" in self.sources and self.language_model is None:
            raise ValueError("source samples needs transfer.language_model")
        return self


class GenerateSettings(Section):
    """How text is continued."""

    max_new_tokens: int = Field(50, ge=1, description="tokens to add")
    temperature: float = Field(1.0, ge=0, description="0 takes the likeliest token every time")
    top_k: int | None = Field(None, ge=1, description="sample among the k likeliest tokens")
    top_p: float | None = Field(
        None, gt=0, le=1, description="sample among the likeliest tokens that make up p"
    )
    num_samples: int = Field(1, ge=1, description="continuations")


class PredictSettings(Section):
    """How sentences are labelled."""

    batch_size: int = Field(128, ge=1, description="sentences computed at a time")


class EvaluateSettings(Section):
    """What is compared."""

    splits: Names = Field((), description="splits; by default every labelled one but train")
    batch_size: int = Field(128, ge=1, description="sentences computed at a time")
    group_by: Names = Field(
        (),
        description="what to report apart: `source` (CoLA's first column); of --pairs, fields, by default "
        "those of text with 2 to 100 shared values",
    )
    annotations: str | None = Field(
        None,
        description="table of the sentences' grammatical features (0 or 1, under a header), to report apart",
    )
    pairs_bos: bool = Field(
        True, description="with --pairs, predict the first token too, given the end-of-text token"
    )


class PlotSettings(Section):
    """How figures are drawn."""

    format: Literal["png", "svg", "pdf"] = Field("png", description="file format")
    dpi: int = Field(150, ge=30, le=1200, description="dots an inch, for png")


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
        "auto", description="of matrix products and of frozen weights"
    )
    cache: str | None = Field(
        None, description="folder of downloads and computed arrays; null is the user's cache"
    )
    data: DataSettings = DataSettings()
    pretrain: PretrainSettings = PretrainSettings()
    discriminate: DiscriminateSettings = DiscriminateSettings()
    lora: LoRASettings = LoRASettings()
    finetune: FinetuneSettings = FinetuneSettings()
    student: StudentSettings = StudentSettings()
    student_training: StudentTrainingSettings = StudentTrainingSettings()
    distill: DistillSettings = DistillSettings()
    transfer: TransferSettings = TransferSettings()
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
        return "name,…"
    return {"str": "text", "float": "number", "int": "integer"}.get(
        getattr(annotation, "__name__", ""), "value"
    )
