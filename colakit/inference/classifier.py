"""A trained classifier with all it needs to label sentences, and its one-file form `ckpt.pt`.

The file holds tensors and plain data only and is read with `weights_only=True`; the tokenizer is inside, so
that a student runs without the base it came from, and without transformers.
"""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from colakit import __version__
from colakit.data.tokenizer import SentenceTokenizer, encode_cached
from colakit.data.tokens import INFERENCE_BATCH, Tokens
from colakit.errors import ColakitError, first_line
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
from colakit.storage.folds import find_folds
from colakit.storage.gpt2 import base_fingerprint, load_gpt, resolve_base
from colakit.storage.model_file import CHECKPOINT_FORMAT, CHECKPOINT_NAME, check_facts, student_name
from colakit.storage.peft import apply_adapter, read_adapter
from colakit.storage.tensor_files import read_tensors, write_tensors
from colakit.utils.array_cache import ArrayCache
from colakit.utils.files import read_json

ADAPTER_NAME = "adapter"
COMPANION_NAME = "colakit.json"  # beside PEFT's two files: what PEFT has no place for


@dataclass
class SentenceClassifier:
    """A model, its tokenizer and its decision rule.

    Attributes:
        model: maps (input_ids, attention_mask) to (B, C) logits.
        label_names: C names.
        max_tokens: longest sentence in tokens; longer ones are cut, and counted.
        threshold: probability of class 1 from which it is answered; None takes the likeliest class.
        lora: how the model was adapted, for a GPT.
        origin: plain data on where the model comes from: command, seed, base, settings.
    """

    model: GPTClassifier | DistilRNN
    tokenizer: SentenceTokenizer
    label_names: tuple[str, ...]
    max_tokens: int | None = None
    threshold: float | None = None
    lora: LoRAConfig | None = None
    origin: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """What to call this kind of model in a table."""
        if isinstance(self.model, DistilRNN):
            return student_name(self.origin, self.model.config.cell)
        command = self.origin.get("command", "adapter")
        if self.lora is not None:
            return f"{command} (GPT-2, rank {self.lora.rank})"
        tuning = self.origin.get("settings", {}).get("finetune", {})
        return f"{command} (GPT-2, {'from scratch' if tuning.get('from_scratch') else 'full'})"

    def encode(self, sentences: Sequence[str], cache: ArrayCache | None = None) -> Tokens:
        """Return the sentences' tokens, as this model was trained on them."""
        return encode_cached(self.tokenizer, sentences, self.max_tokens, cache)

    def logits(
        self, tokens: Tokens, compute: Compute, batch_size: int = INFERENCE_BATCH, done: Done | None = None
    ) -> NDArray[np.float32]:
        """Return (N, C) logits of N encoded sentences; the model must have been placed on `compute`."""
        return compute_logits(self.model, tokens, compute, batch_size, done)

    def require_labels(self, label_names: tuple[str, ...], where: str) -> None:
        """Raise `ColakitError` unless this model and the data called `label_names` are of one task.

        A folder that PEFT wrote does not name its labels; there the count decides.
        """
        unnamed = tuple(f"LABEL_{i}" for i in range(len(label_names)))
        if self.label_names not in (label_names, unnamed):
            raise ColakitError(
                f"{where}: its labels are {', '.join(self.label_names)}; "
                f"the data's are {', '.join(label_names)}",
                hint="Model and data must be of one task.",
            )

    def predict_labels(self, logits: NDArray[np.float32]) -> NDArray[np.int64]:
        """Return (N,) labels for (N, C) logits."""
        return predict_labels(logits, self.threshold)

    def fingerprint(self) -> str:
        """Return a SHA-256 over everything that determines the logits of a sentence."""
        digest = hashlib.sha256(self.tokenizer.fingerprint().encode())
        digest.update(json.dumps([self.max_tokens, _shape(self)], sort_keys=True, default=str).encode())
        for name, tensor in sorted(self.model.state_dict().items()):
            digest.update(name.encode())
            digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    def save(self, path: Path) -> None:
        """Write the classifier to one file, whole or not at all."""
        tensors = {
            name: tensor.detach().cpu().contiguous() for name, tensor in self.model.state_dict().items()
        }
        shape = _shape(self)
        plain = {
            "format": 2 if "layers_to_transform" in (shape["lora"] or {}) else 1,
            "colakit": __version__,
            **shape,
            "tokenizer": self.tokenizer.to_dict(),
            "label_names": list(self.label_names),
            "max_tokens": self.max_tokens,
            "threshold": self.threshold,
            "origin": self.origin,
        }
        # Through JSON and back: pickle writes a string once or twice depending on which objects happen to be
        # one, and equal classifiers should be equal bytes.
        content = {**json.loads(json.dumps(plain)), "tensors": tensors}
        write_tensors(path, content)

    def companion(self) -> dict[str, Any]:
        """Return what an adapter folder needs beside PEFT's files, as plain data."""
        return {
            "label_names": list(self.label_names),
            "max_tokens": self.max_tokens,
            "threshold": self.threshold,
            "prefix": self.tokenizer.prefix,
            "suffix": self.tokenizer.suffix,
            "origin": self.origin,
        }


def _shape(classifier: SentenceClassifier) -> dict[str, Any]:
    lora = None
    if classifier.lora is not None:
        lora = asdict(classifier.lora)
        lora["target_modules"] = list(classifier.lora.target_modules)
        lora["overrides"] = {name: dict(changes) for name, changes in classifier.lora.overrides.items()}
        if classifier.lora.layers_to_transform is None:  # and fingerprints stay what they were without it
            del lora["layers_to_transform"]
    kind = "rnn" if isinstance(classifier.model, DistilRNN) else "gpt"
    return {"kind": kind, "config": asdict(classifier.model.config), "lora": lora}


def load_classifier(where: str | Path, *, base: str | None = None) -> SentenceClassifier:
    """Load a classifier from a `ckpt.pt`, a run folder, or an adapter folder of colakit's or PEFT's.

    Args:
        base: for an adapter folder, the base to put it on; by default the one the adapter names.

    Raises:
        ColakitError: if there is no classifier, or it is broken, foreign or of a newer format.
    """
    path = _locate(where)
    return _from_adapter(path, base) if path.is_dir() else _from_checkpoint(path)


def read_origin(where: str | Path) -> dict[str, Any]:
    """Return `SentenceClassifier.origin` of what `load_classifier` would load, without building the model.

    It is empty for an adapter that PEFT wrote.

    Raises:
        ColakitError: if there is no classifier, or its file cannot be read.
    """
    path = _locate(where)
    origin = (_read_companion(path) if path.is_dir() else _read_checkpoint(path)).get("origin")
    return origin if isinstance(origin, dict) else {}


def _locate(where: str | Path) -> Path:
    """Return the checkpoint or the adapter folder that `where` stands for."""
    path = Path(where).expanduser()
    if path.is_dir():
        if (path / CHECKPOINT_NAME).is_file():
            return path / CHECKPOINT_NAME
        if (path / "adapter_config.json").is_file():
            return path
        raise ColakitError(
            f"{path}: holds neither {CHECKPOINT_NAME} nor adapter_config.json", hint=_what_to_give(path)
        )
    if not path.exists():
        raise ColakitError(f"{path}: not there", hint="Give a run folder, a ckpt.pt or an adapter folder.")
    return path


def _what_to_give(folder: Path) -> str:
    if (folder / "summary.json").is_file() and (folder / "base").is_dir():
        return f"It made a base, no classifier: tune it with --base {shlex.quote(str(folder / 'base'))}"
    if Checkpoints(folder / "checkpoints").found():
        return f"This run is not finished: continue it with --resume --out {shlex.quote(str(folder))}"
    if find_folds(folder) is not None:
        return f"It holds folds; one model is wanted here, such as {folder / 'fold-1'}"
    return "Give a run folder, a ckpt.pt or an adapter folder."


def _read_checkpoint(path: Path) -> dict[str, Any]:
    try:
        content = read_tensors(path)
    except Exception as error:  # the unpickler passes on whatever a damaged file makes it stumble over
        raise ColakitError(
            f"{path}: is no checkpoint of colakit's ({first_line(error)})", hint="Was it copied whole?"
        ) from error
    if not isinstance(content, dict) or "format" not in content or "kind" not in content:
        raise ColakitError(f"{path}: is no checkpoint of colakit's", hint="Give the ckpt.pt of a run folder.")
    if isinstance(content["format"], int) and content["format"] > CHECKPOINT_FORMAT:
        raise ColakitError(
            f"{path}: format {content['format']}; this colakit reads up to {CHECKPOINT_FORMAT}",
            hint="Upgrade colakit.",
        )
    return content


def _from_checkpoint(path: Path) -> SentenceClassifier:
    content = _read_checkpoint(path)
    try:
        model, lora = _rebuild(content)
        model.load_state_dict(content["tensors"], assign=True)
        if isinstance(model, DistilRNN):
            model.check_rows()
        check_facts(content, model.num_labels)
        return SentenceClassifier(
            model=model.eval(),
            tokenizer=SentenceTokenizer.from_dict(content["tokenizer"]),
            label_names=tuple(content["label_names"]),
            max_tokens=content["max_tokens"],
            threshold=content["threshold"],
            lora=lora,
            origin=content["origin"],
        )
    except Exception as error:  # whatever the missing or foreign content leads to
        raise ColakitError(
            f"{path}: the checkpoint is damaged ({error})", hint="Train or copy it again."
        ) from error


def _rebuild(content: dict[str, Any]) -> tuple[GPTClassifier | DistilRNN, LoRAConfig | None]:
    """Build the empty model that the checkpoint's tensors fit."""
    with without_weights():
        if content["kind"] == "rnn":
            return DistilRNN(RNNConfig(**content["config"])), None
        num_labels = content["tensors"]["score.weight"].shape[0]
        model = GPT(GPTConfig(**content["config"])).classifier(num_labels)
        if content["lora"] is None:
            return model, None
        lists = {name: tuple(value) for name, value in content["lora"].items() if isinstance(value, list)}
        lora = LoRAConfig(**{**content["lora"], **lists})
        # the residual that PiSSA froze is in the tensors
        inject(model, replace(lora, init="kaiming"))
        if lora.init == "pissa":
            for _, layer in lora_layers(model):
                layer.keep_start(layer.lora_a, layer.lora_b)
        return model, lora


def _from_adapter(folder: Path, base: str | None) -> SentenceClassifier:
    adapter, companion = read_adapter(folder), _read_companion(folder)
    if base is None and companion.get("origin", {}).get("base") == "builtin":
        base = "builtin"  # wherever colakit is installed now
    base = base or adapter.base
    if not base:
        raise ColakitError(f"{folder}: does not name its base", hint="Name it with --base.")
    if "score.weight" not in adapter.saved_modules:
        raise ColakitError(
            f"{folder}: holds no classification head (`score`)", hint="Is it a SEQ_CLS adapter?"
        )
    base_folder = resolve_base(base)
    gpt = load_gpt(base_folder)
    check_base(folder, base, gpt)
    num_labels = adapter.saved_modules["score.weight"].shape[0]
    model = gpt.classifier(num_labels)
    apply_adapter(model, adapter, where=str(folder))
    facts: dict[str, Any] = {
        "label_names": companion.get("label_names") or [f"LABEL_{i}" for i in range(num_labels)],
        "max_tokens": companion.get("max_tokens") or gpt.config.num_positions,
        "threshold": companion.get("threshold"),
        "origin": companion.get("origin") or {"command": "adapter", "base": base},
    }
    try:
        check_facts(facts, num_labels)
    except ValueError as error:
        raise ColakitError(f"{folder}/{COMPANION_NAME}: {error}", hint="Save the adapter again.") from error
    return SentenceClassifier(
        model=model.eval(),
        tokenizer=SentenceTokenizer.from_folder(
            base_folder,
            prefix=bool(companion.get("prefix")),
            suffix=bool(companion.get("suffix")),
        ),
        label_names=tuple(facts["label_names"]),
        max_tokens=facts["max_tokens"],
        threshold=facts["threshold"],
        lora=adapter.config,
        origin=facts["origin"],
    )


def _read_companion(folder: Path) -> dict[str, Any]:
    path = folder / COMPANION_NAME
    if not path.is_file():
        return {}
    try:
        companion = read_json(path)
    except (OSError, ValueError) as error:
        raise ColakitError(
            f"{path}: not JSON ({error})", hint="Save the adapter again, or delete this file."
        ) from error
    if not isinstance(companion, dict) or not isinstance(companion.get("origin", {}), dict):
        raise ColakitError(
            f"{path}: not what colakit writes", hint="Save the adapter again, or delete this file."
        )
    return companion


def check_base(folder: Path, base: str, gpt: GPT) -> None:
    """Raise `ColakitError` if the adapter in `folder` is known to have been trained on another base.

    Args:
        base: how people call `gpt`.
    """
    made_for = _read_companion(folder).get("origin", {}).get("base_fingerprint")
    if made_for is not None and made_for != (found := base_fingerprint(gpt)):
        raise ColakitError(
            f"{folder}: was trained on a base with fingerprint {str(made_for)[:12]}…; "
            f"{base} has {found[:12]}…",
            hint="Name the base it was trained on with --base.",
        )
