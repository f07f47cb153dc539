"""Teachers: loading them, and their logits and hidden states, computed once, cached and averaged.

Shapes: N sentences, C classes, D width of the teacher.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from colakit.data.corpora import Split
from colakit.data.splits import left_out
from colakit.errors import EXIT_FAILED, ColakitError
from colakit.evaluation.experiments import experiment_key, fold_of
from colakit.evaluation.metrics import Metrics
from colakit.inference.classifier import SentenceClassifier, encode_split, load_classifier, read_origin
from colakit.inference.decisions import require_labels
from colakit.inference.forward import compute_hidden
from colakit.models.gpt.model import GPTClassifier
from colakit.models.parameters import count_parameters
from colakit.runtime.device import Compute
from colakit.storage.gpt2 import base_fingerprint, load_gpt, resolve_base
from colakit.storage.run_set import expand_runs
from colakit.utils.array_cache import ArrayCache, Arrays
from colakit.utils.console import Reporter

MEASURED = 96  # sentences of an estimate
PART = 2**14  # sentences per cached file, so that an interrupted command continues
NO_SAMPLES = "Name a base to sample from (--set transfer.language_model=BASE), or use --transfer-size 0."


@dataclass(frozen=True)
class TeacherTargets:
    """Outputs of the teachers on N training sentences.

    Attributes:
        logits: (N, C).
        hidden: (N, D) states that the head reads; None if they are not matched.
    """

    logits: NDArray[np.float32]
    hidden: NDArray[np.float16] | None = None


@dataclass(frozen=True)
class Teacher:
    """A trained classifier whose outputs are cached.

    Attributes:
        path: as given by the user.
        fingerprint: of everything that determines its logits.
    """

    path: str
    classifier: SentenceClassifier
    fingerprint: str
    compute: Compute
    arrays: ArrayCache
    reporter: Reporter

    def summary(self) -> dict[str, Any]:
        """Return plain data for the student's summary."""
        return {
            "path": str(Path(self.path).expanduser().resolve()),
            "fingerprint": self.fingerprint,
            "experiment": experiment_key(self.classifier.origin),
            "parameters": count_parameters(self.classifier.model).total,
        }

    def unseen(self, train: Split) -> NDArray[np.bool_]:
        """Return which sentences of train it was not trained on (`finetune.leave_out`), (N,)."""
        fold = fold_of(self.classifier.origin)
        return np.zeros(len(train), dtype=bool) if fold is None else left_out(train.sentences, fold)

    def logits(self, split: Split) -> NDArray[np.float32]:
        """Return the (N, C) logits of a split; parts that are cached are not computed again."""
        bounds, keys = self._parts(split)
        parts = [self.arrays.load("teacher-logits", key) for key in keys]
        if missing := [number for number, part in enumerate(parts) if part is None]:
            count = sum(bounds[number][1] - bounds[number][0] for number in missing)
            self.reporter.say(f"computing logits of {self.path} for {count:,} sentences ({split.name})")
            tokens = encode_split(self.classifier, split, self.arrays, self.reporter, "teacher, ")
            self.compute.place(self.classifier.model.requires_grad_(False))
            with self.reporter.progress(
                f"{split.name}, teacher labels", len(split), len(split) - count
            ) as bar:

                def compute(rows: tuple[int, int]) -> Arrays:
                    part = tokens.part(*rows)
                    return {"logits": self.classifier.logits(part, self.compute, done=bar.advance)}

                for number in missing:
                    parts[number] = self.arrays.get(
                        "teacher-logits", keys[number], partial(compute, bounds[number])
                    )
        return np.concatenate([part["logits"] for part in parts if part is not None])

    def logits_of(self, split: Split, rows: NDArray[np.bool_]) -> NDArray[np.float32]:
        """Return the logits of the sentences that are marked in `rows` (N,)."""
        return self.logits(split.take(np.flatnonzero(rows), split.name))

    def _parts(self, split: Split) -> tuple[list[tuple[int, int]], list[dict[str, Any]]]:
        """Return the first and last row of each cached file of a split's logits, and its key."""
        starts = range(0, max(1, len(split)), PART)
        bounds = [(start, min(start + PART, len(split))) for start in starts]
        return bounds, [self._key(split.take(np.arange(*rows), split.name)) for rows in bounds]

    def num_missing(self, split: Split) -> int:
        """Return the number of sentences without cached logits."""
        return sum(
            stop - start
            for (start, stop), key in zip(*self._parts(split), strict=True)
            if not self.arrays.path("teacher-logits", key).is_file()
        )

    def num_missing_hidden(self, split: Split) -> int:
        """Return the number of sentences without cached hidden states."""
        return 0 if self.arrays.path("teacher-hidden", self._key(split)).is_file() else len(split)

    def seconds_per_sentence(self, split: Split) -> float:
        """Measure the logits of sentences of a split."""
        self.compute.place(self.classifier.model.requires_grad_(False))
        rows = np.linspace(0, len(split) - 1, min(len(split), MEASURED)).astype(np.int64)
        tokens = self.classifier.encode([split.sentences[row] for row in rows])
        self.classifier.logits(tokens.part(0, 8), self.compute)  # the first call is slower
        begin = time.monotonic()
        self.classifier.logits(tokens, self.compute)
        return (time.monotonic() - begin) / len(rows)

    def hidden_states(self, split: Split) -> NDArray[np.float16]:
        """Return the (N, D) states that the head of a GPT reads."""
        model = self.classifier.model
        assert isinstance(model, GPTClassifier), "load_teachers refuses others"

        def compute() -> Arrays:
            self.compute.place(model.requires_grad_(False))
            tokens = encode_split(self.classifier, split, self.arrays, self.reporter, "teacher, ")
            with self.reporter.progress(f"{split.name}, teacher states", len(split)) as bar:
                hidden = compute_hidden(model, tokens, self.compute, done=bar.advance)
            return {"hidden": hidden.astype(np.float16)}

        return self.arrays.get("teacher-hidden", self._key(split), compute)["hidden"]

    @property
    def hidden_width(self) -> int:
        """D of `hidden_states`."""
        model = self.classifier.model
        assert isinstance(model, GPTClassifier), "load_teachers refuses others"
        return model.config.width

    def _key(self, split: Split) -> dict[str, Any]:
        dtype = f"{'int8, ' if self.compute.int8 else ''}{self.compute.dtype}"
        return {"teacher": self.fingerprint, "data": split.fingerprint(), "dtype": dtype}

    def base(self, given: str | None) -> str:
        """Return the name of the base it was tuned from: `given`, or as recorded.

        Raises:
            ColakitError: if it has none.
        """
        if not isinstance(self.classifier.model, GPTClassifier):
            raise ColakitError(f"--teacher {self.path}: has no base to sample from", hint=NO_SAMPLES)
        return given if given is not None else str(read_origin(self.path).get("base", ""))

    def untuned_base(self, given: str | None) -> str:
        """Return the name of the base it was tuned from, after comparing fingerprints.

        Raises:
            ColakitError: if it has none, or another base has this name now.
        """
        base = self.base(given)
        recorded = self.classifier.origin.get("base_fingerprint")
        try:
            fingerprint = base_fingerprint(load_gpt(resolve_base(base)))
        except ColakitError as error:
            raise ColakitError(f"the teacher's base: {error.message}", hint=NO_SAMPLES) from error
        if recorded is not None and fingerprint != recorded:
            raise ColakitError(f"{base}: is not the base that {self.path} was tuned from", hint=NO_SAMPLES)
        return base


def load_teachers(
    paths: Sequence[str],
    label_names: tuple[str, ...],
    *,
    base: str | None,
    compute: Compute,
    arrays: ArrayCache,
    reporter: Reporter,
    hidden_weight: float = 0.0,
    share_tokenizer: bool = True,
) -> list[Teacher]:
    """Load the teachers; a folder of folds counts as one teacher per fold.

    Args:
        label_names: of the data.
        base: for adapter folders; None is the recorded one.
        hidden_weight: if not 0, the first teacher must be a GPT.
        share_tokenizer: all must have the same tokenizer: the student takes it.

    Raises:
        ColakitError: if their tokenizers or labels differ, a fold is not finished, or the
            first has no hidden states to match.
    """
    teachers = []
    for path in expand_runs(paths):
        classifier = load_classifier(path, base=base)
        require_labels(classifier.label_names, label_names, f"--teacher {path}", reporter)
        teachers.append(Teacher(path, classifier, classifier.fingerprint(), compute, arrays, reporter))
    first = teachers[0]
    if hidden_weight and not isinstance(first.classifier.model, GPTClassifier):
        raise ColakitError(
            f"distill.hidden_weight={hidden_weight} with --teacher {first.path}: it is a recurrent student; "
            "only the hidden states of a GPT can be matched",
            hint="Set distill.hidden_weight to 0, or name a run of finetune first.",
        )
    for other in teachers[1:] if share_tokenizer else []:
        if other.classifier.tokenizer.vocabulary() != first.classifier.tokenizer.vocabulary():
            raise ColakitError(
                f"--teacher {other.path}: its tokenizer differs from that of {first.path}",
                hint="Name the base whose tokenizer the student takes: --student-base BASE",
            )
    return teachers


def mean_logits(teachers: Sequence[Teacher], split: Split) -> NDArray[np.float32]:
    """Return the mean of the teachers' (N, C) logits."""
    return np.mean([teacher.logits(split) for teacher in teachers], axis=0)


def unseen_rows(teachers: Sequence[Teacher], train: Split) -> NDArray[np.bool_]:
    """Return which sentences of train each teacher was not trained on, (teachers, N)."""
    return np.stack([teacher.unseen(train) for teacher in teachers])


def rows_to_label(unseen: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return the sentences of train that each teacher labels, (teachers, N).

    A sentence that some teachers were not trained on is labelled by these alone: of a memorised sentence
    the logits yield little more than its label. Other sentences are labelled by all.

    Args:
        unseen: as returned by `unseen_rows`.
    """
    return np.where(unseen.any(axis=0), unseen, True)


def train_logits(teachers: Sequence[Teacher], train: Split) -> tuple[NDArray[np.float32], int]:
    """Return (N, C) logits for train, and the number of sentences for which they are out of fold.

    They are the mean over the teachers that `rows_to_label` names.
    """
    unseen = unseen_rows(teachers, train)
    rows = rows_to_label(unseen)
    parts = [teacher.logits_of(train, own) for teacher, own in zip(teachers, rows, strict=True)]
    logits = np.zeros((len(train), parts[0].shape[1]))
    for own, part in zip(rows, parts, strict=True):
        logits[own] += part
    return (logits / rows.sum(axis=0)[:, None]).astype(np.float32), int(unseen.any(axis=0).sum())


def require_above_chance(metrics: Metrics, paths: Sequence[str]) -> None:
    """Raise `ColakitError` if the teachers' MCC on val is below 0 by more than its standard error, 1/√n."""
    if metrics.mcc < -(metrics.num_examples**-0.5):
        raise ColakitError(
            f"--teacher {', '.join(paths)}: its MCC on val is {metrics.mcc:.3f}, below chance; its labels "
            "may be numbered the other way",
            hint="Exchange the labels of the data or of the teacher; to distil it as it is, add "
            "--set distill.allow_teacher_below_chance=true",
            exit_code=EXIT_FAILED,
        )
