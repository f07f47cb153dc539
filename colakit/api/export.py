"""Export of a trained classifier, with a comparison of every file with the run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from colakit.api.recorded_data import load_corpus_of
from colakit.api.session import Session
from colakit.data.corpora import Corpus, Split, join_splits
from colakit.errors import ColakitError
from colakit.evaluation.calibration import measure_calibration
from colakit.evaluation.metrics import Spread, measure_with_intervals
from colakit.evaluation.tables import print_tables
from colakit.export.card import CardFacts, base_licence, model_card
from colakit.export.files import (
    TRANSFORMERS_FILE,
    check_new,
    new_folder,
    write_common,
    write_onnx,
    write_quantized,
    write_tokenizer,
    write_weights,
)
from colakit.export.graph import EXTRA
from colakit.export.parity import Comparison, ParityReport, answers_of, transformers_answers
from colakit.export.peft_adapter import carried_base, lora_updates, peft_answers, write_lora
from colakit.export.prepare import PreparedModel, prepare
from colakit.export.quantize import Recipe, recipes
from colakit.inference.classifier import SentenceClassifier, load_classifier, read_origin
from colakit.inference.decisions import probabilities, require_labels
from colakit.inference.numpy_predictor import StudentPredictor
from colakit.inference.onnx_predictor import OnnxPredictor
from colakit.inference.predictor import Predictor
from colakit.models.gpt.model import GPT, GPTClassifier
from colakit.models.rnn.model import DistilRNN
from colakit.runtime.device import resolve_compute
from colakit.storage.gpt2 import base_fingerprint, load_gpt, resolve_base, save_weights
from colakit.storage.hub import check_push, push_folder
from colakit.storage.model_file import CHECKPOINT_NAME, student_file, write_companion
from colakit.storage.peft import BASE_FOLDER
from colakit.storage.run_schemas import ResultSummary
from colakit.storage.run_set import open_run_set
from colakit.utils.documents import read_document
from colakit.utils.extras import import_extra
from colakit.utils.files import write_text

Format = Literal["all", "onnx", "transformers", "peft"]


ONNX_PACKAGES = ("onnx", "onnxruntime", "onnxscript")
PACKAGES = {"all": ONNX_PACKAGES, "onnx": ONNX_PACKAGES, "transformers": (), "peft": ("peft",)}

LIBRARIES = {"all": "transformers", "onnx": "onnx", "transformers": "transformers", "peft": "peft"}


def export(
    session: Session,
    run: str,
    *,
    kind: Format = "all",
    quantize: Sequence[str] = ("int8",),
    fold_threshold: bool = False,
    licence: str | None = None,
    push: str | None = None,
) -> dict[str, Any]:
    """Write a trained classifier for other programs, compare the files with the run, and return the report.

    Args:
        run: run folder, `ckpt.pt` or adapter folder.
        quantize: `int8`, `int4`: further ONNX files with smaller weights, by the first of the ways for the
            model (`recipes`) that keeps the answers.
        fold_threshold: move the threshold into a bias, so that argmax decides as it does.
        licence: of the model card; by default that of the base.
        push: OWNER/NAME of the hub, to which the folder is uploaded.

    Raises:
        ColakitError: if the run, the data or the output folder cannot be used, a package is missing, or a
            file answers too differently.
    """
    if session.out is None:
        raise ColakitError("export: no --out", hint="Name the folder to write: --out DIR")
    check_new(session.out)
    if push is not None:
        check_push(push)
    for package in PACKAGES[kind]:
        import_extra(package, EXTRA)
    base = session.settings.base if session.resolved.was_typed("base") else None
    original = load_classifier(run, base=base)
    _check_kinds(original, kind, quantize)
    origin = read_origin(run)
    recorded = base or origin.get("base") or (origin.get("settings") or {}).get("base")
    licence = base_licence(recorded, licence)
    gpt = load_gpt(resolve_base(str(recorded))) if kind == "peft" else None
    prepared = prepare(original, fold_threshold=fold_threshold, needs_bias=kind != "onnx")
    corpus = load_corpus_of(session, [run]).relabelled(original.label_names)
    require_labels(original.label_names, corpus.label_names, run, session.reporter)
    split = _split(session, corpus)
    if session.dry_run:
        session.reporter.result(f"would write {original.name} to {session.out}, compared on {split.name}")
        return {"out": str(session.out), "format": kind, "quantize": list(quantize), "split": split.name}
    session.reporter.say(f"comparing with the run on {split.name} ({len(split):,} sentences)")
    comparison = _own(run, original, prepared, split)
    with new_folder(session.out) as folder:
        if gpt is None:
            _write(session, prepared, folder, kind, quantize, comparison)
        else:
            prepared = _write_peft(session, prepared, gpt, folder, comparison)
        report = comparison.report()
        print_tables(report.tables(), session.reporter)
        report.check()
        content = _companion(prepared, original, report)
        write_companion(folder, content)
        facts = _facts(session, run, prepared, original, corpus, comparison, kind, licence, recorded)
        write_text(folder / "README.md", model_card(facts))
    _print_fastest(session, report)
    session.reporter.result(f"written to {session.out}")
    address = None if push is None else push_folder(session.out, push)
    if address is not None:
        session.reporter.result(f"pushed to {address}")
    return {"out": str(session.out), "parity": report.as_dict(), "pushed": address}


def _check_kinds(original: SentenceClassifier, kind: Format, quantize: Sequence[str]) -> None:
    is_student = isinstance(original.model, DistilRNN)
    if is_student and kind in ("transformers", "peft"):
        raise ColakitError(
            f"--format {kind}: a recurrent student has no class in {kind}",
            hint="Use --format onnx or all.",
        )
    if is_student and "int4" in quantize:
        raise ColakitError(
            "--quantize int4: ONNX Runtime has 4-bit weights for a GPT's matrix products only",
            hint="Use --quantize int8.",
        )


def _split(session: Session, corpus: Corpus) -> Split:
    """Return the labelled split that files are compared on: the named ones, or all that are reported."""
    names = session.settings.evaluate.splits or corpus.report_splits()
    parts = [corpus.split(name) for name in names]
    for part in parts:
        part.require_labels()
    return parts[0] if len(parts) == 1 else join_splits(" + ".join(names), parts)


def _own(run: str, original: SentenceClassifier, prepared: PreparedModel, split: Split) -> Comparison:
    """Measure the run itself, in fp32 on the CPU."""
    path = student_file(run)
    predictor = Predictor(original, resolve_compute("cpu", "fp32")) if path is None else StudentPredictor(run)
    path = path or Path(run).expanduser() / CHECKPOINT_NAME
    size = path.stat().st_size if path.is_file() else 0
    return Comparison(prepared, split, predictor, size, original.threshold, original.temperature)


def _write(
    session: Session,
    prepared: PreparedModel,
    folder: Path,
    kind: Format,
    quantize: Sequence[str],
    comparison: Comparison,
) -> None:
    """Write the files of the model, and compare each with the run."""
    model = prepared.classifier.model
    family = model.config.family if isinstance(model, GPTClassifier) else None
    write_common(prepared, folder)
    write_companion(folder, prepared.classifier.companion())  # `OnnxPredictor` reads the decision rule
    if kind != "onnx":
        name = write_weights(prepared, folder)
        answer = (
            transformers_answers(folder)
            if name == TRANSFORMERS_FILE
            else answers_of(StudentPredictor(folder))
        )
        comparison.add(name, (folder / name).stat().st_size, answer)
    if kind != "transformers":
        name, graph = write_onnx(prepared, folder)
        comparison.add(name, (folder / name).stat().st_size, answers_of(OnnxPredictor(folder / name)))
        for each in quantize:
            _write_quantized(session, graph, folder, recipes(each, family), comparison)


def _write_quantized(
    session: Session, graph: Any, folder: Path, choices: Sequence[Recipe], comparison: Comparison
) -> None:
    """Write the first of the recipes whose answers are near enough to the run's, or the last."""
    for recipe, other in zip(choices, [*choices[1:], None], strict=True):
        name = write_quantized(graph, folder, recipe)
        path = folder / name
        parity = comparison.add(name, path.stat().st_size, answers_of(OnnxPredictor(path)), recipe.name)
        fault = comparison.report().fault(parity)
        if fault is None or other is None:
            return
        session.reporter.say(f"{recipe.name}: {fault}; trying {other.name}")
        comparison.files.pop()


def _write_peft(
    session: Session, prepared: PreparedModel, gpt: GPT, folder: Path, comparison: Comparison
) -> PreparedModel:
    """Write an adapter and the base that it needs; return the model with the origin of these files."""
    tuned = prepared.classifier.model
    assert isinstance(tuned, GPTClassifier)
    base = carried_base(tuned, gpt)
    rank = write_lora(lora_updates(tuned, base.body), folder)
    base_folder = folder / BASE_FOLDER
    base_folder.mkdir()
    write_common(replace(prepared, classifier=replace(prepared.classifier, model=base)), base_folder)
    write_tokenizer(prepared, folder)
    save_weights(base, base_folder)
    origin = {**prepared.classifier.origin, "base": BASE_FOLDER}
    origin["base_fingerprint"] = base_fingerprint(load_gpt(base_folder))
    prepared = replace(prepared, classifier=replace(prepared.classifier, origin=origin))
    path = folder / "adapter_model.safetensors"
    comparison.add(path.name, path.stat().st_size, peft_answers(folder))
    size = f"{path.stat().st_size / 1e6:.1f} MB"
    session.reporter.say(f"adapter of rank up to {rank}, {size}; trained norms need the full rank of a layer")
    return prepared


def _companion(prepared: PreparedModel, original: SentenceClassifier, report: ParityReport) -> dict[str, Any]:
    """Return the content of colakit.json."""
    return {
        **prepared.classifier.companion(),
        "folded": {"temperature": prepared.temperature, "threshold": prepared.folded_threshold},
        "fingerprints": {
            "model": original.fingerprint(),
            "tokenizer": original.tokenizer.fingerprint(),
            "exported_model": prepared.classifier.fingerprint(),
        },
        "parity": report.as_dict(),
    }


def _facts(
    session: Session,
    run: str,
    prepared: PreparedModel,
    original: SentenceClassifier,
    corpus: Corpus,
    comparison: Comparison,
    kind: Format,
    licence: str,
    base: str | None,
) -> CardFacts:
    labels = comparison.labels
    metrics, intervals = measure_with_intervals(labels, comparison.expected, comparison.answers)
    (calibration,) = measure_calibration([probabilities(comparison.calibrated)], labels)
    is_gpt = not isinstance(original.model, DistilRNN)
    assert session.out is not None
    return CardFacts(
        name=session.out.name,
        kind=original.name,
        base=base,
        licence=licence,
        corpus=Path(corpus.name).name,
        split=comparison.split.name,
        label_names=original.label_names,
        metrics=metrics,
        intervals=intervals,
        calibration=calibration,
        seeds=_seeds(Path(run), comparison.split.name),
        threshold=original.threshold,
        temperature=original.temperature,
        folded=prepared.folded_threshold is not None,
        library=LIBRARIES[kind] if is_gpt else "onnx",
        parity=comparison.report().tables(),
    )


def _seeds(run: Path, split: str) -> dict[str, dict[str, Any]]:
    """Return mean and sd of the seeds that were trained with `run`, of accuracy and MCC on `split`."""
    runs = open_run_set(run.parent)
    if runs is None or runs.kind != "seeds" or len(runs.values) < 2 or runs.unfinished():
        return {}
    summaries = [read_document(runs.run(seed).summary, ResultSummary) for seed in runs.values]
    spreads = {}
    for name in ("accuracy", "mcc"):
        values = [getattr(each.splits[split], name) for each in summaries if split in each.splits]
        if len(values) == len(summaries):
            spreads[name] = {**vars(Spread.of(values)), "seeds": len(values)}
    return spreads


def _print_fastest(session: Session, report: ParityReport) -> None:
    """Say which ONNX file is faster than the run itself."""
    own = report.files[0]
    for each in report.files[1:]:
        if each.file.endswith(".onnx") and each.milliseconds < own.milliseconds:
            factor = own.milliseconds / each.milliseconds
            session.reporter.result(f"{each.file}: {factor:.1f} times as fast as colakit for one sentence")
