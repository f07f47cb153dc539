"""The data that finished runs were trained on, for commands that are given nothing but runs."""

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

SOURCES = ("path", "splits")  # the settings that name files


def load_corpus_of(session: Session, models: Sequence[str]) -> Corpus:
    """Read the corpus that the settings name, or, where they name none, the one that `models` record.

    Raises:
        ColakitError: if the models were trained on different data, or theirs is not to be found from here.
    """
    data = recorded_data(session, models)
    try:
        return session.load_corpus(data)
    except ColakitError as error:
        if data is None:
            raise
        hint = f"{error.hint or ''} The data is recorded as it was named then; --data names another place."
        raise ColakitError(error.message, hint=hint.strip(), exit_code=error.exit_code) from error


def recorded_data(session: Session, models: Sequence[str]) -> DataSettings | None:
    """Return the data that `models` record, and say so; None where the settings name some, or none do.

    Settings of `data` that name no files (a column, say) go before those recorded. Models that record no
    data, as PEFT's do not, follow the others.

    Raises:
        ColakitError: if the models were trained on different data.
    """
    given = {key.removeprefix("data.") for key in session.resolved.origins if key.startswith("data.")}
    if given.intersection(SOURCES):
        return None
    recorded = {model: data for model in models if (data := _recorded(model)) is not None}
    if not recorded:
        return None
    first, data = next(iter(recorded.items()))
    for model, other in recorded.items():
        if _source(other) != _source(data):
            raise ColakitError(
                f"{first} was trained on {_named(data)}, {model} on {_named(other)}",
                hint="Name the data: --data PATH, or --config RUN/settings.yaml.",
            )
    typed = session.settings.data.model_dump(include=given)
    session.reporter.say(f"data: {_named(data)}, as {first} was trained on")
    return DataSettings.model_validate({**data.model_dump(), **typed})


def _recorded(model: str) -> DataSettings | None:
    origin = read_origin(model)
    if origin.get("command") == "pretrain":  # it reads running text, whatever `data` says
        return None
    settings: Any = origin.get("settings")
    found = settings.get("data") if isinstance(settings, dict) else None
    try:
        return None if found is None else DataSettings.model_validate(found)
    except ValidationError as error:
        raise ColakitError(
            f"{model}: the data it records cannot be read ({error.errors()[0]['msg']})",
            hint="Name the data with --data.",
        ) from error


def _source(data: DataSettings) -> tuple[Any, ...]:
    """Return what decides which sentences are read; two ways to write a path that is there are one."""
    places = sorted(data.splits.items()) or [("", data.path)]
    files = [(name, Path(place).expanduser()) for name, place in places]
    real = [(name, str(path.resolve() if path.exists() else path)) for name, path in files]
    return *real, data.text_column, data.label_column


def _named(data: DataSettings) -> str:
    """Write where data comes from, and its columns where it is a table of one's own."""
    place = ", ".join(f"{name}={path}" for name, path in data.splits.items()) or data.path
    return f"{place} (column {data.text_column})" if data.text_column else place
