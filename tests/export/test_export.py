"""`colakit export`: what it writes, that every file answers alike, and what it refuses."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from support.exported import LABELS, write_gpt, write_student

from colakit.data.corpora import load_corpus
from colakit.export import parity
from colakit.inference.classifier import load_classifier
from colakit.inference.decisions import probabilities
from colakit.inference.forward import compute_logits
from colakit.inference.onnx_predictor import OnnxPredictor
from colakit.runtime.device import Compute

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def gpt_folders(toy: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The run folder of a GPT-2, and its export with the threshold folded into a bias."""
    from colakit.cli.app import main

    folder = tmp_path_factory.mktemp("gpt")
    run, out = write_gpt(folder / "run", toy), folder / "out"
    words = ["export", run, "--data", toy / "corpus", "--split", "id_dev", "--out", out, "--fold-threshold"]
    with pytest.MonkeyPatch.context() as patch:  # four bits cost an untrained model many answers
        patch.setitem(parity.MAX_FLIPPED, False, 0.2)
        patch.setattr(parity, "MAX_MCC_CHANGE", 0.5)
        assert main([*map(str, words), "--quantize", "int8", "--quantize", "int4", "--quiet"]) == 0
    return run, out


def sentences_of(toy: Path, split: str = "id_dev") -> list[str]:
    return list(load_corpus(toy / "corpus").split(split).sentences)


def test_a_pipeline_of_transformers_gives_the_labels_of_the_threshold(
    gpt_folders: tuple[Path, Path], toy: Path, fp32: Compute
) -> None:
    from transformers import AutoModelForSequenceClassification, pipeline

    run, out = gpt_folders
    original, sentences = load_classifier(run), sentences_of(toy)
    logits = original.logits(original.encode(sentences), fp32)
    expected = [LABELS[i] for i in original.predict_labels(logits)]
    assert set(expected) == set(LABELS)
    assert expected != [LABELS[i] for i in logits.argmax(axis=1)], "the threshold must matter"
    classify = pipeline("text-classification", model=str(out))
    assert [each["label"] for each in classify(sentences, truncation=True, batch_size=16)] == expected
    assert type(AutoModelForSequenceClassification.from_pretrained(out)).__name__ == (
        "GPT2ForSequenceClassification"
    )


def test_the_exported_tokenizer_gives_colakit_s_tokens(gpt_folders: tuple[Path, Path], toy: Path) -> None:
    from transformers import AutoTokenizer

    run, out = gpt_folders
    original, tokenizer = load_classifier(run), AutoTokenizer.from_pretrained(out)
    sentences = [*sentences_of(toy), "the cat " * 80, ""]
    expected = original.encode(sentences)
    ids = tokenizer(sentences, truncation=True, padding=True)
    assert tokenizer.padding_side == "right"
    assert tokenizer.pad_token_id != tokenizer.eos_token_id
    for i, (row, mask) in enumerate(zip(ids["input_ids"], ids["attention_mask"], strict=True)):
        assert row[: sum(mask)] == expected.sentence(i).tolist()
        assert set(row[sum(mask) :]) <= {tokenizer.pad_token_id}


def test_every_onnx_file_of_a_gpt_answers_as_the_run(
    gpt_folders: tuple[Path, Path], toy: Path, fp32: Compute
) -> None:
    run, out = gpt_folders
    original, sentences = load_classifier(run), sentences_of(toy, "ood_dev")
    labels = original.predict_labels(original.logits(original.encode(sentences), fp32))
    sizes = {}
    for name, allowed in (("model", 0), ("model_quantized", 6), ("model_q4", 15)):
        path = out / "onnx" / f"{name}.onnx"
        predictions = OnnxPredictor(path)(sentences)
        assert (predictions.labels != labels).sum() <= allowed
        sizes[name] = path.stat().st_size
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        one = np.ones((1, 1), dtype=np.int64)
        assert session.run(None, {"input_ids": one, "attention_mask": one})[0].shape == (1, 2)
    assert sizes["model_q4"] < sizes["model_quantized"] < sizes["model"]


def test_the_exported_folder_is_a_model_for_evaluate(gpt_folders: tuple[Path, Path], toy: Path) -> None:
    run, out = gpt_folders
    original, again = load_classifier(run), load_classifier(out)
    assert (again.label_names, again.threshold, again.temperature) == (LABELS, 0.5, 1.0)
    assert again.encode(["the cat " * 80]).ids.tolist() == original.encode(["the cat " * 80]).ids.tolist()


def test_the_report_and_the_card_hold_figures_and_no_sentence(
    gpt_folders: tuple[Path, Path], toy: Path
) -> None:
    from huggingface_hub import ModelCard

    _, out = gpt_folders
    content = json.loads((out / "colakit.json").read_text())
    files = {each["file"]: each for each in content["parity"]["files"]}
    assert list(files) == [
        *("colakit", "model.safetensors", "onnx/model.onnx", "onnx/model_quantized.onnx"),
        "onnx/model_q4.onnx",
    ]
    for name in ("model.safetensors", "onnx/model.onnx"):
        assert files[name]["flipped"] == 0
        assert files[name]["max_difference"] < 1e-4
        assert files[name]["argmax_mcc"] == files[name]["mcc"] == files["colakit"]["mcc"]
    assert content["folded"]["temperature"] == 1.7
    assert content["folded"]["threshold"] != content["threshold"] == 0.5
    card = ModelCard.load(out / "README.md")
    assert card.data.license == "mit"
    assert card.data.pipeline_tag == "text-classification"
    assert {each.metric_type for each in card.data.eval_results} == {"accuracy", "matthews_correlation"}
    texts = [path.read_text() for path in out.rglob("*") if path.suffix in (".json", ".md", ".mjs", ".html")]
    for sentence in sentences_of(toy):
        assert not any(sentence in text for text in texts)
    assert not any(str(out.parent) in text or str(toy) in text for text in texts)


@pytest.mark.parametrize("fold", [False, True], ids=["threshold", "folded"])
@pytest.mark.parametrize("shape", [{"cell": "lstm"}, {"cell": "gru", "num_embeddings": 150}, {"cell": "bag"}])
def test_a_student_is_exported_and_predicts_alike(
    colakit: Run, toy: Path, tmp_path: Path, shape: dict[str, Any], fold: bool
) -> None:
    run = write_student(tmp_path / "run", toy, **shape)
    flags = ["--fold-threshold"] if fold else []
    code, _, err = colakit("export", run, "--data", toy / "corpus", "--out", tmp_path / "out", *flags)
    assert code == 0, err
    sentences = sentences_of(toy)
    file = tmp_path / "text.txt"
    file.write_text("".join(f"{sentence}\n" for sentence in [*sentences, ""]))
    answers = {}
    for model in (run, tmp_path / "out", tmp_path / "out" / "onnx" / "model.onnx"):
        code, out, err = colakit("predict", "--model", model, file, "--json")
        assert code == 0, err
        answers[model] = json.loads(out)["predictions"]
    first, *others = answers.values()
    for other in others:
        assert [each["label"] for each in other] == [each["label"] for each in first]
        if not fold:
            for a, b in zip(first, other, strict=True):
                assert a["probabilities"] == pytest.approx(b["probabilities"], abs=1e-5)
    argmax = [max(each["probabilities"], key=each["probabilities"].get) for each in others[0]]
    assert (argmax == [each["label"] for each in first]) is fold


def export_student(colakit: Run, toy: Path, tmp_path: Path, *words: object) -> tuple[int, str]:
    run = write_student(tmp_path / "run", toy)
    code, _, err = colakit("export", run, "--data", toy / "corpus", "--out", tmp_path / "out", *words)
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")], (
        "a temporary folder is left"
    )
    return code, err


def test_a_quantised_file_that_flips_answers_leaves_no_folder(
    colakit: Run, toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(parity.MAX_FLIPPED, False, -1.0)
    code, err = export_student(colakit, toy, tmp_path)
    assert code == 1
    assert "answers flipped" in err
    assert "--quantize none" in err
    assert not (tmp_path / "out").exists()


def test_an_fp32_file_that_differs_leaves_no_folder(
    colakit: Run, toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parity, "MAX_DIFFERENCE", 0.0)
    code, err = export_student(colakit, toy, tmp_path)
    assert code == 1
    assert "a logit may differ by 0" in err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--format", "transformers"], "a recurrent student has no class in transformers"),
        (["--quantize", "int4"], "4-bit weights for a GPT's matrix products only"),
        (["--split", "nowhere"], "no split 'nowhere'"),
    ],
)
def test_what_cannot_be_exported_is_refused(
    colakit: Run, toy: Path, tmp_path: Path, words: list[str], message: str
) -> None:
    code, err = export_student(colakit, toy, tmp_path, *words)
    assert (code, (tmp_path / "out").exists()) == (2, False)
    assert message in err


def test_a_dry_run_writes_nothing(colakit: Run, toy: Path, tmp_path: Path) -> None:
    assert export_student(colakit, toy, tmp_path, "--dry-run")[0] == 0
    assert not (tmp_path / "out").exists()


def test_a_folder_with_other_files_is_refused(colakit: Run, toy: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("mine")
    code, err = export_student(colakit, toy, tmp_path)
    assert code == 2
    assert "has other files in it" in err
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["notes.txt"]


@pytest.mark.parametrize("package", ["onnx", "onnxruntime", "onnxscript"])
def test_a_missing_package_is_named_before_anything_is_written(
    colakit: Run, toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    code, err = export_student(colakit, toy, tmp_path)
    assert (code, (tmp_path / "out").exists()) == (2, False)
    assert "pip install 'colakit[export]'" in err


def test_a_base_without_a_licence_is_refused(colakit: Run, toy: Path, tmp_path: Path) -> None:
    run = write_student(tmp_path / "run", toy)
    classifier = load_classifier(run)
    classifier.origin["settings"]["base"] = str(toy / "base")
    classifier.save(run / "ckpt.pt")
    words = ["export", run, "--data", toy / "corpus", "--out", tmp_path / "out", "--quantize", "none"]
    code, _, err = colakit(*words)
    assert (code, (tmp_path / "out").exists()) == (2, False)
    assert "--license" in err
    assert colakit(*words, "--license", "cc-by-4.0")[0] == 0
    assert "license: cc-by-4.0" in (tmp_path / "out" / "README.md").read_text()


def test_an_unfinished_run_is_refused(colakit: Run, toy: Path, tmp_path: Path) -> None:
    (tmp_path / "run" / "checkpoints" / "step-00000001").mkdir(parents=True)
    (tmp_path / "run" / "checkpoints" / "step-00000001" / "manifest.json").write_text("{}")
    code, _, err = colakit("export", tmp_path / "run", "--out", tmp_path / "out")
    assert (code, (tmp_path / "out").exists()) == (2, False)
    assert "not finished" in err


@torch.no_grad()
def test_activations_with_outliers_stay_fp32(colakit: Run, toy: Path, tmp_path: Path) -> None:
    """The next layer ignores a large channel of a norm's output, but it shares its scale with all others."""
    run = write_gpt(tmp_path / "run", toy)
    classifier = load_classifier(run)
    for block in classifier.model.body.blocks:
        block.ln_2.bias[0] = 60
        block.mlp.c_fc.base.weight[:, 0] = block.mlp.c_fc.lora_a[:, 0] = 0
    classifier.save(run / "ckpt.pt")
    words = ["export", run, "--data", toy / "corpus", "--format", "onnx", "--out", tmp_path / "out"]
    code, _, err = colakit(*words)
    assert code == 0, err
    assert "trying int8 in blocks" in err
    assert json.loads((tmp_path / "out" / "colakit.json").read_text())["parity"]["files"][-1]["weights"] == (
        "int8 weights only"
    )


@torch.no_grad()
def test_a_llama_keeps_its_threshold_in_the_graph_and_is_refused_for_transformers(
    colakit: Run, toy: Path, tmp_path: Path, fp32: Compute
) -> None:
    run = write_gpt(tmp_path / "run", toy, family="llama")
    words = ["export", run, "--data", toy / "corpus", "--split", "id_dev", "--fold-threshold"]
    code, _, err = colakit(*words, "--out", tmp_path / "no")
    assert (code, (tmp_path / "no").exists()) == (2, False)
    assert "RMSNorm" in err
    assert colakit(*words, "--format", "onnx", "--out", tmp_path / "out", "--quantize", "none")[0] == 0
    original, sentences = load_classifier(run), sentences_of(toy)
    logits = compute_logits(original.model, original.encode(sentences), fp32)
    exported = OnnxPredictor(tmp_path / "out" / "onnx" / "model.onnx")
    folded = exported.logits(exported.encode(sentences))
    assert (folded.argmax(axis=1) == original.predict_labels(logits)).all()
    assert not np.allclose(probabilities(folded), probabilities(logits), atol=1e-2)
