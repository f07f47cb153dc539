"""`colakit predict`: labels and probabilities for sentences, in bounded memory."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer

from colakit.api.session import Session
from colakit.cli.options import command
from colakit.errors import ColakitError
from colakit.utils.console import data_output
from colakit.utils.files import replacing

if TYPE_CHECKING:
    from colakit.inference.classifier import SentenceClassifier
    from colakit.inference.decisions import Predictions
    from colakit.inference.numpy_predictor import StudentPredictor
    from colakit.inference.predictor import Predictor

MAX_LINE_BYTES = 2**26
CHUNK_CHARACTERS = 2**22  # after which a chunk ends early
CHUNK_BATCHES = 64  # sentences of this many batches are sorted by length and computed together


@command(
    "predict",
    {"--base": "base", "--batch-size": "predict.batch_size", "--threshold": "predict.threshold"},
    data_on_stdout=True,
)
def predict_command(
    session: Session,
    *,
    model: Annotated[str, typer.Option(help="Run folder, ckpt.pt or adapter folder.")],
    file: Annotated[
        Path | None, typer.Argument(help="Text file, one sentence per line (default or `-`: stdin).")
    ] = None,
    jsonl: Annotated[bool, typer.Option("--jsonl", help="Write JSON lines instead of TSV.")] = False,
) -> dict[str, Any]:
    """Label sentences, with probabilities.

    --json prints one object with all predictions, by the index of the sentence from 0; --jsonl prints a line
    per sentence and needs little memory for any number of them.
    """
    session.check_out()
    if session.dry_run:
        classifier = _load(session, model)
        _set_threshold(session, classifier)
        return _show(session, classifier)
    predictor = _student(session, model) or _with_torch(session, model)
    chosen = "given" if _set_threshold(session, predictor) else "chosen on the validation split"
    names = predictor.label_names
    if predictor.threshold is not None:
        rule = f"{names[1]}: if p({names[1]}) >= {predictor.threshold:.3f}"
        session.reporter.say(f"{rule} (threshold {chosen})")
    counts, num_truncated = dict.fromkeys(names, 0), 0
    rows: list[dict[str, Any]] = []
    with _open_input(file) as lines, _open_output(session, jsonl) as out:
        if out is not None and not jsonl:
            out.write("\t".join(["label", *(f"p({name})" for name in names), "sentence"]) + "\n")
        for chunk in _chunks(lines, session.settings.predict.batch_size * CHUNK_BATCHES):
            predictions = predictor(chunk)
            num_truncated += predictions.num_truncated
            if out is not None:
                _write(predictions, chunk, out, jsonl)
            else:
                rows += [{"index": i, **row} for i, row in enumerate(_rows(predictions), start=len(rows))]
            for name in predictions.names:
                counts[name] += 1
    if num_truncated:
        session.reporter.warn(
            f"{num_truncated} sentences are longer than {predictor.max_tokens} tokens and were truncated"
        )
    return {
        "model": predictor.name,
        "threshold": predictor.threshold,
        "sentences": sum(counts.values()),
        "labels": counts,
        "truncated": num_truncated,
        **({"predictions": rows} if out is None else {}),
    }


def _set_threshold(session: Session, model: SentenceClassifier | StudentPredictor | Predictor) -> bool:
    """Replace the model's threshold by that of the settings; return whether they have one."""
    from colakit.inference.decisions import check_threshold

    threshold = session.settings.predict.threshold
    if threshold is None:
        return False
    check_threshold(threshold, len(model.label_names))
    model.threshold = threshold
    return True


def _student(session: Session, model: str) -> StudentPredictor | None:
    """Return a predictor that needs no torch.

    None if `model` cannot be read as a student (`_with_torch` names the fault), or if the settings ask for
    another device than the CPU or for bf16.
    """
    if _asks_for_torch(session):
        return None
    from colakit.inference.numpy_predictor import StudentPredictor

    try:
        return StudentPredictor(model, session.settings.predict.batch_size)
    except ColakitError:
        return None


def _asks_for_torch(session: Session) -> bool:
    return session.settings.device not in ("auto", "cpu") or session.settings.precision == "bf16"


def _with_torch(session: Session, model: str) -> Predictor:
    """Return any model, on the device and in the precision of the settings."""
    import torch

    from colakit.inference.predictor import Predictor
    from colakit.runtime.device import prepare_cpu

    prepare_cpu()
    asked = session.settings.precision == "bf16"  # by `auto` a student answers alike on all machines
    return Predictor(
        _load(session, model),
        session.compute,
        session.settings.predict.batch_size,
        torch.bfloat16 if asked else torch.float32,
    )


def _load(session: Session, model: str) -> SentenceClassifier:
    from colakit.inference.classifier import load_classifier

    base = session.settings.base if session.resolved.was_typed("base") else None
    return load_classifier(model, base=base)


def _show(session: Session, classifier: SentenceClassifier) -> dict[str, Any]:
    """Say what would label, and how many parameters it has."""
    from colakit.models.rnn.model import DistilRNN

    alone = isinstance(classifier.model, DistilRNN) and not _asks_for_torch(session)
    compute = "cpu, float32 (a student, without torch)" if alone else str(session.compute)
    session.reporter.result(f"would label sentences with {classifier.name} on {compute}")
    session.print_parameters(classifier.model)
    return {"model": classifier.name, "compute": compute}


def _rows(predictions: Predictions) -> Iterator[dict[str, Any]]:
    """Yield label and probabilities of each sentence, by name."""
    for label, probs in zip(predictions.names, predictions.probs.tolist(), strict=True):
        by_name = dict(zip(predictions.label_names, (round(p, 6) for p in probs), strict=True))
        yield {"label": label, "probabilities": by_name}


def _write(predictions: Predictions, sentences: Sequence[str], out: TextIO, jsonl: bool) -> None:
    """Write one line per sentence."""
    if jsonl:
        for sentence, row in zip(sentences, _rows(predictions), strict=True):
            out.write(json.dumps({"sentence": sentence, **row}, ensure_ascii=False) + "\n")
    else:
        for sentence, label, probs in zip(
            sentences, predictions.names, predictions.probs.tolist(), strict=True
        ):
            out.write("\t".join([label, *(f"{p:.6f}" for p in probs), sentence]) + "\n")
    out.flush()


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
def _open_output(session: Session, jsonl: bool) -> Iterator[TextIO | None]:
    """Yield stdout, or, with `--out DIR`, a file in it; None with `--json` alone, which returns the rows."""
    if session.out is None and session.as_json:
        yield None
        return
    if session.out is None:
        yield data_output()
        return
    session.out.mkdir(parents=True, exist_ok=True)
    path = session.out / f"predictions.{'jsonl' if jsonl else 'tsv'}"
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        yield file
        file.flush()  # before `replacing` syncs it
    session.reporter.say(f"written to {path}")
