"""`colakit predict`: labels and probabilities for sentences, in bounded memory."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from colakit.api.session import Session
from colakit.cli.options import command
from colakit.errors import ColakitError
from colakit.utils.console import data_output

if TYPE_CHECKING:
    from colakit.data.tables import Table
    from colakit.inference.baseline import BaselineClassifier
    from colakit.inference.classifier import SentenceClassifier
    from colakit.inference.numpy_predictor import StudentPredictor
    from colakit.inference.onnx_predictor import OnnxPredictor
    from colakit.inference.predicted_tables import WritePredictions
    from colakit.inference.predictor import Predictor

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
    model: Annotated[
        str, typer.Option(help="Run folder, ckpt.pt, adapter folder, exported folder or ONNX file.")
    ],
    file: Annotated[
        str | None,
        typer.Argument(
            help="Text with a sentence a line, or table: TSV, CSV, JSON, Parquet, hf:NAME:SPLIT (default or "
            "`-`: stdin)."
        ),
    ] = None,
    raw: Annotated[bool, typer.Option("--raw", help="Write the probabilities before calibration.")] = False,
    jsonl: Annotated[bool, typer.Option("--jsonl", help="Write JSON lines.")] = False,
    output: Annotated[
        Path | None,
        typer.Option(help="File to write; its name tells the format: .tsv, .csv, .jsonl, .json, .parquet."),
    ] = None,
) -> dict[str, Any]:
    """Label sentences, with probabilities calibrated on the validation split.

    A table is written in its own format, with its columns and those of the predictions. --json prints one
    object with all predictions, by the index of the sentence from 0; --jsonl prints a line per sentence and
    needs little memory for any number of them.
    """
    from colakit.inference.decisions import raw_threshold
    from colakit.inference.onnx_predictor import OnnxPredictor

    session.check_out()
    if output is not None and session.out is not None:
        raise ColakitError("--output with --out: both name where to write", hint="Remove one of them.")
    light = _without_torch(session, model)
    if session.dry_run:
        return _show(session, model, light)
    predictor = light or _with_torch(session, model)
    if raw and isinstance(predictor, OnnxPredictor):
        raise ColakitError(
            f"--raw: the logits of {model} are already divided by the temperature",
            hint="Give the run it was exported from.",
        )
    if raw:
        predictor.threshold = raw_threshold(predictor.threshold, predictor.temperature)
        predictor.temperature = 1.0
    if isinstance(predictor, OnnxPredictor) and predictor.speedup is not None:
        session.reporter.say(
            f"{predictor.name}: {predictor.speedup:.1f} times as fast as the run itself for one sentence, "
            "measured by export"
        )
    chosen = "given" if _set_threshold(session, predictor) else "chosen on the validation split"
    names = predictor.label_names
    if predictor.threshold is not None:
        rule = f"{names[1]}: if p({names[1]}) >= {predictor.threshold:.3f}"
        session.reporter.say(f"{rule} (threshold {chosen})")
    return _label(session, predictor, file, output, jsonl)


def _label(
    session: Session,
    predictor: StudentPredictor | BaselineClassifier | OnnxPredictor | Predictor,
    file: str | None,
    output: Path | None,
    jsonl: bool,
) -> dict[str, Any]:
    """Label the rows of a file; return the summary."""
    from colakit.data.sentences import open_sentences, sentence_column
    from colakit.data.tables import Reading
    from colakit.inference.predicted_tables import named_predictions

    counts, num_truncated = dict.fromkeys(predictor.label_names, 0), 0
    results: list[dict[str, Any]] = []
    size = session.settings.predict.batch_size * CHUNK_BATCHES
    data = session.settings.data
    given = data.text_column if "data.text_column" in session.resolved.origins else None
    recorded = ((predictor.origin.get("settings") or {}).get("data") or {}).get("text_column")
    with open_sentences(file, Reading.of(data), given or recorded) as table:
        column = sentence_column(table, given, recorded)
        with _open_output(session, table, predictor.label_names, output, jsonl) as write:
            for rows, sentences in _chunks(table, column, size):
                predictions = predictor(sentences)
                num_truncated += predictions.num_truncated
                for name in predictions.names:
                    counts[name] += 1
                if write is not None:
                    write(rows, predictions)
                else:
                    numbered = enumerate(named_predictions(predictions), start=len(results))
                    results += [{"index": i, **prediction} for i, prediction in numbered]
        for note in table.notes():
            session.reporter.say(f"note: {note}")
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
        **({"predictions": results} if write is None else {}),
    }


def _set_threshold(
    session: Session,
    model: SentenceClassifier | BaselineClassifier | OnnxPredictor | StudentPredictor | Predictor,
) -> bool:
    """Replace the model's threshold by that of the settings; return whether they have one."""
    from colakit.inference.decisions import check_threshold

    threshold = session.settings.predict.threshold
    if threshold is None:
        return False
    check_threshold(threshold, len(model.label_names))
    model.threshold = threshold
    return True


def _without_torch(
    session: Session, model: str
) -> BaselineClassifier | OnnxPredictor | StudentPredictor | None:
    """Return a predictor that needs no torch.

    None for other models, and if the settings name another device than the CPU, or bf16.
    """
    from colakit.inference.baseline import is_baseline
    from colakit.inference.without_torch import load_without_torch

    settings = session.settings
    is_plain = settings.device in ("auto", "cpu") and settings.precision != "bf16"
    if is_plain or is_baseline(model):
        return load_without_torch(model, settings.predict.batch_size)
    return None


def _with_torch(session: Session, model: str) -> Predictor:
    """Return any model, on the device and in the precision of the settings."""
    import torch

    from colakit.inference.predictor import Predictor
    from colakit.runtime.device import prepare_cpu

    prepare_cpu()
    is_bf16 = session.settings.precision == "bf16"  # by `auto` a student answers alike on all machines
    return Predictor(
        _classifier(session, model),
        session.compute,
        session.settings.predict.batch_size,
        torch.bfloat16 if is_bf16 else torch.float32,
    )


def _classifier(session: Session, model: str) -> SentenceClassifier:
    from colakit.inference.classifier import load_classifier

    return load_classifier(model, base=session.settings.base if session.resolved.was_typed("base") else None)


def _show(
    session: Session, model: str, light: BaselineClassifier | OnnxPredictor | StudentPredictor | None
) -> dict[str, Any]:
    """Print what would label, and the parameters of a network."""
    from colakit.inference.numpy_predictor import StudentPredictor

    is_network = light is None or isinstance(light, StudentPredictor)
    classifier = _classifier(session, model) if is_network else None
    labelling = light or classifier
    assert labelling is not None
    _set_threshold(session, labelling)
    compute = "cpu, without torch" if light else str(session.compute)
    session.reporter.result(f"would label sentences with {labelling.name} on {compute}")
    if classifier is not None:
        session.print_parameters(classifier.model.requires_grad_(False))
    return {"model": labelling.name, "compute": compute}


def _chunks(table: Table, column: str, size: int) -> Iterator[tuple[list[Mapping[str, Any]], list[str]]]:
    """Yield up to `size` rows at a time with their sentences, fewer where these are very long."""
    rows: list[Mapping[str, Any]] = []
    sentences: list[str] = []
    characters = 0
    for row, sentence in table.with_texts(column):
        sentences.append(sentence)
        rows.append(row)
        characters += len(sentence)
        if len(rows) == size or characters > CHUNK_CHARACTERS:
            yield rows, sentences
            rows, sentences, characters = [], [], 0
    if rows:
        yield rows, sentences


@contextlib.contextmanager
def _open_output(
    session: Session, table: Table, label_names: tuple[str, ...], output: Path | None, jsonl: bool
) -> Iterator[WritePredictions | None]:
    """Yield a function that writes to `output`, a file in `--out DIR`, or stdout.

    None with `--json` alone, which returns the rows.
    """
    from colakit.inference.predicted_tables import PredictedTable, output_format

    kind = output_format(table, output, jsonl=jsonl)
    path = output
    if output is None and session.out is not None:
        path = session.out / f"predictions.{kind}"
    if path is None and session.as_json:
        yield None
        return
    if path is None and kind == "parquet":
        raise ColakitError("Parquet cannot be written to stdout", hint="Name a file with --output.")
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
    with PredictedTable(table, kind, label_names).open(path, data_output()) as write:
        yield write
    if path is not None:
        session.reporter.say(f"written to {path}")
