"""The HTTP interface: shapes of three protocols, errors, limits, access."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
from hostile_gguf import valid_file
from support.serving import FP32, SENTENCES, make_service, running, write_toy_adapter

from colakit.client import Client
from colakit.config.serve import ServeSettings
from colakit.data.tokenizer import save_tokenizer
from colakit.errors import ColakitError
from colakit.inference.classifier import load_classifier
from colakit.inference.numpy_predictor import StudentPredictor
from colakit.inference.predictor import Predictor
from colakit.models.gpt.config import GPTConfig
from colakit.models.gpt.model import GPT
from colakit.serving.app import Service
from colakit.serving.batcher import Batcher
from colakit.serving.http import Access
from colakit.serving.models import ModelStore
from colakit.storage.gpt2 import load_tokenizer, save_gpt

Post = Callable[..., requests.Response]


def expected(folder: Path, name: str) -> Any:
    where = folder / name
    predictor = StudentPredictor(where) if name == "student" else Predictor(load_classifier(where), FP32)
    return predictor(SENTENCES)


@pytest.mark.parametrize("name", ["two", "three", "top", "student"])
def test_served_answers_are_those_of_predict(post: Post, models_folder: Path, name: str) -> None:
    predictions = expected(models_folder, name)
    answer = post("/v1/classify", model=name, input=SENTENCES).json()
    assert [row["label"] for row in answer["data"]] == predictions.names
    np.testing.assert_allclose([row["probs"] for row in answer["data"]], predictions.probs, atol=1e-5)
    assert [row["num_classes"] for row in answer["data"]] == [len(predictions.label_names)] * 3


def test_many_models_in_one_request_answer_as_each_alone(post: Post) -> None:
    names = ["two", "three", "top", "student"]
    together = post("/v1/classify", models=names, input=SENTENCES).json()["results"]
    for name, answer in zip(names, together, strict=True):
        alone = post("/v1/classify", model=name, input=SENTENCES).json()
        assert answer["model"] == name
        for row, other in zip(answer["data"], alone["data"], strict=True):
            np.testing.assert_allclose(row["probs"], other["probs"], atol=1e-5)


def test_shape_of_text_embeddings_inference(post: Post) -> None:
    single = post("/predict?model=two", inputs=SENTENCES[0]).json()
    batch = post("/predict", model="two", inputs=[[text] for text in SENTENCES]).json()
    assert [row["label"] for row in batch[0]] == [row["label"] for row in single]
    assert [row["score"] for row in batch[0]] == pytest.approx([row["score"] for row in single])
    assert {row["label"] for row in single} == {"bad", "good"}
    assert single[0]["score"] >= single[1]["score"]
    assert sum(row["score"] for row in single) == pytest.approx(1)


def test_shape_of_the_open_inference_protocol(post: Post, url: str) -> None:
    tensor = {"name": "text", "shape": [3], "datatype": "BYTES", "data": SENTENCES}
    answer = post("/v2/models/three/infer", id="7", inputs=[tensor]).json()
    assert (answer["id"], answer["model_name"]) == ("7", "three")
    labels, probs = answer["outputs"]
    assert (labels["shape"], probs["shape"]) == ([3], [3, 3])
    assert len(probs["data"]) == 9
    assert requests.get(f"{url}/v2/models/three/ready", timeout=9).json()["ready"] is True


BODIES = [
    (b"{", 400),
    (b"[]", 400),
    (b'{"model": "two"}', 400),
    (b'{"model": "two", "input": 5}', 400),
    (b'{"model": "two", "input": []}', 400),
    (b'{"model": "two", "input": "\xff"}', 400),
    (b'{"model": "two", "input": "\\u0000"}', 400),
    (b'{"model": "two", "input": "\\ud800"}', 400),
    (b'{"model": "two", "input": ' + b"[" * 200 + b"]" * 200 + b"}", 400),
    (b'{"model": "none", "input": "a"}', 404),
    (b'{"input": "a"}', 404),
    (b'{"model": "two", "input": "' + b"word " * 2000 + b'"}', 413),
    (b'{"model": "two", "input": "' + b"a" * 2**20 + b'"}', 413),
    (json.dumps({"model": "two", "input": ["a"] * 1025}).encode(), 413),
    (json.dumps({"model": "two", "input": ["a"] * 10**6}).encode(), 413),
]


@pytest.mark.parametrize(("body", "status"), BODIES, ids=range(len(BODIES)))
def test_bad_bodies_are_refused_with_a_code_and_a_sentence(url: str, body: bytes, status: int) -> None:
    answer = requests.post(f"{url}/v1/classify", data=body, timeout=20)
    assert answer.status_code == status, answer.text
    assert set(answer.json()) == {"code", "message"}
    assert requests.post(f"{url}/v1/classify", json={"model": "two", "input": "a"}, timeout=20).ok


def test_a_pair_of_sentences_and_a_wrong_shape_are_refused(post: Post) -> None:
    assert post("/predict?model=two", inputs=["a", "b"]).status_code == 400
    tensor = {"name": "text", "shape": [5], "datatype": "BYTES", "data": SENTENCES}
    assert post("/v2/models/two/infer", inputs=[tensor]).status_code == 400


def test_unknown_paths_and_methods_are_json_errors(url: str) -> None:
    assert requests.get(f"{url}/nothing", timeout=9).json()["code"] == "not_found"
    assert requests.get(f"{url}/predict", timeout=9).json()["code"] == "method_not_allowed"


def test_long_sentences_are_cut_only_on_request(post: Post) -> None:
    text = " ".join(SENTENCES * 9)
    assert post("/v1/classify", model="two", input=text).status_code == 413
    answer = post("/v1/classify", model="two", input=text, truncate=True)
    assert answer.json()["usage"]["prompt_tokens"] == 32


def test_metrics_count_requests_and_sentences(url: str, post: Post) -> None:
    from prometheus_client.parser import text_string_to_metric_families

    assert post("/v1/classify", model="three", input=SENTENCES).ok
    text = requests.get(f"{url}/metrics", timeout=9).text
    samples = {
        (sample.name, sample.labels.get("model")): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    assert samples["colakit_sentences_total", "three"] >= 3
    assert samples["colakit_models", None] == 4


def test_the_openapi_document_lists_every_route(url: str, service: Service) -> None:
    from colakit.serving.app import make_app

    document = requests.get(f"{url}/openapi.json", timeout=9).json()
    assert set(document["paths"]) == {route.path for route in make_app(service).routes}  # type: ignore[attr-defined]


def test_without_the_token_nothing_but_health_is_answered(models_folder: Path) -> None:
    service = make_service(models_folder, Access(token="secret", admin_token="admin"))
    with running(service) as url:
        assert requests.get(f"{url}/health", timeout=9).ok
        assert requests.get(f"{url}/v1/models", timeout=9).status_code == 401
        body = {"model": "two", "input": "a"}
        assert requests.post(f"{url}/v1/classify", json=body, timeout=9).status_code == 401
        for token in ("secret", "admin"):
            assert Client(url, token).classify("a", "two")
        with pytest.raises(ColakitError, match="401"):
            Client(url, "secret").unload("two")
        assert Client(url, "admin").unload("two")["version"] == 1


class Blocked:
    """Replaces a batcher's `run` by one that waits until it is released."""

    def __init__(self, batcher: Batcher) -> None:
        self.batcher, self.run = batcher, batcher.run
        self.started, self.released, self.sizes = threading.Event(), threading.Event(), []

    def __enter__(self) -> Blocked:
        self.batcher.run = self  # type: ignore[method-assign]
        return self

    def __exit__(self, *_: object) -> None:
        self.released.set()
        self.batcher.run = self.run  # type: ignore[method-assign]

    def __call__(self, units: list[Any]) -> Any:
        self.sizes.append(len(units))
        self.started.set()
        assert self.released.wait(20)
        return self.run(units)


def in_thread(work: Callable[[], Any]) -> tuple[threading.Thread, list[Any]]:
    results: list[Any] = []
    thread = threading.Thread(target=lambda: results.append(work()))
    thread.start()
    return thread, results


def test_a_full_queue_answers_429_with_retry_after(models_folder: Path) -> None:
    service = make_service(models_folder, max_queue_tokens=20)
    with running(service) as url, Blocked(service.store.get("two").batcher) as blocked:
        client = Client(url)
        first = in_thread(lambda: client.classify(SENTENCES[0], "two"))
        assert blocked.started.wait(20)
        waiting = [in_thread(lambda: Client(url).classify(SENTENCES[0], "two"))]
        while not service.store.waiting:
            pass
        answer = requests.post(f"{url}/v1/classify", json={"model": "two", "input": SENTENCES * 9}, timeout=9)
        assert (answer.status_code, answer.json()["code"]) == (429, "queue_full")
        assert int(answer.headers["retry-after"]) >= 1
        blocked.released.set()
        for thread, results in (first, *waiting):
            thread.join(20)
            assert results


def test_requests_that_wait_share_a_batch_and_gone_clients_leave_it(service: Service, url: str) -> None:
    batcher = service.store.get("two").batcher
    with Blocked(batcher) as blocked:
        first = in_thread(lambda: Client(url).classify("first", "two"))
        assert blocked.started.wait(20)
        others = [in_thread(lambda: Client(url).classify(SENTENCES, "two")) for _ in range(4)]
        with pytest.raises(requests.ReadTimeout):
            requests.post(f"{url}/v1/classify", json={"model": "two", "input": SENTENCES}, timeout=0.5)
        alone = batcher.waiting
        while batcher.waiting > alone * 4 // 5 or not batcher.waiting:
            pass
        blocked.released.set()
        for thread, results in (first, *others):
            thread.join(20)
            assert results
        assert blocked.sizes == [1, 12]


def test_a_batch_that_fails_answers_500_to_that_batch_alone(
    service: Service, post: Post, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(units: list[Any]) -> Any:
        raise RuntimeError("broken")

    with monkeypatch.context() as patch:
        patch.setattr(service.store.get("two").batcher, "run", fail)
        answer = post("/v1/classify", model="two", input="a")
        assert (answer.status_code, answer.json()["code"]) == (500, "internal_error")
        assert post("/v1/classify", model="student", input="a").ok
    assert post("/v1/classify", model="two", input="a").ok


def test_the_client_names_the_server_and_the_fault(url: str) -> None:
    client = Client(url)
    assert set(client.compare(SENTENCES, ["two", "three"])) == {"two", "three"}
    assert [model["id"] for model in client.models()] == ["two", "three", "top", "student"]
    with pytest.raises(ColakitError, match=r"status 404.*Did you mean two"):
        client.classify("a", model="twoo")
    with pytest.raises(ColakitError, match="gives no answer"):
        Client("http://127.0.0.1:9").models()


@pytest.mark.parametrize("kind", ["folder", "gguf"])
def test_adapters_of_a_llama_are_served(kind: str, models_folder: Path, tmp_path: Path) -> None:
    base = tmp_path / "base"
    if kind == "gguf":
        base = tmp_path / "base.gguf"
        base.write_bytes(valid_file())
    else:
        tokenizer = load_tokenizer(models_folder / "base")
        shape = {"num_positions": 32, "width": 32, "num_layers": 2, "num_heads": 4, "num_kv_heads": 2}
        config = GPTConfig(vocab_size=tokenizer.vocab_size, family="llama", activation="silu", **shape)
        save_gpt(GPT(config), base)
        save_tokenizer(tokenizer, base, max_tokens=32)
    sentences, names = ["the cat", "the dogs sleep"], {"two": ("bad", "good"), "three": ("a", "b", "c")}
    store = ModelStore(ServeSettings(), FP32)
    for seed, (name, labels) in enumerate(names.items()):
        write_toy_adapter(tmp_path / name, base, labels=labels, seed=seed)
        store.load(name, tmp_path / name)
    with running(Service(store, ServeSettings())) as url:
        answers = Client(url).compare(sentences, list(names))
    for name in names:
        predictions = Predictor(load_classifier(tmp_path / name), FP32)(sentences)
        assert [row["label"] for row in answers[name]] == predictions.names
        np.testing.assert_allclose([row["probs"] for row in answers[name]], predictions.probs, atol=1e-5)
