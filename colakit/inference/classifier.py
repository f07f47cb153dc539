"""A trained classifier with its tokenizer and decision rule, and loading one from its files."""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from colakit.config.yaml import read_yaml
from colakit.data.corpora import Split
from colakit.data.tokenizer import SentenceTokenizer, encode_cached, has_tokenizer
from colakit.data.tokens import INFERENCE_BATCH, Tokens
from colakit.errors import ColakitError
from colakit.inference.decisions import predict_labels
from colakit.inference.forward import Done, compute_logits
from colakit.models.gpt.config import GPTConfig
from colakit.models.gpt.model import GPT, GPTClassifier
from colakit.models.lora import LoRAConfig, inject, lora_layers
from colakit.models.meta_device import without_weights
from colakit.models.rnn.config import RNNConfig
from colakit.models.rnn.model import DistilRNN
from colakit.runtime.device import Compute
from colakit.storage.checkpoints import Checkpoints
from colakit.storage.gpt2 import (
    base_fingerprint,
    load_classifier_model,
    load_gpt,
    load_tokenizer,
    read_config_file,
    require_embeddings,
    resolve_base,
)
from colakit.storage.model_file import (
    BASELINE_NAME,
    CHECKPOINT_NAME,
    COMPANION_NAME,
    STUDENT_NAME,
    Companion,
    ModelMetadata,
    check_origin,
    check_shapes,
    check_threshold,
    read_baseline_file,
    read_companion,
    read_model_file,
    student_name,
    write_model_file,
    write_student_file,
)
from colakit.storage.peft import BASE_FOLDER, PeftAdapter, apply_adapter, read_adapter
from colakit.storage.run_set import open_run_set
from colakit.storage.tensors import require_finite
from colakit.utils.array_cache import ArrayCache
from colakit.utils.console import Reporter
from colakit.utils.documents import library_errors

ADAPTER_CONFIG = "adapter_config.json"
WHAT_TO_GIVE = (
    f"Give a run folder, a {CHECKPOINT_NAME}, an adapter folder or a folder of a transformers classifier."
)
FAMILY_NAMES = {"gpt2": "GPT-2", "llama": "Llama", "qwen2": "Qwen2", "qwen3": "Qwen3"}


@dataclass
class SentenceClassifier:
    """A model, its tokenizer and its decision rule.

    Attributes:
        model: maps (input_ids, attention_mask) to (B, C) logits.
        max_tokens: longer sentences are truncated.
        threshold: class 1 is predicted if its probability is at least this; None predicts the argmax.
        temperature: calibrates the probabilities, of which `threshold` is one.
        lora: configuration of a GPT's adapter, if it has one.
        origin: plain data on how the model was made: command, seed, base, settings.
    """

    model: GPTClassifier | DistilRNN
    tokenizer: SentenceTokenizer
    label_names: tuple[str, ...]
    max_tokens: int | None = None
    threshold: float | None = None
    lora: LoRAConfig | None = None
    origin: dict[str, Any] = field(default_factory=dict)
    temperature: float = 1.0

    @property
    def name(self) -> str:
        """Name of this kind of model in tables and messages."""
        if isinstance(self.model, DistilRNN):
            return student_name(self.origin, self.model.config.cell)
        command, family = self.origin.get("command", "adapter"), FAMILY_NAMES[self.model.config.family]
        if self.lora is not None:
            return f"{command} ({family}, rank {self.lora.rank})"
        finetune = (self.origin.get("settings") or {}).get("finetune") or {}
        return f"{command} ({family}, {'from scratch' if finetune.get('from_scratch') else 'full'})"

    def encode(self, sentences: Sequence[str], cache: ArrayCache | None = None) -> Tokens:
        """Return the sentences' tokens, truncated to `max_tokens`."""
        return encode_cached(self.tokenizer, sentences, self.max_tokens, cache)

    def logits(
        self, tokens: Tokens, compute: Compute, batch_size: int = INFERENCE_BATCH, done: Done | None = None
    ) -> NDArray[np.float32]:
        """Return (N, C) logits of N sentences; the model must already be on the device of `compute`."""
        return compute_logits(self.model, tokens, compute, batch_size, done)

    def predict_labels(self, logits: NDArray[np.float32]) -> NDArray[np.int64]:
        """Return (N,) labels for (N, C) logits."""
        return predict_labels(logits, self.threshold, self.temperature)

    def fingerprint(self) -> str:
        """Return a SHA-256 over everything that determines a sentence's logits."""
        digest = hashlib.sha256(self.tokenizer.fingerprint().encode())
        digest.update(json.dumps([self.max_tokens, self._architecture()], sort_keys=True).encode())
        for name, tensor in sorted(self.model.state_dict().items()):
            digest.update(name.encode())
            digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    def save(self, path: Path) -> None:
        """Write a `ckpt.pt` and, for a student, `student.safetensors` beside it; see `write_model_file`."""
        metadata = {**self._architecture(), "tokenizer": self.tokenizer.to_dict(), **self._decision()}
        write_model_file(path, metadata, self.model.state_dict())

    def save_student(self, folder: Path) -> None:
        """Write `student.safetensors` of a student into a folder, without `ckpt.pt`."""
        metadata = {**self._architecture(), "tokenizer": self.tokenizer.to_dict(), **self._decision()}
        write_student_file(folder, metadata, {k: v.numpy() for k, v in self.model.state_dict().items()})

    def companion(self) -> dict[str, Any]:
        """Return the content of `colakit.json` in an adapter folder or an exported one."""
        boundaries = {"prefix": self.tokenizer.prefix, "suffix": self.tokenizer.suffix}
        return {**self._decision(), **boundaries, "start_token": self.tokenizer.start_token}

    def _architecture(self) -> dict[str, Any]:
        kind = "rnn" if isinstance(self.model, DistilRNN) else "gpt"
        lora = None if self.lora is None else asdict(self.lora)
        return {"kind": kind, "config": asdict(self.model.config), "lora": lora}

    def _decision(self) -> dict[str, Any]:
        return {
            "label_names": list(self.label_names),
            "max_tokens": self.max_tokens,
            "threshold": self.threshold,
            "temperature": self.temperature,
            "origin": self.origin,
        }


def load_classifier(where: str | Path, *, base: str | None = None) -> SentenceClassifier:
    """Load a classifier from a run folder, a model file, an adapter folder or a folder of transformers.

    Args:
        base: of an adapter folder (colakit's or PEFT's); by default the one that it records.

    Raises:
        ColakitError: if there is no classifier, or it is damaged or of another format.
    """
    path = _locate(where)
    if not path.is_dir():
        classifier = _from_model_file(path)
    elif (path / ADAPTER_CONFIG).is_file():
        classifier = _from_adapter(path, base)
    else:
        classifier = _from_transformers(path)
    require_finite(classifier.model, path)
    return classifier


def read_origin(where: str | Path) -> dict[str, Any]:
    """Return the `origin` of the classifier at `where` without building its model; {} for PEFT's adapters.

    A model file has names of files without their folders. In its run folder, the settings with the paths of
    settings.yaml replace those of the file.

    Raises:
        ColakitError: if there is no classifier, or its file or settings.yaml cannot be read.
    """
    path = _locate(where)
    if path.name == BASELINE_NAME:
        origin = read_baseline_file(path)[0].origin
    else:
        origin = read_companion(path).origin if path.is_dir() else read_model_file(path)[0].origin
    saved = path.resolve().parent / "settings.yaml"
    if not origin or not saved.is_file():
        return origin
    settings = read_yaml(saved)
    recorded = {"settings": settings, **({"base": settings.get("base")} if "base" in origin else {})}
    with library_errors(saved, hint="Correct the file, or delete it."):
        return check_origin({**origin, **recorded})


def _locate(where: str | Path) -> Path:
    """Return the model file or the adapter folder at `where`."""
    path = Path(where).expanduser()
    if not path.exists():
        raise ColakitError(f"{path}: file or folder not found", hint=WHAT_TO_GIVE)
    if not path.is_dir():
        return path
    for name in (CHECKPOINT_NAME, STUDENT_NAME, BASELINE_NAME):
        if (path / name).is_file():
            return path / name
    if (path / ADAPTER_CONFIG).is_file() or _is_transformers(path):
        return path
    hint = WHAT_TO_GIVE
    if (path / "summary.json").is_file() and (path / "base").is_dir():
        hint = f"This run trained a base model; fine-tune it with --base {shlex.quote(str(path / 'base'))}"
    elif Checkpoints(path / "checkpoints").paths():
        hint = f"This run is not finished: continue it with --resume --out {shlex.quote(str(path))}"
    elif (runs := open_run_set(path)) is not None:
        hint = f"This folder holds several runs; give one of them, such as {runs.run(runs.values[0]).path}"
    raise ColakitError(f"{path}: holds neither {CHECKPOINT_NAME} nor {ADAPTER_CONFIG}", hint=hint)


def _from_model_file(path: Path) -> SentenceClassifier:
    if path.name == BASELINE_NAME:
        raise ColakitError(
            f"{path}: is a baseline of n-grams; this command needs a neural network",
            hint="`evaluate` and `predict` read baselines.",
        )
    metadata, tensors = read_model_file(path)
    with library_errors(path, hint="Train or copy the model again."):
        model, lora = _build_empty(metadata, tensors)
        for name, expected in model.state_dict().items():
            stored = tensors.get(name, expected).dtype
            if stored.is_floating_point != expected.dtype.is_floating_point:
                raise ValueError(f"{name} must be {expected.dtype} (got {stored})")
        model.load_state_dict(tensors, assign=True)
        if isinstance(model, DistilRNN):
            model.check_rows()
        tokenizer = SentenceTokenizer.from_state(metadata.tokenizer)
        check_shapes(metadata, model.config, model.num_labels, tokenizer)
        return SentenceClassifier(
            model.eval(),
            tokenizer,
            tuple(metadata.label_names),
            metadata.max_tokens,
            metadata.threshold,
            lora,
            metadata.origin,
            metadata.temperature,
        )


def _build_empty(
    metadata: ModelMetadata, tensors: Mapping[str, Tensor]
) -> tuple[GPTClassifier | DistilRNN, LoRAConfig | None]:
    """Build the model on the meta device, with the shapes of the stored tensors."""
    with without_weights():
        if metadata.kind == "rnn":
            return DistilRNN(RNNConfig(**metadata.config)), None
        model = GPT(GPTConfig(**metadata.config)).classifier(len(metadata.label_names))
        if metadata.lora is None:
            return model, None
        lora = LoRAConfig(**metadata.lora.model_dump())
        # The stored tensors already hold PiSSA's residual, so nothing is decomposed again.
        inject(model, replace(lora, init="kaiming"))
        if lora.init == "pissa":
            for _, layer in lora_layers(model):
                layer.keep_start(layer.lora_a, layer.lora_b)
        return model, lora


def _from_adapter(folder: Path, base: str | None) -> SentenceClassifier:
    adapter = AdapterFolder.read(folder)
    gpt, base_folder = load_base_of(folder, adapter.peft, base)
    return adapter.on(gpt, base_folder, base)


@dataclass(frozen=True)
class AdapterFolder:
    """The content of an adapter folder, before it is applied to a base."""

    path: Path
    peft: PeftAdapter
    companion: Companion
    label_names: tuple[str, ...]

    @classmethod
    def read(cls, folder: Path) -> AdapterFolder:
        """Read an adapter folder.

        Raises:
            ColakitError: if it is damaged, or has no classification head.
        """
        adapter, companion = read_adapter(folder), read_companion(folder)
        score = adapter.saved_modules.get("score.weight")
        if score is None or score.ndim != 2:
            raise ColakitError(
                f"{folder}: the adapter has no classification head (`score`)", hint="Give a SEQ_CLS adapter."
            )
        num_labels = len(score)
        names = companion.label_names or [f"LABEL_{i}" for i in range(num_labels)]
        with library_errors(folder / COMPANION_NAME, hint="Save the adapter again."):
            check_threshold(companion.threshold, num_labels)
            if len(names) != num_labels:
                raise ValueError(f"label_names must be {num_labels} strings (got {len(names)})")
        return cls(folder, adapter, companion, tuple(names))

    def on(self, gpt: GPT, base_folder: Path, base: str | None = None) -> SentenceClassifier:
        """Return the classifier; `gpt` becomes a part of it.

        Args:
            base_folder: of the base's tokenizer, unless the adapter has its own.
            base: name of the base, if not the recorded one.
        """
        positions, companion = gpt.config.num_positions, self.companion
        model = gpt.classifier(len(self.label_names))
        apply_adapter(model, self.peft, where=str(self.path))
        return SentenceClassifier(
            model.eval(),
            self._tokenizer(base_folder, model),
            self.label_names,
            min(companion.max_tokens or positions, positions),
            companion.threshold,
            self.peft.config,
            companion.origin or {"command": "adapter", "base": base or self.peft.base},
            companion.temperature,
        )

    def _tokenizer(self, base_folder: Path, model: GPTClassifier) -> SentenceTokenizer:
        """Return the tokenizer in the adapter's folder, or that of its base.

        PEFT's adapters add the boundary tokens of the tokenizer's template, colakit's those of colakit.json.
        """
        source = self.path if has_tokenizer(self.path) else base_folder
        tokenizer = SentenceTokenizer.from_base(
            source,
            prefix=self.companion.prefix,
            suffix=self.companion.suffix,
            start=self.companion.start_token,
            template=self.companion.is_empty,
        )
        require_embeddings(tokenizer, model.config.vocab_size, source)
        if base_folder.is_dir():
            _require_padding(tokenizer, base_folder)
        return tokenizer


def _is_transformers(folder: Path) -> bool:
    """Return whether a folder holds a `…ForSequenceClassification` of transformers."""
    if not (folder / "config.json").is_file():
        return False
    names = read_config_file(folder).architectures or []
    return any(name.endswith("ForSequenceClassification") for name in names)


def _from_transformers(folder: Path) -> SentenceClassifier:
    model, config = load_classifier_model(folder), read_config_file(folder)
    if config.problem_type not in (None, "single_label_classification"):
        raise ColakitError(
            f"{folder}/config.json: problem_type is {config.problem_type!r}; only "
            "single_label_classification is supported"
        )
    tokenizer = load_tokenizer(folder, template=True)
    _require_padding(tokenizer, folder)
    names, companion = config.id2label or {}, read_companion(folder)
    labels = tuple(names.get(str(i), f"LABEL_{i}") for i in range(model.num_labels))
    with library_errors(folder / COMPANION_NAME, hint="Export the model again."):
        check_threshold(companion.threshold, model.num_labels)
    positions = model.config.num_positions
    return SentenceClassifier(
        model,
        tokenizer,
        labels,
        min(companion.max_tokens or positions, positions),
        companion.threshold,
        origin=companion.origin or {"command": "classifier", "base": str(folder)},
        temperature=companion.temperature,
    )


def _require_padding(tokenizer: SentenceTokenizer, folder: Path) -> None:
    """Refuse a template that ends with the padding token: transformers then reads the token before it."""
    padding = read_config_file(folder).pad_token_id
    if tokenizer.num_own and padding is not None and tokenizer.encode([""]).ids[-1] == padding:
        raise ColakitError(
            f"{folder}/config.json: pad_token_id is {padding}, which the tokenizer adds after each sentence",
            hint="Save the model with another pad_token_id.",
        )


def load_base_of(folder: Path, adapter: PeftAdapter, base: str | None) -> tuple[GPT, Path]:
    """Return the base of the adapter in `folder`, and the folder of the base.

    Args:
        base: replaces the base that the run folder or the adapter records.

    Raises:
        ColakitError: if there is no base, or the adapter was trained on another one.
    """
    carried = folder / BASE_FOLDER
    if base is None and (carried / "config.json").is_file():
        base = str(carried)
    base = base or read_origin(folder).get("base") or adapter.base
    if not base:
        raise ColakitError(f"{folder}: adapter_config.json names no base model", hint="Name it with --base.")
    try:
        base_folder = resolve_base(base)
    except ColakitError as error:
        hint = f"Name the base it was trained on with --base. {error.hint or ''}".rstrip()
        raise ColakitError(f"{folder}: its base: {error.message}", hint=hint) from error
    gpt = load_gpt(base_folder)
    check_base(folder, base, lambda: base_fingerprint(gpt))
    return gpt, base_folder


def check_base(folder: Path, base: str, fingerprint: Callable[[], str]) -> None:
    """Raise `ColakitError` if the adapter in `folder` records another base than the one named `base`.

    Args:
        fingerprint: of that base, called if the adapter records one.
    """
    expected = read_companion(folder).origin.get("base_fingerprint")
    if expected is not None and expected != (actual := fingerprint()):
        raise ColakitError(
            f"{folder}: was trained on a base with fingerprint {str(expected)[:12]}…; "
            f"{base} has {actual[:12]}…",
            hint="Name the base it was trained on with --base.",
        )


def encode_split(
    classifier: SentenceClassifier, split: Split, arrays: ArrayCache, reporter: Reporter, reader: str = ""
) -> Tokens:
    """Return the tokens of a split; warn about truncated sentences, with `reader` before the split's name."""
    tokens = classifier.encode(split.sentences, arrays)
    warn_truncated(tokens, split, classifier.max_tokens, reporter, reader)
    return tokens


def warn_truncated(
    tokens: Tokens, split: Split, max_tokens: int | None, reporter: Reporter, reader: str = ""
) -> None:
    """Warn if sentences were truncated."""
    if tokens.num_truncated:
        reporter.warn(
            f"{reader}{split.name}: {tokens.num_truncated} of {len(split)} sentences are longer than "
            f"{max_tokens} tokens and were truncated"
        )
