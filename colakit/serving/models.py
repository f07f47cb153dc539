"""The models that a server answers with: loading, replacing and removing them while it runs."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from colakit.config.serve import ServeSettings
from colakit.data.tokens import Tokens
from colakit.errors import ColakitError, did_you_mean
from colakit.inference.classifier import (
    ADAPTER_CONFIG,
    AdapterFolder,
    SentenceClassifier,
    check_base,
    load_base_of,
    load_classifier,
)
from colakit.inference.decisions import Predictions
from colakit.inference.numpy_predictor import StudentPredictor
from colakit.inference.onnx_predictor import OnnxPredictor, onnx_file
from colakit.inference.predictor import Predictor
from colakit.inference.sentence_predictor import SentencePredictor
from colakit.runtime.device import Compute
from colakit.serving.adapter import Adapter
from colakit.serving.bank import AdapterBank
from colakit.serving.batcher import Batcher, Logits
from colakit.storage.gpt2 import base_fingerprint, load_gpt, resolve_base
from colakit.storage.model_file import student_file
from colakit.utils.documents import library_errors

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
MAX_FOLDER_BYTES = 2**32  # of a model that is loaded over HTTP
MAX_FOLDER_FILES = 1000
STUDENT_BATCH = 64  # sentences; with those of a server's batches, a fourth faster than the default
TRIAL = "The cat sleeps."  # a new model labels it before it is served

Kind = Literal["adapter", "student", "onnx", "model"]
BatchObserver = Callable[[int, int, float], object]


@dataclass(frozen=True, eq=False)
class ServedModel:
    """One version of a model.

    Attributes:
        version: counts the models of this name, from 1.
        encode: sentences -> tokens, truncated to `max_tokens`.
        part: what differs between the models of a batcher.
        batcher: computes the units of this model and of others.
    """

    name: str
    version: int
    kind: Kind
    label_names: tuple[str, ...]
    threshold: float | None
    temperature: float
    max_tokens: int | None
    encode: Callable[[Sequence[str]], Tokens]
    part: Adapter | SentencePredictor
    batcher: Batcher

    def units(self, tokens: Tokens) -> list[Any]:
        """Return what the batcher computes, a unit for each sentence."""
        return [(self.part, tokens.sentence(i)) for i in range(len(tokens))]

    def predictions(self, logits: Sequence[Logits]) -> Predictions:
        """Return labels and probabilities."""
        return Predictions.of(np.stack(logits), self.label_names, self.threshold, 0, self.temperature)


class ModelStore:
    """The served models, by name. Readers see either a model or its replacement, never a part of one.

    Args:
        settings: of the batches.
        base: of the adapters; None takes that of the first adapter.
        compute: of the adapters and of whole GPTs. Students and ONNX files run on the CPU without torch.
        on_batch: called after each batch, in its thread.
    """

    def __init__(
        self,
        settings: ServeSettings,
        compute: Compute,
        base: str | None = None,
        on_batch: BatchObserver = lambda units, tokens, seconds: None,
    ) -> None:
        self._settings, self._compute, self._on_batch = settings, compute, on_batch
        self._base_name, self._base_folder, self._base_fingerprint = base, Path(), ""
        self._bank: AdapterBank | None = None
        self._bank_batcher: Batcher | None = None
        self._whole_batcher = self._batcher(_run_whole)
        self._tokenizers: dict[str, Any] = {}
        self._versions: dict[str, int] = {}
        self._models: dict[str, ServedModel] = {}
        self._writing = threading.Lock()

    @property
    def models(self) -> dict[str, ServedModel]:
        """The current models; the mapping is never changed, only replaced."""
        return self._models

    @property
    def waiting(self) -> int:
        """Tokens that wait."""
        batchers = (self._bank_batcher, self._whole_batcher)
        return sum(batcher.waiting for batcher in batchers if batcher is not None)

    def get(self, name: str | None) -> ServedModel:
        """Return a model; None is the only one.

        Raises:
            KeyError: if there is no such model; its argument is the message.
        """
        models = self._models
        if name is None:
            if len(models) == 1:
                return next(iter(models.values()))
            raise KeyError(f"model: missing; name one of {', '.join(models) or 'no models'}")
        if name not in models:
            raise KeyError(f"model {name[:80]!r}: is not served.{did_you_mean(name, models)}")
        return models[name]

    def load(self, name: str, path: Path) -> ServedModel:
        """Serve the model at `path` as `name`. The old one, if any, stays until the new one is complete.

        Raises:
            ColakitError: if the name is not allowed, or the model is damaged or cannot be served.
        """
        if not NAME.fullmatch(name):
            raise ColakitError(
                f"model name {name[:80]!r}: must be up to 64 letters, digits, `.`, `_` and `-`",
                hint="Give it as NAME=PATH.",
            )
        with self._writing:
            model = self._build(name, path.expanduser())
            with library_errors(path, hint="Train, export or copy it again."):
                logits = self._trial(model)
            if not np.isfinite(logits).all():
                raise ColakitError(f"{path}: its logits are not finite", hint="Train or copy it again.")
            self._versions[name] = model.version
            self._models = {**self._models, name: model}
        return model

    def unload(self, name: str) -> ServedModel:
        """Stop serving a model; requests in flight finish.

        Raises:
            KeyError: if there is no such model.
        """
        with self._writing:
            model = self.get(name)
            self._models = {key: other for key, other in self._models.items() if key != name}
        return model

    def _build(self, name: str, path: Path) -> ServedModel:
        version = self._versions.get(name, 0) + 1
        inner = path / "adapter"  # of a run folder
        folder = inner if (inner / ADAPTER_CONFIG).is_file() else path
        if (folder / ADAPTER_CONFIG).is_file():
            return self._adapter(name, version, folder)
        kind: Kind = "model"
        whole: SentencePredictor
        if (file := onnx_file(path)) is not None:
            kind, whole = "onnx", OnnxPredictor(file)
        elif student_file(path) is not None:
            kind, whole = "student", StudentPredictor(path, STUDENT_BATCH)
        else:
            whole = Predictor(load_classifier(path), self._compute)
        decision = (whole.label_names, whole.threshold, whole.temperature, whole.max_tokens)
        return ServedModel(name, version, kind, *decision, whole.encode, whole, self._whole_batcher)

    def _adapter(self, name: str, version: int, folder: Path) -> ServedModel:
        content = AdapterFolder.read(folder)
        bank = self._bank or self._open_bank(content)
        assert self._bank_batcher is not None
        assert self._base_name is not None
        check_base(folder, self._base_name, lambda: self._base_fingerprint)
        classifier = content.on(bank.base(), self._base_folder, self._base_name)
        with library_errors(folder, hint="Save the adapter again."):
            adapter = bank.adapter_of(classifier.model, str(folder))  # type: ignore[arg-type]
        encode = partial(self._shared_tokenizer(classifier).encode, max_tokens=classifier.max_tokens)
        decision = (classifier.label_names, classifier.threshold, classifier.temperature)
        rule = (*decision, classifier.max_tokens)
        return ServedModel(name, version, "adapter", *rule, encode, adapter, self._bank_batcher)

    def _open_bank(self, first: AdapterFolder) -> AdapterBank:
        """Load the base: the one that was named, or that of the first adapter."""
        if self._base_name is None:
            gpt, self._base_folder = load_base_of(first.path, first.peft, None)
            self._base_name = str(self._base_folder)
        else:
            self._base_folder = resolve_base(self._base_name)
            gpt = load_gpt(self._base_folder)
        self._base_fingerprint = base_fingerprint(gpt)
        self._bank = AdapterBank(gpt, self._compute)
        self._bank_batcher = self._batcher(self._bank.logits)
        return self._bank

    def _shared_tokenizer(self, classifier: SentenceClassifier) -> Any:
        """Return the tokenizer of an equal one that is in memory already, or the classifier's."""
        key = classifier.tokenizer.fingerprint()
        return self._tokenizers.setdefault(key, classifier.tokenizer)

    def _batcher(self, run: Callable[[list[Any]], Sequence[Logits]]) -> Batcher:
        return Batcher(
            run,
            max_tokens=self._settings.max_batch_tokens,
            max_wait=self._settings.max_wait_ms / 1000,
            max_queue=self._settings.max_queue_tokens,
            on_batch=self._on_batch,
        )

    def _trial(self, model: ServedModel) -> NDArray[np.float32]:
        """Return the logits of `TRIAL`, computed in this thread."""
        units = model.units(model.encode([TRIAL]))
        return np.stack(model.batcher.run(units))

    def close(self) -> None:
        """End the threads; no model answers afterwards."""
        for batcher in (self._bank_batcher, self._whole_batcher):
            if batcher is not None:
                batcher.close()


def _run_whole(units: list[tuple[SentencePredictor, NDArray[np.int32]]]) -> list[Logits]:
    """Return the logits of each unit: model, tokens."""
    results: list[Logits] = [np.empty(0, dtype=np.float32)] * len(units)
    by_model: dict[int, list[int]] = {}
    for i, (model, _) in enumerate(units):
        by_model.setdefault(id(model), []).append(i)
    for indices in by_model.values():
        logits = units[indices[0]][0].logits(Tokens.pack([units[i][1] for i in indices]))
        for i, row in zip(indices, logits, strict=True):
            results[i] = row
    return results


def resolve_inside(root: Path, path: str) -> Path:
    """Return `path` in the folder `root`, after checks that no part of it leads elsewhere.

    Raises:
        ColakitError: if it is absolute, leaves the folder, holds a link out of it, or is too large.
    """
    hint = "Name a folder below --adapter-dir."
    top = root.resolve()
    if "\0" in path or not path or Path(path).is_absolute() or ".." in Path(path).parts:
        raise ColakitError(f"path {path[:80]!r}: must be relative, without `..`", hint=hint)
    with library_errors(f"path {path[:80]!r}", hint=hint):  # links in a circle, links to nothing
        folder = (top / path).resolve()
        if not folder.is_relative_to(top) or folder == top or not folder.is_dir():
            raise ColakitError(f"path {path[:80]!r}: is no folder below --adapter-dir", hint=hint)
        size = 0
        for number, entry in enumerate(folder.rglob("*")):
            if number == MAX_FOLDER_FILES:
                raise ColakitError(f"path {path[:80]!r}: has more than {MAX_FOLDER_FILES:,} files", hint=hint)
            if not entry.resolve().is_relative_to(top):
                raise ColakitError(
                    f"path {path[:80]!r}: {entry.name[:80]!r} is a link out of --adapter-dir", hint=hint
                )
            size += entry.stat().st_size
        if size > MAX_FOLDER_BYTES:
            raise ColakitError(f"path {path[:80]!r}: is larger than {MAX_FOLDER_BYTES:,} bytes", hint=hint)
    return folder
