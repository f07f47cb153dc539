"""`colakit evaluate`: students and their teachers, and slices of a split, on the toy corpus and on CoLA."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import cohen_kappa_score, matthews_corrcoef

from colakit.data.corpora import Corpus, Split, load_corpus
from colakit.evaluation.collect import EvaluationInputs, with_ensembles
from colakit.evaluation.comparison import ModelPredictions
from colakit.evaluation.experiments import ModelInfo
from colakit.storage.run_folder import RunFolder

Run = Callable[..., tuple[int, str, str]]
SEEDS = (0, 1)


@pytest.fixture(scope="module")
def runs(toy: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two seeds of a teacher, of its students, and of their control."""
    from colakit.cli.app import main

    folder = tmp_path_factory.mktemp("runs")
    shared = ["--base", str(toy / "base"), "--data", str(toy / "corpus"), "--quiet"]
    result: dict[str, Path] = {}
    for seed in SEEDS:
        for name, epochs in (("finetune", 4), ("distill", 2), ("train-scratch", 2)):
            result[f"{name}-{seed}"] = folder / f"{name}-{seed}"
            flags = ["--epochs", str(epochs), "--seed", str(seed), "--out", str(result[f"{name}-{seed}"])]
            teacher = ["--teacher", str(result[f"finetune-{seed}"])] if name == "distill" else []
            assert main([name, *shared, *flags, *teacher]) == 0
    return result


@pytest.fixture
def annotations(toy: Path, tmp_path: Path) -> Path:
    """One feature from the text, one that no sentence has, and no row for the first sentence."""
    sentences = dict.fromkeys(load_corpus(toy / "corpus").split("dev").sentences)
    rows = [f"{sentence}\t{int('that' in sentence)}\t0\n" for sentence in sentences]
    path = tmp_path / "annotations.tsv"
    path.write_text("Sentence\tRelative\tNothing\n" + "".join(rows[1:]), encoding="utf-8")
    return path


DEV_SPLITS = ("id_dev", "ood_dev", "dev")


def evaluated(colakit: Run, *arguments: object) -> dict[str, Any]:
    code, out, err = colakit("evaluate", *arguments, "--json")
    assert code == 0, err
    return json.loads(out)["splits"]


def predicted(run: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    return RunFolder(run).read_predictions()[split]


def test_students_are_compared_with_the_teachers_of_their_seed(runs: dict[str, Path], colakit: Run) -> None:
    result = evaluated(colakit, *runs.values())
    for split in ("id_dev", "ood_dev"):
        (row,) = result[split]["teaching"]
        assert (row["group"], row["num_seeds"]) == ("distill (lstm)", 2)
        assert row["teachers"] == ["finetune (GPT-2, rank 8)"]
        ours = [predicted(runs[f"distill-{seed}"], split)[1] for seed in SEEDS]
        labels, _ = predicted(runs["finetune-0"], split)
        reference = [predicted(runs[f"finetune-{seed}"], split)[1] for seed in SEEDS]
        equal = [float(np.mean(a == b)) for a, b in zip(ours, reference, strict=True)]
        assert [pupil["agreement"] for pupil in row["pupils"]] == equal
        assert row["agreement"]["mean"] == pytest.approx(np.mean(equal))
        assert row["agreement"]["sd"] == pytest.approx(np.std(equal, ddof=1))
        for pupil, a, b in zip(row["pupils"], ours, reference, strict=True):
            if pupil["kappa"] is not None:
                assert pupil["kappa"] == pytest.approx(cohen_kappa_score(a, b))
        kept = np.mean([matthews_corrcoef(labels, a) for a in ours])
        whole = np.mean([matthews_corrcoef(labels, b) for b in reference])
        assert row["mcc"]["value"] == pytest.approx(kept)
        assert row["teacher_mcc"]["value"] == pytest.approx(whole)
        if row["mcc_kept"] is not None:
            assert row["mcc_kept"]["value"] == pytest.approx(kept / whole)
    summaries = [json.loads((runs[n] / "summary.json").read_text()) for n in ("distill-0", "finetune-0")]
    sizes = [summary["parameters"]["total"] for summary in summaries]
    assert [row["num_parameters"], row["teacher_parameters"]] == sizes


def test_a_teacher_is_matched_by_fingerprint_not_by_path(
    runs: dict[str, Path], colakit: Run, tmp_path: Path
) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(runs["finetune-0"], moved)
    for teacher in (moved, moved / "ckpt.pt"):
        result = evaluated(colakit, teacher, runs["distill-0"], "--split", "id_dev")
        assert result["id_dev"]["teaching"][0]["num_seeds"] == 1
    result = evaluated(colakit, runs["finetune-1"], runs["distill-0"], "--split", "id_dev")
    assert result["id_dev"]["teaching"] == []


def test_students_with_missing_teachers_are_named(runs: dict[str, Path], colakit: Run) -> None:
    code, out, err = colakit("evaluate", runs["distill-0"], runs["distill-1"], runs["finetune-1"])
    assert code == 0
    assert "teachers of distill-0 are not among the models; name them too to measure agreement" in err
    assert "students and their teachers" in out


def test_a_student_of_several_teachers_is_compared_with_their_mean(
    runs: dict[str, Path], colakit: Run, tmp_path: Path
) -> None:
    content = torch.load(runs["distill-0"] / "ckpt.pt", weights_only=True)
    others = torch.load(runs["distill-1"] / "ckpt.pt", weights_only=True)["origin"]["teachers"]
    origin = dict(content["origin"])
    origin["teachers"] = [*origin["teachers"], *others]
    torch.save({**content, "origin": origin}, tmp_path / "ckpt.pt")
    result = evaluated(colakit, tmp_path, runs["finetune-0"], runs["finetune-1"], "--split", "dev")
    (row,) = result["dev"]["teaching"]
    assert row["pupils"][0]["teachers"] == ["finetune-0", "finetune-1"]
    alone = evaluated(colakit, runs["distill-0"], runs["finetune-0"], "--split", "dev")["dev"]["teaching"][0]
    assert row["teacher_parameters"] == 2 * alone["teacher_parameters"]


def test_an_ensemble_has_the_mean_of_its_models_logits() -> None:
    """The mean of two logits differs in sign from the mean of the labels, and the thresholds count."""
    logits = np.array([[[0, 3], [0, -1], [0, 0.5]], [[0, -1], [0, -1], [0, 0.5]]], dtype=np.float32)
    models = [ModelInfo(f"run-{i}", "finetune", "one", i, num_parameters=10, threshold=0.7) for i in (0, 1)]
    models.append(ModelInfo("other", "baseline", "two", None, num_parameters=5))
    rows = [
        ModelPredictions(model.name, group, model.seed, values, np.zeros(3, dtype=np.int64))
        for model, group, values in zip(models, "aab", [*logits, logits[0]], strict=True)
    ]
    split = Split("dev", ("a", "b", "c"), np.array([1, 0, 1]))
    corpus = Corpus("three sentences", ("bad", "good"), {"dev": split})
    found = with_ensembles(EvaluationInputs(corpus, models, list("aab"), {"dev": rows}))
    assert found.models[:3] == models
    (ensemble,) = found.models[3:]
    assert (ensemble.name, ensemble.num_parameters) == ("a, ensemble of 2", 20)
    # the probabilities of the mean are 0.73, 0.27 and 0.62, the threshold is 0.7
    assert found.predictions["dev"][3].predictions.tolist() == [1, 0, 0]


def test_evaluate_adds_ensembles_of_seeds(runs: dict[str, Path], colakit: Run) -> None:
    paths = [runs["finetune-0"], runs["finetune-1"], runs["distill-0"]]
    splits = evaluated(colakit, *paths, "--ensembles", "--split", "dev")
    names = [model["model"] for model in splits["dev"]["models"]]
    assert names == ["finetune-0", "finetune-1", "distill-0", "finetune (GPT-2, rank 8), ensemble of 2"]


def test_slices_by_source_match_the_predictions(
    runs: dict[str, Path], toy: Path, colakit: Run, tmp_path: Path
) -> None:
    models = [runs["finetune-0"], runs["finetune-1"], runs["train-scratch-0"]]
    result = evaluated(colakit, *models, "--group-by", "source", "--split", "id_dev")
    parts = result["id_dev"]["parts"]["source"]
    split = load_corpus(toy / "corpus").split("id_dev")
    sources = np.array(split.sources)
    assert (
        sum(part["num_examples"] for part in parts["parts"]) == len(split) == parts["whole"]["num_examples"]
    )
    assert parts["left_out"] == []
    for part in parts["parts"]:
        assert part["num_examples"] == int((sources == part["name"]).sum())
        assert part["scores"] == []  # a fault of the toy grammar is always unacceptable
    groups = result["id_dev"]["groups"]
    for score, group in zip(parts["whole"]["scores"], groups, strict=True):
        assert score["group"] == group["group"]
        assert score["mcc"] == {"mean": pytest.approx(group["mcc_mean"]), "sd": group["mcc_sd"]}


def test_slices_by_phenomenon_match_the_predictions(
    runs: dict[str, Path], toy: Path, annotations: Path, colakit: Run, tmp_path: Path
) -> None:
    models = [runs["finetune-0"], runs["finetune-1"], runs["train-scratch-0"]]
    out = tmp_path / "evaluation"
    result = evaluated(colakit, *models, "--annotations", annotations, "--out", out)
    assert [name for name, split in result.items() if split["parts"]] == ["dev"]  # which holds the others
    parts = result["dev"]["parts"]["phenomenon"]
    sentences = load_corpus(toy / "corpus").split("dev").sentences
    first = [number for number, sentence in enumerate(sentences) if sentence == sentences[0]]
    assert parts["left_out"] == first
    assert parts["whole"]["num_examples"] == len(sentences) - len(first)
    relative, nothing = parts["parts"]
    assert (nothing["name"], nothing["num_examples"], nothing["scores"]) == ("Nothing", 0, [])
    index = [n for n, sentence in enumerate(sentences) if "that" in sentence and n not in first]
    assert relative["num_examples"] == len(index)
    expected = []
    for run in models:
        halves = [predicted(run, split) for split in ("id_dev", "ood_dev")]
        labels, outputs = (np.concatenate(part)[index] for part in zip(*halves, strict=True))
        expected.append(matthews_corrcoef(labels, outputs))
    tuned, control = relative["scores"]
    assert tuned["mcc"]["mean"] == pytest.approx(np.mean(expected[:2]))
    assert tuned["mcc"]["sd"] == pytest.approx(np.std(expected[:2], ddof=1))
    assert control["mcc"] == {"mean": pytest.approx(expected[2]), "sd": None}
    assert (out / "phenomenon-dev.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((out / "evaluation.json").read_text())["splits"] == result
    assert "| Relative | " in (out / "evaluation.md").read_text(encoding="utf-8")


def test_slices_are_planned_printed_and_drawn_in_the_chosen_format(
    runs: dict[str, Path], annotations: Path, colakit: Run, tmp_path: Path
) -> None:
    flags = ["--group-by", "source", "--annotations", annotations, "--set", "plot.format=svg"]
    code, out, _ = colakit("evaluate", runs["finetune-0"], *flags, "--out", tmp_path / "out", "--dry-run")
    assert code == 0
    assert "dev by phenomenon (2 slices)" in out
    assert not (tmp_path / "out").exists()
    code, out, err = colakit("evaluate", runs["finetune-0"], *flags, "--out", tmp_path / "out")
    assert code == 0, err
    assert "dev: MCC by source" in out
    assert "dev: MCC by phenomenon" in out
    assert f"sentences are missing from {annotations} and are in no slice" in " ".join(err.split())
    names = {path.name for path in (tmp_path / "out").iterdir()}
    of_models = {f"{kind}-{split}.svg" for kind in ("confusion", "calibration") for split in DEV_SPLITS}
    slices = {"source-dev.svg", "phenomenon-dev.svg"}
    assert names == {"evaluation.json", "evaluation.md", *slices, *of_models}


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--group-by", "sorce"], "--group-by sorce: sentences are grouped by source. Did you mean source?"),
        (["--annotations", "none.tsv"], "none.tsv: No such file"),
        (["--annotations", "{tmp}/foreign.tsv"], "foreign.tsv: none of its sentences is in dev"),
        (["--annotations", "{tmp}/faulty.tsv"], "faulty.tsv:2: a feature must be 0 or 1"),
        (["--group-by", "source", "--data", "{tmp}/table.csv"], "the sources of its sentences are not known"),
    ],
)
def test_errors_are_raised_before_a_model_runs(
    flags: list[str], expected: str, runs: dict[str, Path], colakit: Run, tmp_path: Path
) -> None:
    (tmp_path / "foreign.tsv").write_text("Sentence\tLong\nNobody wrote this.\t1\n")
    (tmp_path / "faulty.tsv").write_text("Sentence\tLong\nNobody wrote this.\tmaybe\n")
    (tmp_path / "table.csv").write_text("text,label\nIt runs.,acceptable\nIt run.,unacceptable\n")
    table = ["--set", "data.text_column=text", "--set", "data.label_column=label"]
    arguments = [flag.format(tmp=tmp_path) for flag in flags] + (table if "--data" in flags else [])
    for extra in ([], ["--dry-run"]):
        code, _, err = colakit("evaluate", runs["finetune-0"], *arguments, *extra)
        assert code == 2
        assert expected in " ".join(err.split())
        assert "hint:" in err
        assert "evaluate: " not in err  # the progress bar of the models


def test_real_cola_by_source_and_phenomenon(shared: Path, toy: Path, colakit: Run, tmp_path: Path) -> None:
    annotations = shared / "cola" / "CoLA_grammatical_annotations_minor_features.tsv"
    if not annotations.is_file():
        pytest.skip(f"needs the published annotations, {annotations}")
    cola, run = shared / "cola" / "cola_public.zip", tmp_path / "run"
    train = ["--base", toy / "base", "--data", cola, "--epochs", 1, "--hidden-size", 16, "--out", run]
    code, _, err = colakit("train-scratch", *train)
    assert code == 0, err
    result = evaluated(colakit, run, "--data", cola, "--group-by", "source", "--annotations", annotations)
    by_source, by_phenomenon = (result["dev"]["parts"][field] for field in ("source", "phenomenon"))
    assert (len(by_source["parts"]), len(by_phenomenon["parts"])) == (23, 63)
    assert sum(part["num_examples"] for part in by_source["parts"]) == 1043
    assert (by_phenomenon["whole"]["num_examples"], len(by_phenomenon["left_out"])) == (1040, 3)
    undefined = [part["name"] for part in by_phenomenon["parts"] if not part["scores"]]
    assert undefined == ["Sem  Violation"]
    flagged = {part["name"] for part in by_phenomenon["parts"] if part["few"]}
    assert {"Imperative", "Sem  Violation", "Infl/Agr Violation"} <= flagged
    assert "Coord" not in flagged
