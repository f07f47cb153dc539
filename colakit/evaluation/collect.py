"""What every model that is evaluated says about every split; one model is loaded at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from colakit.api.session import Session
from colakit.data.corpora import Corpus, Split
from colakit.evaluation.comparison import (
    Answers,
    Entrant,
    distinct_names,
    experiment_key,
    fold_of,
    group_names,
    teachers_of,
)
from colakit.evaluation.metrics import Labels
from colakit.evaluation.teacher_agreement import Profile, match_teachers
from colakit.inference.classifier import SentenceClassifier, load_classifier
from colakit.models.parameters import count_parameters
from colakit.storage.model_file import CHECKPOINT_NAME
from colakit.training.task_data import encode


@dataclass(frozen=True)
class EvaluationInputs:
    """What all models say.

    Attributes:
        corpus: labelled as the models label.
        answers: split name -> the answers of every model.
        profiles: of every model, in the same order.
    """

    corpus: Corpus
    answers: dict[str, list[Answers]]
    profiles: list[Profile]


def ask_all(
    session: Session, models: Sequence[str], corpus: Corpus, splits: Sequence[str]
) -> EvaluationInputs:
    """Return what the models say about `splits`, and tell which students' teachers are not among them."""
    names = distinct_names([_folder(model) for model in models])
    entrants: list[Entrant] = []
    profiles: list[Profile] = []
    said: list[dict[str, tuple[NDArray[np.float32], Labels]]] = []
    base = session.settings.base if session.resolved.was_typed("base") else None
    with session.reporter.progress("evaluate", len(models)) as bar:
        for path, name in zip(models, names, strict=True):
            classifier = load_classifier(path, base=base)
            if not entrants:  # data may lack a class that the model knows
                corpus = corpus.relabelled(classifier.label_names)
            classifier.require_labels(corpus.label_names, path)
            entrants.append(_entrant(classifier, path, name))
            profiles.append(_profile(classifier))
            session.compute.place(classifier.model.requires_grad_(False))
            said.append({split: _ask(session, classifier, corpus.split(split), name) for split in splits})
            bar.advance(note=name)
    _note_absent_teachers(session, names, profiles)
    groups = group_names(entrants)
    answers = {
        split: [
            Answers(entrant.model, group, entrant.seed, *found[split], fold=entrant.fold)
            for entrant, group, found in zip(entrants, groups, said, strict=True)
        ]
        for split in splits
    }
    return EvaluationInputs(corpus, answers, profiles)


def _entrant(classifier: SentenceClassifier, path: str, name: str) -> Entrant:
    known = classifier.origin.get("settings") is not None
    key = experiment_key(classifier.origin) if known else str(Path(path).resolve())
    origin = classifier.origin
    return Entrant(name, classifier.name, key, origin.get("seed"), fold_of(origin))


def _profile(classifier: SentenceClassifier) -> Profile:
    """Describe a model as it was loaded: placing it rounds frozen weights, which changes its fingerprint."""
    return Profile(
        fingerprint=classifier.fingerprint(),
        teachers=tuple(str(teacher.get("fingerprint")) for teacher in teachers_of(classifier.origin)),
        num_parameters=count_parameters(classifier.model).total,
        threshold=classifier.threshold,
    )


def _ask(
    session: Session, classifier: SentenceClassifier, split: Split, name: str
) -> tuple[NDArray[np.float32], Labels]:
    """Return a model's logits and predictions for a split."""
    tokens = encode(session, classifier, split, f"{name}, ")
    logits = classifier.logits(tokens, session.compute, session.settings.evaluate.batch_size)
    return logits, classifier.predict_labels(logits)


def _note_absent_teachers(session: Session, names: Sequence[str], profiles: Sequence[Profile]) -> None:
    taught = match_teachers(profiles)
    alone = [names[i] for i, profile in enumerate(profiles) if profile.teachers and i not in taught]
    if alone:
        whose = "its teachers" if len(alone) == 1 else "their teachers"
        session.reporter.say(
            f"to see the agreement of {', '.join(alone)} with {whose}, name them too, "
            "as `distill` was given them"
        )


def _folder(model: str) -> Path:
    """A run is called by its folder, whether that or the file in it was given."""
    path = Path(model)
    return path.parent if path.name == CHECKPOINT_NAME and path.parent.name else path
