"""`colakit predict`: labels and probabilities for sentences, in bounded memory."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from colakit.context import Context
from colakit.engine.student_predictor import StudentPredictor
from colakit.errors import ColakitError
from colakit.files import replacing

if TYPE_CHECKING:
    from colakit.engine.classifier import SentenceClassifier
    from colakit.engine.predictor import Predictor

MAX_LINE_BYTES = 2**26
CHUNK_CHARACTERS = 2**22  # after which a chunk ends early
CHUNK_BATCHES = 64  # sentences of this many batches are sorted by length and computed together


def run(context: Context, *, model: str, file: Path | None, jsonl: bool) -> dict[str, Any]:
    """Write a row for each line of `file` or stdin; return counts for `--json`."""
    context.check_out()
    if context.dry_run:
        return _show(context, _load(context, model))
    predictor = _student(context, model) or _with_torch(context, model)
    if predictor.threshold is not None:
        name = predictor.label_names[1]
        context.reporter.say(
            f"{name}: where p({name}) is at least {predictor.threshold:.3f}, chosen on the held-out slice"
        )
    counts = dict.fromkeys(predictor.label_names, 0)
    num_truncated = 0
    with _open_input(file) as lines, _open_output(context, jsonl) as out:
        if not jsonl:
            out.write(
                "\t".join(["label", *(f"p({name})" for name in predictor.label_names), "sentence"]) + "\n"
            )
        for chunk in _chunks(lines, context.settings.predict.batch_size * CHUNK_BATCHES):
            num_truncated += _predict(predictor, chunk, out, jsonl, counts)
    if num_truncated:
        context.reporter.warn(
            f"{num_truncated} sentences are longer than {predictor.max_tokens} tokens and were cut"
        )
    return {"sentences": sum(counts.values()), "labels": counts, "truncated": num_truncated}


def _student(context: Context, model: str) -> StudentPredictor | None:
    """Return a student that answers without torch, unless `model` is none or something else is asked for.

    What cannot be read is left to `_with_torch`, which names the fault.
    """
    if _asks_for_torch(context):
        return None
    try:
        return StudentPredictor(model, context.settings.predict.batch_size)
    except (OSError, ValueError):
        return None


def _asks_for_torch(context: Context) -> bool:
    return context.settings.device not in ("auto", "cpu") or context.settings.precision == "bf16"


def _with_torch(context: Context, model: str) -> Predictor:
    """Return any model, on the device and in the precision of the settings."""
    import torch

    from colakit.engine.device import prepare_cpu
    from colakit.engine.predictor import Predictor

    prepare_cpu()
    asked = context.settings.precision == "bf16"  # by `auto` a student answers alike on all machines
    return Predictor(
        _load(context, model),
        context.compute,
        context.settings.predict.batch_size,
        torch.bfloat16 if asked else torch.float32,
    )


def _load(context: Context, model: str) -> SentenceClassifier:
    from colakit.engine.classifier import load_classifier

    base = context.settings.base if context.resolved.was_typed("base") else None
    return load_classifier(model, base=base)


def _show(context: Context, classifier: SentenceClassifier) -> dict[str, Any]:
    """Say what would label, and how many parameters it has."""
    from colakit.commands.task import show_parameters
    from colakit.models.rnn import DistilRNN

    alone = isinstance(classifier.model, DistilRNN) and not _asks_for_torch(context)
    compute = "cpu, float32 (a student, without torch)" if alone else str(context.compute)
    context.reporter.result(f"would label sentences with {classifier.name} on {compute}")
    show_parameters(context, classifier.model)
    return {"model": classifier.name, "compute": compute}


def _predict(
    predictor: StudentPredictor | Predictor,
    sentences: Sequence[str],
    out: TextIO,
    jsonl: bool,
    counts: dict[str, int],
) -> int:
    """Write a row for each sentence; return how many were cut."""
    found, names = predictor(sentences), predictor.label_names
    for sentence, label, probs in zip(sentences, found.labels.tolist(), found.probs.tolist(), strict=True):
        counts[names[label]] += 1
        if jsonl:
            by_name = dict(zip(names, (round(p, 6) for p in probs), strict=True))
            out.write(
                json.dumps(
                    {"sentence": sentence, "label": names[label], "probabilities": by_name},
                    ensure_ascii=False,
                )
            )
            out.write("\n")
        else:
            out.write("\t".join([names[label], *(f"{p:.6f}" for p in probs), sentence]) + "\n")
    out.flush()
    return found.num_truncated


def _chunks(lines: Iterator[str], size: int) -> Iterator[list[str]]:
    """Yield up to `size` lines at a time, fewer where they are very long."""
    chunk: list[str] = []
    characters = 0
    for line in lines:
        chunk.append(line)
        characters += len(line)
        if len(chunk) == size or characters > CHUNK_CHARACTERS:
            yield chunk
            chunk, characters = [], 0
    if chunk:
        yield chunk


@contextlib.contextmanager
def _open_input(file: Path | None) -> Iterator[Iterator[str]]:
    """Yield the lines of a UTF-8 file or of stdin, without their ends."""
    if file is None or str(file) == "-":
        yield _lines(sys.stdin.buffer, "stdin")
        return
    try:
        opened = file.open("rb")
    except OSError as error:
        raise ColakitError(
            f"{file}: {error.strerror}", hint="Give a text file with a sentence a line."
        ) from error
    with opened:
        yield _lines(opened, str(file))


def _lines(stream: Any, where: str) -> Iterator[str]:
    for number, raw in enumerate(iter(lambda: stream.readline(MAX_LINE_BYTES + 1), b""), start=1):
        if len(raw) > MAX_LINE_BYTES:
            raise ColakitError(
                f"{where}:{number}: the line is longer than {MAX_LINE_BYTES >> 20} MiB",
                hint="Give a text file with a sentence a line.",
            )
        try:
            text = raw.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise ColakitError(
                f"{where}:{number}: not UTF-8 at byte {error.start}", hint="Save it as UTF-8."
            ) from None
        yield text.rstrip("\r\n")


@contextlib.contextmanager
def _open_output(context: Context, jsonl: bool) -> Iterator[TextIO]:
    """Yield stdout, or, with `--out DIR`, a file in it; with `--json` alone no rows are printed."""
    if context.out is None and context.as_json:
        with open(os.devnull, "w", encoding="utf-8") as nowhere:
            yield nowhere
        return
    if context.out is None:
        yield sys.stdout
        return
    context.out.mkdir(parents=True, exist_ok=True)
    path = context.out / f"predictions.{'jsonl' if jsonl else 'tsv'}"
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        yield file
        file.flush()  # before `replacing` syncs it
    context.reporter.say(f"written to {path}")
