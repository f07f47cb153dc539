"""The language model of a base, or of a base with an adapter on it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from colakit.api.session import Session
from colakit.data.tokenizer import SentenceTokenizer
from colakit.errors import ColakitError
from colakit.evaluation.comparison import distinct_names
from colakit.inference.classifier import CHECKPOINT_NAME, check_base, load_classifier
from colakit.models.gpt.model import GPT, GPTClassifier
from colakit.storage.folds import expand_folds
from colakit.storage.gpt2 import load_gpt, resolve_base
from colakit.storage.peft import apply_adapter, read_adapter

LanguageModel = tuple[GPT, SentenceTokenizer]
Loaders = dict[str, Callable[[], LanguageModel]]  # by the model's name, so that one is loaded at a time


def load_language_model(session: Session, adapter: str | None) -> LanguageModel:
    """Return the language model and its tokenizer, without boundary tokens.

    Args:
        adapter: adapter folder, run folder or `ckpt.pt`; None is the plain base.

    Raises:
        ColakitError: if there is none, it is broken, or it is a recurrent student.
    """
    path = Path(adapter).expanduser() if adapter is not None else None
    if path is not None and not (path / "adapter_config.json").is_file():
        return _from_checkpoint(path)
    base = session.settings.base
    found = read_adapter(path) if path is not None else None
    if found is not None and found.base and not session.resolved.was_typed("base"):
        base = found.base
    folder = resolve_base(base)
    model = load_gpt(folder)
    if path is not None and found is not None:
        check_base(path, base, model)
        apply_adapter(model, found, where=str(path))
    return model, SentenceTokenizer.from_folder(folder)


def refuse_flags_of_corpora(session: Session, flag: str, why: str, *others: str) -> None:
    """Raise `ColakitError` where a flag or `--set` speaks of a corpus, beside `flag` that needs none.

    Args:
        others: settings that mean nothing here either.
    """
    beside = ("data.", "evaluate.splits", "evaluate.annotations", *others)
    for key, origin in session.resolved.origins.items():
        if session.resolved.was_typed(key) and key.startswith(beside):
            raise ColakitError(f"{origin} with {flag}: {why}", hint="Leave one of them out.")


def named_language_models(session: Session, models: Sequence[str]) -> Loaders:
    """Return name -> what loads it, of adapters, runs, checkpoints and bases; `--base` joins where named.

    Raises:
        ColakitError: if one is not there, or a fold of it not finished.
    """
    bases = {model: _base_at(model) for model in expand_folds(models)}
    for model, base in bases.items():
        if base is None and not Path(model).expanduser().exists():
            raise ColakitError(
                f"{model}: not there",
                hint="Give a run, a ckpt.pt, an adapter folder, a base's folder or `builtin`; "
                "a hub name goes to --base.",
            )
    paths = {model: Path(model) for model in bases if model != "builtin"}
    folders = [p.parent if p.name == CHECKPOINT_NAME and p.parent.name else p for p in paths.values()]
    names = {"builtin": "base builtin", **dict(zip(paths, distinct_names(folders), strict=True))}
    asked: Loaders = {}
    if not models or "base" in session.resolved.origins:
        asked[f"base {Path(session.settings.base).name}"] = partial(load_language_model, session, None)
    for model, base in bases.items():
        name = model if names[model] in asked else names[model]  # a run, and its ckpt.pt
        load = partial(load_language_model, session, model) if base is None else partial(_load_base, base)
        asked[name] = load
    return asked


def _base_at(model: str) -> Path | None:
    """Return the folder of the base that `model` means: `builtin`, a folder, or a finished run's `base/`."""
    if model == "builtin":
        return resolve_base(model)
    path = Path(model).expanduser()
    if (path / "config.json").is_file() and not (path / "adapter_config.json").exists():
        return path
    made = path / "base"
    return made if (path / "summary.json").is_file() and (made / "config.json").is_file() else None


def _load_base(folder: Path) -> LanguageModel:
    return load_gpt(folder), SentenceTokenizer.from_folder(folder)


def _from_checkpoint(path: Path) -> LanguageModel:
    """A tuned classifier still has its language model: the body, read out through the token embedding."""
    classifier = load_classifier(path)
    if not isinstance(classifier.model, GPTClassifier):
        raise ColakitError(
            f"{path}: is a recurrent student, which has no language model",
            hint="Give a run of finetune, an adapter folder, or a base with --base.",
        )
    tokenizer = SentenceTokenizer(classifier.tokenizer.backend, classifier.tokenizer.end_of_text_id)
    return classifier.model.transformer.language_model(), tokenizer
