"""Models are loaded, replaced and removed while the server runs."""

from __future__ import annotations

import json
import pickle
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import requests
from support.serving import SENTENCES, make_service, running, write_toy_adapter

from colakit.client import Client
from colakit.errors import ColakitError
from colakit.serving.http import Access
from colakit.serving.models import resolve_inside


@pytest.fixture
def adapters(models_folder: Path, tmp_path: Path) -> Path:
    """Folder of adapters that a test may damage."""
    folder = tmp_path / "adapters"
    for name in ("two", "three"):
        shutil.copytree(models_folder / name, folder / name)
    write_toy_adapter(folder / "next", models_folder / "base", labels=("bad", "good"), seed=9)
    return folder


@pytest.fixture
def admin(models_folder: Path, adapters: Path) -> Iterator[Client]:
    """Client that may change the models of a running server."""
    service = make_service(models_folder, Access(admin_token="admin", adapter_dir=adapters))
    with running(service) as url:
        yield Client(url, "admin")


def probs(client: Client, name: str) -> list[float]:
    return client.classify(SENTENCES[0], name)[0]["probs"]


def test_a_model_is_added_replaced_and_removed(admin: Client) -> None:
    before = probs(admin, "two")
    assert admin.load("next")["version"] == 1
    assert admin.load("two", "next") == {"name": "two", "version": 2, "kind": "adapter"}
    assert probs(admin, "two") == pytest.approx(probs(admin, "next"))
    assert probs(admin, "two") != pytest.approx(before)
    admin.unload("two")
    with pytest.raises(ColakitError, match="404"):
        probs(admin, "two")
    assert admin.load("two")["version"] == 3
    assert probs(admin, "two") == pytest.approx(before)


def cut_weights(folder: Path) -> None:
    weights = folder / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])


def break_config(folder: Path) -> None:
    (folder / "adapter_config.json").write_text("{")


def other_base(folder: Path) -> None:
    companion = json.loads((folder / "colakit.json").read_text())
    companion["origin"]["base_fingerprint"] = "0" * 64
    (folder / "colakit.json").write_text(json.dumps(companion))


def not_finite(folder: Path) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    weights = folder / "adapter_model.safetensors"
    tensors = load_file(weights)
    save_file({name: torch.full_like(tensor, float("nan")) for name, tensor in tensors.items()}, weights)


class Payload:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return open, ("pickle-was-executed",)


def as_pickle(folder: Path) -> None:
    (folder / "adapter_model.safetensors").unlink()
    (folder / "adapter_model.bin").write_bytes(pickle.dumps({"a": Payload()}))


@pytest.mark.parametrize("damage", [cut_weights, break_config, other_base, not_finite, as_pickle])
def test_a_damaged_adapter_is_refused_and_the_old_one_stays(
    admin: Client, adapters: Path, damage: Callable[[Path], None]
) -> None:
    before = probs(admin, "two")
    damage(adapters / "two")
    with pytest.raises(ColakitError, match="status 422"):
        admin.load("two")
    assert probs(admin, "two") == pytest.approx(before)
    assert not Path("pickle-was-executed").exists()


PATHS = [
    "/etc",
    "..",
    "../served",
    "two/../../served",
    ".",
    "",
    "missing",
    "two/adapter_config.json",
    "a\0b",
    "~",
]


@pytest.mark.parametrize("path", PATHS)
def test_a_path_outside_the_folder_is_refused(admin: Client, path: str) -> None:
    answer = requests.post(
        f"{admin.url}/v1/adapters/two",
        json={"path": path},
        headers={"authorization": "Bearer admin"},
        timeout=20,
    )
    assert answer.status_code in (400, 422)


@pytest.mark.parametrize("target", ["circle", "nothing"])
def test_a_link_that_leads_nowhere_is_refused(target: str, adapters: Path) -> None:
    (adapters / "two" / "circle").symlink_to(target)
    with pytest.raises(ColakitError, match="path 'two': cannot be read"):
        resolve_inside(adapters, "two")
    with pytest.raises(ColakitError, match=r"cannot be read .*File name too long"):
        resolve_inside(adapters, "x" * 5000)


def test_a_link_out_of_the_folder_is_refused(adapters: Path, models_folder: Path) -> None:
    (adapters / "link").symlink_to(models_folder / "two")
    weights = adapters / "two" / "adapter_model.safetensors"
    weights.unlink()
    weights.symlink_to(models_folder / "two" / weights.name)
    for name in ("link", "two"):
        with pytest.raises(ColakitError, match="adapter-dir"):
            resolve_inside(adapters, name)


def test_without_an_admin_token_nothing_can_be_changed(models_folder: Path, adapters: Path) -> None:
    service = make_service(models_folder, Access(adapter_dir=adapters))
    with running(service) as url, pytest.raises(ColakitError, match="403"):
        Client(url).load("next")


@pytest.mark.parametrize("name", ["a b", "..", "x" * 65, "-a"])
def test_a_name_that_is_not_allowed_is_refused(admin: Client, name: str) -> None:
    with pytest.raises(ColakitError, match=r"status (404|422|405)"):
        admin.load(name, "two")


def test_requests_see_the_old_or_the_new_model_while_it_is_replaced(
    admin: Client, adapters: Path, models_folder: Path
) -> None:
    versions = {"two": probs(admin, "two")}
    admin.load("next")
    versions["next"] = probs(admin, "next")
    failures: list[object] = []
    stop = threading.Event()

    def ask() -> None:
        client = Client(admin.url)
        while not stop.is_set():
            answer = client.classify(SENTENCES[0], "two")[0]["probs"]
            if not any(answer == pytest.approx(probs, abs=1e-5) for probs in versions.values()):
                failures.append(answer)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for path in ("next", "two", "next", "two"):
        admin.load("two", path)
    stop.set()
    for thread in threads:
        thread.join(20)
    assert failures == []
