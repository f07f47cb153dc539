"""A tiny random base with three adapters and a student, and servers of them."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import requests
import torch

from colakit.config.serve import ServeSettings
from colakit.data.tokenizer import SentenceTokenizer, save_tokenizer, train_tokenizer
from colakit.inference.classifier import SentenceClassifier
from colakit.models.gpt.config import GPTConfig
from colakit.models.gpt.model import GPT
from colakit.models.lora import LoRAConfig, inject, train_modules
from colakit.models.rnn.config import RNNConfig
from colakit.models.rnn.model import DistilRNN
from colakit.runtime.device import Compute
from colakit.serving.app import Service
from colakit.serving.http import Access
from colakit.serving.models import ModelStore
from colakit.serving.server import listen, make_server
from colakit.storage.gpt2 import base_fingerprint, load_gpt, load_tokenizer, save_gpt
from colakit.storage.model_file import write_companion
from colakit.storage.peft import write_adapter

FP32 = Compute(torch.device("cpu"), torch.float32, "tests")
SENTENCES = ["The cat sleeps.", "The cat sleep.", "These dogs see the girl that laughs."]


def write_toy_adapter(
    folder: Path, base: Path, *, labels: tuple[str, ...], seed: int, noise: float = 0.2, **lora: Any
) -> SentenceClassifier:
    """Write the adapter folder of a classifier with random weights, and return the classifier."""
    gpt = load_gpt(base)
    fingerprint = base_fingerprint(gpt)
    torch.manual_seed(seed)
    config = LoRAConfig(**{"rank": 4, "alpha": 8.0, **lora})
    model = gpt.classifier(len(labels)).eval()
    inject(model, config)
    train_modules(model, layers=config.layers_to_transform)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += torch.randn_like(parameter) * noise
    origin = {"command": "finetune", "base": str(base), "base_fingerprint": fingerprint}
    tokenizer = load_tokenizer(base)
    classifier = SentenceClassifier(model, tokenizer, labels, 32, None, config, origin, 1.5)
    if len(labels) == 2:
        classifier.threshold = 0.6
    write_adapter(model, folder, config, base=str(base))
    write_companion(folder, classifier.companion())
    return classifier


@pytest.fixture(scope="session")
def models_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with `base`, the adapters `two`, `three` and `top`, and `student`."""
    folder = tmp_path_factory.mktemp("served")
    write_toy_models(folder)
    return folder


def write_toy_models(folder: Path) -> None:
    """Write `base`, the adapters `two`, `three` and `top`, and `student` to a folder."""
    trained = train_tokenizer(SENTENCES, 300)
    tokenizer = SentenceTokenizer(trained.backend, trained.end_of_text_id, prefix=True)
    torch.manual_seed(0)
    shape = {"num_positions": 64, "width": 32, "num_layers": 3, "num_heads": 2}
    base = folder / "base"
    save_gpt(GPT(GPTConfig(vocab_size=tokenizer.vocab_size, **shape)), base, end_of_text_id=0)
    save_tokenizer(tokenizer, base, max_tokens=64)
    write_toy_adapter(folder / "two", base, labels=("bad", "good"), seed=1)
    write_toy_adapter(folder / "three", base, labels=("a", "b", "c"), seed=2, rank=2)
    write_toy_adapter(folder / "top", base, labels=("bad", "good"), seed=3, layers_to_transform=(2,))
    rnn = RNNConfig(vocab_size=tokenizer.vocab_size, num_labels=2, embedding_size=8, hidden_size=8)
    (folder / "student").mkdir()
    student = SentenceClassifier(DistilRNN(rnn), tokenizer, ("bad", "good"), 40, 0.5)
    student.save(folder / "student" / "ckpt.pt")


@contextmanager
def running(service: Service) -> Iterator[str]:
    """Serve in a thread; yield the URL."""
    listener = listen("127.0.0.1", 0)
    server = make_server(service)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[listener])))
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(20)
        assert not thread.is_alive()
        service.store.close()


def make_service(folder: Path, access: Access | None = None, **settings: Any) -> Service:
    """Return a service of all models of `models_folder`."""
    chosen = ServeSettings(**{"max_wait_ms": 1.0, **settings})
    store = ModelStore(chosen, FP32)
    for name in ("two", "three", "top", "student"):
        store.load(name, folder / name)
    return Service(store, chosen, access or Access())


@pytest.fixture(scope="module")
def service(models_folder: Path) -> Service:
    """A service with the usual limits."""
    return make_service(models_folder)


@pytest.fixture(scope="module")
def url(service: Service) -> Iterator[str]:
    """URL of a running server of `service`."""
    with running(service) as address:
        yield address


@pytest.fixture(scope="module")
def post(url: str) -> Callable[..., requests.Response]:
    """Function that posts JSON to a path."""
    session = requests.Session()
    return lambda path, **body: session.post(url + path, json=body, timeout=20)
