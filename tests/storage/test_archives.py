"""Files that torch wrote are read without torch: the same tensors, and nothing else."""

from __future__ import annotations

import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.students import student

from colakit.storage import archives
from colakit.storage.archives import Archive, StoredArray

PLAIN: dict[str, Any] = {
    "text": "ein süßer Kürbis",
    "numbers": [0, 255, 256, 70_000, -5, 2**40, 2.5],
    "constants": [None, True, False],
    "nested": {"empty": [{}, [], ()], "tuples": [(1,), (1, 2), (1, 2, 3), (1, 2, 3, 4)]},
    "ordered": OrderedDict(),
}


def saved(value: Any, path: Path) -> Path:
    torch.save(value, path)
    return path


def test_plain_data_come_back_as_they_were(tmp_path: Path) -> None:
    with Archive(saved(PLAIN, tmp_path / "plain.pt")) as archive:
        assert archive.content == PLAIN


@pytest.mark.parametrize("shape", [{}, {"num_embeddings": 12}, {"cell": "gru", "num_layers": 2}])
def test_tensors_are_torch_s(shape: dict[str, Any], tmp_path: Path) -> None:
    wanted = student(**shape).state_dict()
    wanted["number"], wanted["none"] = torch.tensor(3), torch.zeros(0, 4)
    with Archive(saved({"tensors": dict(wanted)}, tmp_path / "s.pt")) as archive:
        found = {name: archive.array(stored) for name, stored in archive.content["tensors"].items()}
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert torch.equal(torch.from_numpy(found[name].copy()), tensor), name
        assert found[name].shape == tuple(tensor.shape)


class Payload:
    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.canary,)


def test_code_is_not_executed(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    with pytest.raises(ValueError, match=r"neither a tensor nor|not an instruction"):
        Archive(saved({"kind": Payload(canary)}, tmp_path / "bad.pt"))
    assert not canary.exists()


shared: list[Any] = [1]
tensor = torch.ones(3)
UNREADABLE = {
    "two of one storage": [tensor, tensor.view(3, 1)],
    "transposed": torch.ones(2, 3).t(),
    "view": torch.ones(4)[2:],
    "bf16": torch.ones(2, dtype=torch.bfloat16),
    "set": {1, 2},
    "object": Path("x"),
    "twice": [shared, shared],
    "number for a key": {1: 2},
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_what_is_neither_plain_nor_whole_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"damaged|not an instruction"):
        Archive(saved({"x": UNREADABLE[name]}, tmp_path / "odd.pt"))


def test_other_files_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good = saved({"x": torch.ones(3)}, tmp_path / "good.pt")
    files = {"text": b"colakit", "empty": b"", "pickle": pickle.dumps({}), "cut": good.read_bytes()[:-40]}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match="no zip archive"):
            Archive(tmp_path / name)
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as other:
        other.writestr("a/b", "c")
    with pytest.raises(ValueError, match="no archive of torch"):
        Archive(tmp_path / "other.zip")
    with pytest.raises(OSError, match="nowhere"):
        Archive(tmp_path / "nowhere")
    monkeypatch.setattr(archives, "MAX_PICKLE_BYTES", 10)
    with pytest.raises(ValueError, match="too long a description"):
        Archive(good)


def repacked(good: Path, path: Path, compression: int, **replaced: bytes) -> Path:
    """Write the members of an archive again, some with another content."""
    with zipfile.ZipFile(good) as old, zipfile.ZipFile(path, "w", compression) as new:
        for member in old.namelist():
            new.writestr(member, replaced.get(member.split("/", 1)[1], old.read(member)))
    return path


def test_members_that_lie_are_refused(tmp_path: Path) -> None:
    good = saved({"x": torch.zeros(3000)}, tmp_path / "good.pt")
    with pytest.raises(ValueError, match="unpacks to more than its size"):
        Archive(repacked(good, tmp_path / "packed.pt", zipfile.ZIP_DEFLATED))
    noise = saved({"x": torch.randn(3000)}, tmp_path / "noise.pt")
    with pytest.raises(ValueError, match=r"packs nothing|more than its size"):
        Archive(repacked(noise, tmp_path / "lzma.pt", zipfile.ZIP_LZMA))
    with pytest.raises(ValueError, match="another order"):
        Archive(repacked(good, tmp_path / "big.pt", zipfile.ZIP_STORED, byteorder=b"big"))
    short = repacked(good, tmp_path / "short.pt", zipfile.ZIP_STORED, **{"data/0": bytes(8)})
    with Archive(short) as archive, pytest.raises(ValueError, match="reshape"):
        archive.array(archive.content["x"])
    with Archive(good) as archive, pytest.raises(ValueError, match="cannot be read"):
        archive.array(StoredArray("7", np.float32, (1,)))


MISPLACED = [b".", b"N", b"NN.", b"t.", b"\x85.", b"s.", b"h\x00.", b"Ns.", b"]Na(u.", b"}(NNu.", b"NQ."]


@pytest.mark.parametrize("pickled", MISPLACED)
def test_instructions_out_of_place_are_refused(pickled: bytes, tmp_path: Path) -> None:
    good = saved({}, tmp_path / "good.pt")
    with pytest.raises(ValueError, match=r"damaged|not an instruction|unpack|pickle|opcode"):
        Archive(repacked(good, tmp_path / "bad.pt", zipfile.ZIP_STORED, **{"data.pkl": pickled}))


def with_shape(path: Path, shape: tuple[int, ...]) -> Path:
    """Write an archive whose one tensor of a number claims to be of `shape`."""
    good = saved({"x": torch.ones(1)}, path.with_suffix(".good"))
    with zipfile.ZipFile(good) as archive:
        name = next(name for name in archive.namelist() if name.endswith("data.pkl"))
        pickled = archive.read(name)
    one = b"K\x01\x85"  # the shape (1,), and the strides
    assert pickled.count(one) == 2
    spelt = b"(" + b"".join(b"J" + size.to_bytes(4, "little", signed=True) for size in shape) + b"t"
    return repacked(good, path, zipfile.ZIP_STORED, **{"data.pkl": pickled.replace(one, spelt, 1)})


@pytest.mark.parametrize("shape", [(2**31 - 1,) * 100_000, (2**31 - 1,) * 8, (-1,), (2,), (0,), (1, 1)])
def test_shapes_that_do_not_fit_are_refused_at_once(shape: tuple[int, ...], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="damaged"):
        Archive(with_shape(tmp_path / "lying.pt", shape))


def test_an_archive_for_a_later_zip_is_refused(tmp_path: Path) -> None:
    raw = saved({}, tmp_path / "good.pt").read_bytes()
    entry = raw.index(b"PK\x01\x02")  # the first of the directory; its seventh byte is the version needed
    (tmp_path / "later.pt").write_bytes(raw[: entry + 6] + b"\x63" + raw[entry + 7 :])
    with pytest.raises(ValueError, match="no zip archive"):
        Archive(tmp_path / "later.pt")
