"""The data of commands that are given finished models: recorded by the models, or none at all."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from colakit.api.session import Session
from colakit.config.settings import DataSettings
from colakit.data.corpora import Corpus
from colakit.errors import ColakitError
from colakit.inference.classifier import read_origin

FILE_SETTINGS = ("path", "splits")  # the settings of `data` that name files


def load_corpus_of(session: Session, models: Sequence[str]) -> Corpus:
    """Return the corpus that the settings name; if they name none, the one that `models` record.

    Raises:
        ColakitError: if the models record different data, or the recorded files are not found.
    """
    data = recorded_data(session, models)
    try:
        return session.load_corpus(data)
    except ColakitError as error:
        if data is None:
            raise
        hint = f"{error.hint or ''} The path is as recorded when the model was trained; --data replaces it."
        raise ColakitError(error.message, hint=hint.strip(), exit_code=error.exit_code) from error


def recorded_data(session: Session, models: Sequence[str]) -> DataSettings | None:
    """Return the data settings that `models` record; None if none do or if the settings name files.

    Given settings of `data` that name no files, such as a column, replace the recorded ones. Models without
    recorded data, such as adapters written by PEFT, are assumed to have the data of the others.

    Raises:
        ColakitError: if the models record different data.
    """
    given = {key.removeprefix("data.") for key in session.resolved.origins if key.startswith("data.")}
    if given.intersection(FILE_SETTINGS):
        return None
    recorded = {model: data for model in models if (data := _recorded(model)) is not None}
    if not recorded:
        return None
    first, data = next(iter(recorded.items()))
    for model, other in recorded.items():
        if _identity(other) != _identity(data):
            raise ColakitError(
                f"{first} was trained on {_describe(data)}, {model} on {_describe(other)}",
                hint="Name the data: --data PATH, or --config RUN/settings.yaml.",
            )
    session.reporter.say(f"data: {_describe(data)}, recorded by {first}")
    return DataSettings.model_validate(
        {**data.model_dump(), **session.settings.data.model_dump(include=given)}
    )


def refuse_data_flags(session: Session, flag: str, reason: str, *others: str) -> None:
    """Raise `ColakitError` if a typed flag selects a dataset, which `flag` makes meaningless.

    Args:
        others: further settings that have no meaning with `flag`.
    """
    refused = ("data.", "evaluate.splits", "evaluate.annotations", *others)
    for key, origin in session.resolved.origins.items():
        if session.resolved.was_typed(key) and key.startswith(refused):
            raise ColakitError(f"{origin} with {flag}: {reason}", hint="Leave one of them out.")


def _recorded(model: str) -> DataSettings | None:
    origin = read_origin(model)
    if origin.get("command") == "discriminate":  # reads running text, and ignores `data`
        return None
    settings: Any = origin.get("settings")
    data = settings.get("data") if isinstance(settings, dict) else None
    try:
        return None if data is None else DataSettings.model_validate(data)
    except ValidationError as error:
        raise ColakitError(
            f"{model}: its recorded data settings are invalid ({error.errors()[0]['msg']})",
            hint="Name the data with --data.",
        ) from error


def _identity(data: DataSettings) -> tuple[Any, ...]:
    """Return the resolved paths of the files, and the columns to read."""
    paths = sorted(data.splits.items()) or [("", data.path)]
    files = [(name, Path(path).expanduser()) for name, path in paths]
    resolved = [(name, str(path.resolve() if path.exists() else path)) for name, path in files]
    return *resolved, data.text_column, data.label_column


def _describe(data: DataSettings) -> str:
    files = ", ".join(f"{name}={path}" for name, path in data.splits.items()) or data.path
    return f"{files} (column {data.text_column})" if data.text_column else files
