"""The data of commands that are given finished models: recorded by the models, or none at all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from colakit.api.session import Session
from colakit.config.data import DataSettings
from colakit.data.builtin.corpus import BUILTIN_NAMES
from colakit.data.columnar import HUB_PREFIX
from colakit.data.corpora import Corpus
from colakit.data.splits import train_val_split
from colakit.errors import ColakitError
from colakit.inference.classifier import read_origin

NAMED = ("cola", *BUILTIN_NAMES)  # datasets with a known layout
FILES = ("path", "splits")  # settings of `data` that name files
BYTES = ("delimiter", "quoting", "encoding")  # settings that hold for these files only
# settings of `evaluate` that need labelled sentences
FOR_LABELLED_DATA = ("splits", "annotations", "classes", "errors", "disagreements", "ensembles")
TRAINING = ("val_fraction", "val_seed", "max_tokens", "mirrors")  # settings that do not describe the files
Recorded = Mapping[str, tuple[DataSettings, Mapping[str, str]]]  # model -> settings, split -> fingerprint


def load_corpus_of(session: Session, models: Sequence[str]) -> Corpus:
    """Return the corpus that the settings name; if they name none, the one that `models` record.

    Its split `val` has the sentences that the models left out of train. It is there if the settings name it,
    or if there is no other split to report on.

    Raises:
        ColakitError: if the models record different data, or the recorded files are not found.
    """
    recorded = _recorded({model: read_origin(model) for model in models})
    return _with_val(session, _corpus_of(session, recorded), recorded)


def _corpus_of(session: Session, recorded: Recorded) -> Corpus:
    data = _data_settings(session, recorded)
    if data is None:
        return session.load_corpus()
    files_given = bool(_given(session).intersection(FILES))
    try:
        corpus = session.load_corpus(data)
    except ColakitError as error:
        origin = "The path is as recorded when the model was trained; --data replaces it."
        if files_given:
            origin = "Columns are as the model was trained with; --set data.text_column=null reads CoLA's."
        hint = f"{error.hint or ''} {origin}".strip()
        raise ColakitError(error.message, hint=hint, exit_code=error.exit_code) from error
    if files_given:
        return corpus
    fingerprints = corpus.fingerprints()
    for model, (_, before) in recorded.items():
        if changed := [name for name in before if fingerprints.get(name, before[name]) != before[name]]:
            session.reporter.warn(f"{corpus.name}: {', '.join(changed)} changed since {model} was trained")
    return corpus


def _with_val(session: Session, corpus: Corpus, recorded: Recorded) -> Corpus:
    """Return `corpus` with the validation split that the models trained on its train have in common."""
    splits, train = session.settings.evaluate.splits, corpus.splits.get("train")
    is_wanted = "val" in splits or (not splits and corpus.report_splits() == ["train"])
    if train is None or "val" in corpus.splits or not is_wanted:
        return corpus
    fingerprint = train.fingerprint()
    trained = [data for data, before in recorded.values() if before.get("train") == fingerprint]
    shares = {(data.val_fraction, data.val_seed) for data in trained}
    if len(shares) > 1:
        session.reporter.warn("models were trained on parts of train, and their validation splits differ")
    if len(shares) != 1:
        return corpus
    _, val = train_val_split(train, *shares.pop())
    session.reporter.say(f"val: {len(val):,} sentences left out of train; they chose epoch and threshold")
    return replace(corpus, splits={**corpus.splits, "val": val})


def recorded_data(session: Session, origins: Mapping[str, Mapping[str, Any]]) -> DataSettings | None:
    """Return the data settings that models record, with those that are given; None if they record none.

    Given settings of `data` replace the recorded ones: columns and label names of the models also apply to
    other files. Models without recorded data, such as adapters written by PEFT, are assumed to have the data
    of the others.

    Raises:
        ColakitError: if the settings name no files and the models record different data.
    """
    return _data_settings(session, _recorded(origins))


def refuse_classifier_flags(session: Session, flag: str, reason: str, *others: str) -> None:
    """Raise `ColakitError` if a typed flag is for labelled data, which `flag` replaces.

    Args:
        others: further settings that are not read with `flag`.
    """
    refused = ("data.", *(f"evaluate.{name}" for name in FOR_LABELLED_DATA), *others)
    for key, origin in session.resolved.origins.items():
        if session.resolved.was_typed(key) and key.startswith(refused):
            raise ColakitError(f"{origin} with {flag}: {reason}", hint="Leave one of them out.")


def _given(session: Session) -> set[str]:
    """Return the names of the settings of `data` that are set."""
    return {key.removeprefix("data.") for key in session.resolved.origins if key.startswith("data.")}


def _data_settings(session: Session, recorded: Recorded) -> DataSettings | None:
    given, data = _given(session), session.settings.data
    if not recorded:
        return None
    (first, (settings, fingerprints)), *others = recorded.items()
    if given.intersection(FILES):
        if not data.splits and data.path in NAMED:  # their layout is known
            return None
        rows = [row.model_dump(exclude={*TRAINING, *FILES, *BYTES}) for row, _ in recorded.values()]
        shared = {name: value for name, value in rows[0].items() if all(row[name] == value for row in rows)}
        if (text := shared.get("text_column")) and "text_column" not in given:
            session.reporter.say(f"columns {text}, {shared.get('label_column')}, recorded by {first}")
        merged = {**data.model_dump(), **shared, **data.model_dump(include={*given, *FILES})}
        return DataSettings.model_validate(merged)
    for model, (other, other_fingerprints) in others:
        common = fingerprints.keys() & other_fingerprints.keys()
        if not common or any(fingerprints[name] != other_fingerprints[name] for name in common):
            raise ColakitError(
                f"{first} was trained on {_describe(settings)}, {model} on {_describe(other)}",
                hint="Name the data: --data PATH, or --config RUN/settings.yaml.",
            )
    for model, (other, _) in others:  # a model outside its run folder records names without folders
        if not _exist(settings) and _exist(other):
            first, settings = model, other
    session.reporter.say(f"data: {_describe(settings)}, recorded by {first}")
    return DataSettings.model_validate({**settings.model_dump(), **data.model_dump(include=given)})


def _recorded(origins: Mapping[str, Mapping[str, Any]]) -> Recorded:
    """Return the data of the models that record some; bases were trained on text and record none."""
    recorded = {}
    for model, origin in origins.items():
        settings, fingerprints = origin.get("settings"), origin.get("data")
        if not settings or not fingerprints:
            continue
        try:
            recorded[model] = DataSettings.model_validate(settings.get("data") or {}), fingerprints
        except ValidationError as error:
            raise ColakitError(
                f"{model}: its recorded data settings are invalid ({error.errors()[0]['msg']})",
                hint="Name the data with --data.",
            ) from error
    return recorded


def _exist(data: DataSettings) -> bool:
    """Return whether all files of the data exist, or it is a dataset with a name."""
    if not data.splits and data.path in NAMED:
        return True
    paths = data.splits.values() or [data.path]
    return all(path.startswith(HUB_PREFIX) or Path(path).expanduser().exists() for path in paths)


def _describe(data: DataSettings) -> str:
    files = ", ".join(f"{name}={path}" for name, path in data.splits.items()) or data.path
    return f"{files} (column {data.text_column})" if data.text_column else files
