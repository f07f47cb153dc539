"""Causal language models: a base, a base with an adapter, or the body of a fine-tuned classifier."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from colakit.data.tokenizer import SentenceTokenizer
from colakit.errors import ColakitError
from colakit.inference.classifier import load_base_of, load_classifier
from colakit.inference.model_names import distinct_names, run_folder
from colakit.models.gpt.model import GPT, GPTClassifier
from colakit.storage.gpt2 import BUILTIN, load_gpt, load_tokenizer, resolve_base
from colakit.storage.model_file import read_companion
from colakit.storage.peft import apply_adapter, read_adapter
from colakit.storage.run_set import expand_runs
from colakit.storage.tensors import require_finite

LanguageModel = tuple[GPT, SentenceTokenizer]
Loaders = dict[str, Callable[[], LanguageModel]]  # name -> loader, so that one model is in memory at a time


def load_language_model(
    adapter: str | None, base: str, *, base_typed: bool, start_token: str | None = None
) -> LanguageModel:
    """Return a language model and its tokenizer, which adds no boundary tokens.

    A fine-tuned classifier becomes its body, with the token embedding as output layer.

    Args:
        adapter: adapter folder, run folder or `ckpt.pt`; None for the base itself.
        base_typed: `base` replaces the base that an adapter records.

    Raises:
        ColakitError: if a file is missing or broken, or the model is a recurrent student.
    """
    if adapter is None:
        return _load_base(resolve_base(base), start_token)
    path = Path(adapter).expanduser()
    if not (path / "adapter_config.json").is_file():
        classifier = load_classifier(path)
        if not isinstance(classifier.model, GPTClassifier):
            raise ColakitError(
                f"{path}: a recurrent student is not a language model",
                hint="Give a run of finetune, an adapter folder, or a base with --base.",
            )
        tokenizer = classifier.tokenizer.with_boundaries().with_start(start_token)
        return classifier.model.language_model(), tokenizer
    weights = read_adapter(path)
    model, folder = load_base_of(path, weights, base if base_typed or not weights.base else None)
    apply_adapter(model, weights, where=str(path))
    require_finite(model, path)
    start = start_token or read_companion(path).start_token
    return model, load_tokenizer(folder, start=start)


def language_model_loaders(
    models: Sequence[str], base: str, *, base_named: bool, base_typed: bool, start_token: str | None = None
) -> Loaders:
    """Return a loader for each of `models`: adapters, runs, checkpoints, folders of bases, or `builtin`.

    Args:
        base: first model of the result if `models` is empty or `base_named`.
        base_typed: `base` also replaces the base that adapters record.
        start_token: replaces the start tokens that bases and models record.

    Raises:
        ColakitError: if a model is not found, or a fold is not finished.
    """
    folders = {model: _base_folder(model) for model in expand_runs(models)}
    for model, folder in folders.items():
        if folder is None and not Path(model).expanduser().exists():
            raise ColakitError(
                f"{model}: not found",
                hint="Give a run, a ckpt.pt, an adapter folder, the folder of a base or `builtin`; "
                "give a hub name with --base.",
            )
    paths = {model: run_folder(model) for model in folders if model not in BUILTIN}
    names = {
        **{name: f"base {name}" for name in BUILTIN},
        **dict(zip(paths, distinct_names([*paths.values()]), strict=True)),
    }
    load = partial(load_language_model, base=base, base_typed=base_typed, start_token=start_token)
    loaders: Loaders = {}
    if not models or base_named:
        loaders[f"base {Path(base).name}"] = partial(load, None)
    for model, folder in folders.items():
        name = model if names[model] in loaders else names[model]  # RUN and RUN/ckpt.pt share a name
        loaders[name] = partial(load, model) if folder is None else partial(_load_base, folder, start_token)
    return loaders


def _base_folder(model: str) -> Path | None:
    """Return the folder or GGUF file of a base: by name, its files, or `base/` in a finished run."""
    path = Path(model).expanduser()
    if model in BUILTIN or path.suffix == ".gguf":
        return resolve_base(model)
    if (path / "config.json").is_file() and not (path / "adapter_config.json").exists():
        return path
    finished = (path / "summary.json").is_file() and (path / "base" / "config.json").is_file()
    return path / "base" if finished else None


def _load_base(folder: Path, start_token: str | None) -> LanguageModel:
    return load_gpt(folder), load_tokenizer(folder, start=start_token)
