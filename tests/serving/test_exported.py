"""ONNX files of `colakit export` are served beside other models, by the predictor of `colakit predict`."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from support.exported import write_student
from support.serving import FP32, SENTENCES, running

from colakit.client import Client
from colakit.config.serve import ServeSettings
from colakit.errors import ColakitError
from colakit.inference.onnx_predictor import OnnxPredictor, onnx_file
from colakit.serving.app import Service
from colakit.serving.models import ModelStore

pytest.importorskip("onnxruntime")


@pytest.fixture(scope="module")
def exported(toy: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The exported folder of a student, and a quantised file of it."""
    from colakit.cli.app import main

    folder = tmp_path_factory.mktemp("exported")
    run, out = write_student(folder / "run", toy), folder / "student"
    words = ["export", run, "--data", toy / "corpus", "--split", "id_dev", "--out", out, "--format", "onnx"]
    assert main([*map(str, words), "--quiet"]) == 0
    return {"student": out, "quantized": out / "onnx" / "model_quantized.onnx"}


@pytest.fixture(scope="module")
def store(exported: dict[str, Path], models_folder: Path) -> ModelStore:
    store = ModelStore(ServeSettings(max_wait_ms=1.0), FP32)
    for name, path in exported.items():
        store.load(name, path)
    store.load("two", models_folder / "two")
    return store


@pytest.fixture(scope="module")
def client(store: ModelStore) -> Iterator[Client]:
    with running(Service(store, ServeSettings())) as url:
        yield Client(url)


@pytest.mark.parametrize("name", ["student", "quantized"])
def test_an_exported_file_answers_as_in_predict(client: Client, exported: dict[str, Path], name: str) -> None:
    path = onnx_file(exported[name])
    assert path is not None
    expected = OnnxPredictor(path)(SENTENCES)
    rows = client.classify(SENTENCES, model=name)
    assert [row["label"] for row in rows] == expected.names
    np.testing.assert_allclose([row["probs"] for row in rows], expected.probs, atol=1e-5)


def test_exported_files_and_adapters_answer_one_request(client: Client, exported: dict[str, Path]) -> None:
    together = client.compare(SENTENCES, [*exported, "two"])
    for name in (*exported, "two"):
        alone = client.classify(SENTENCES, model=name)
        for row, other in zip(together[name], alone, strict=True):
            np.testing.assert_allclose(row["probs"], other["probs"], atol=1e-5)
    kinds = {model["id"]: model["kind"] for model in client.models()}
    assert kinds == {"student": "onnx", "quantized": "onnx", "two": "adapter"}


def test_a_damaged_onnx_file_is_refused_and_the_old_one_stays(
    store: ModelStore, exported: dict[str, Path], client: Client
) -> None:
    before = client.classify(SENTENCES, model="student")
    path = exported["student"] / "onnx" / "model.onnx"
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(ColakitError, match=r"model\.onnx: cannot be read"):
        store.load("student", exported["student"])
    assert client.classify(SENTENCES, model="student") == before


def test_an_onnx_file_with_weights_outside_its_folder_is_refused(
    store: ModelStore, exported: dict[str, Path], tmp_path: Path
) -> None:
    import onnx
    from onnx.external_data_helper import set_external_data

    shutil.copytree(exported["student"], tmp_path / "student")
    model = onnx.load(exported["quantized"])
    weight = max(model.graph.initializer, key=lambda tensor: len(tensor.raw_data))
    (tmp_path / "secret").write_bytes(weight.raw_data)
    set_external_data(weight, "../../secret")
    weight.ClearField("raw_data")
    (tmp_path / "student" / "onnx" / "model.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(ColakitError, match="escapes model directory"):
        store.load("outside", tmp_path / "student")
