"""The files that `torch.save` writes, read without torch.

Such a file is a zip archive: `data.pkl`, a pickle of the plain data, in which tensors refer to `data/0`,
`data/1` and so on, their numbers as they lie in memory. The pickle is not executed: its instructions are read
one by one, and only those are known that spell plain data and tensors. Anything else makes a file unreadable
here.
"""

from __future__ import annotations

import math
import pickletools
import sys
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from typing_extensions import Self

from colakit.utils.files import require_unpacked_to_fit

DTYPES: dict[str, type[np.generic]] = {
    "torch FloatStorage": np.float32,
    "torch IntStorage": np.int32,
    "torch LongStorage": np.int64,
}
REBUILD, ORDERED = "torch._utils _rebuild_tensor_v2", "collections OrderedDict"
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
NUMBERS_AND_TEXT = {"BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE"}
MAX_DIMENSIONS, MAX_SIZE = 8, 2**31
MAX_PICKLE_BYTES = 2**25  # a vocabulary of 50,000 takes a tenth


@dataclass(frozen=True)
class StoredArray:
    """A tensor that still lies in the archive.

    Attributes:
        key: of its numbers.
        shape: () where it is one number.
    """

    key: str
    dtype: type[np.generic]
    shape: tuple[int, ...]


class Archive:
    """A file of `torch.save`, open; `content` is its plain data, with a `StoredArray` for each tensor.

        with Archive(path) as archive:
            weight = archive.array(archive.content["weight"])

    Raises:
        ValueError: if it is no such file, or holds anything but plain data and whole tensors of fp32, int32
            or int64.
        OSError: if it cannot be read.
    """

    def __init__(self, path: Path) -> None:
        try:
            self._zip = zipfile.ZipFile(path)
        except (zipfile.BadZipFile, NotImplementedError) as error:
            raise ValueError(f"no zip archive ({error})") from error
        try:
            members = self._zip.infolist()
            require_unpacked_to_fit(members, path)
            if any(member.compress_type != zipfile.ZIP_STORED for member in members):
                raise ValueError("torch packs nothing")
            pickles = [member for member in members if member.filename.endswith("/data.pkl")]
            if len(pickles) != 1 or pickles[0].file_size > MAX_PICKLE_BYTES:
                raise ValueError("no archive of torch's, or too long a description")
            self._folder = pickles[0].filename.removesuffix("data.pkl")
            if self._read("byteorder") != sys.byteorder.encode():
                raise ValueError("its bytes are in another order")
            self.content = _Spelling().read(self._read("data.pkl"))
        except BaseException:
            self._zip.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._zip.close()

    def array(self, stored: StoredArray) -> NDArray[Any]:
        """Return the numbers of a tensor; they cannot be written to.

        Raises:
            ValueError: if there are not as many as its shape says.
        """
        numbers = np.frombuffer(self._read(f"data/{stored.key}"), dtype=stored.dtype)
        return numbers.reshape(stored.shape)

    def _read(self, name: str) -> bytes:
        try:
            return self._zip.read(self._folder + name)
        except (KeyError, RuntimeError, EOFError, zipfile.BadZipFile) as error:
            raise ValueError(f"{name} cannot be read ({error})") from error


@dataclass(frozen=True)
class _Name:
    """Something that a pickle would import."""

    text: str


@dataclass
class _Spelling:
    """What a pickle spells, read instruction by instruction.

    Attributes:
        stack: the values so far.
        marks: how many there were where lists of values begin.
        kept: values by number.
        storages: those that a tensor has already.
    """

    stack: list[Any] = field(default_factory=list)
    marks: list[int] = field(default_factory=list)
    kept: dict[int, Any] = field(default_factory=dict)
    storages: set[str] = field(default_factory=set)

    def read(self, pickled: bytes) -> Any:
        """Return the value.

        Raises:
            ValueError: if it is not spelt with the instructions that are known here.
        """
        try:
            for instruction, argument, _ in pickletools.genops(pickled):
                self._follow(instruction.name, argument)
            (value,) = self.stack
        except (IndexError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ValueError(f"its plain data are damaged ({str(error)[:80]})") from error
        return value

    def _follow(self, name: str, argument: Any) -> None:
        if name in NUMBERS_AND_TEXT:
            self.stack.append(argument)
        elif name in CONSTANTS:
            self.stack.append(CONSTANTS[name])
        elif name == "GLOBAL":
            self.stack.append(_Name(argument))
        elif name in ("BINPUT", "LONG_BINPUT"):
            self.kept[argument] = self.stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            self.stack.append(self._kept_text(argument))
        elif name in _CHANGES:
            _CHANGES[name](self)
        elif name not in ("PROTO", "STOP"):
            raise ValueError(f"{name} is not an instruction of plain data")

    def _kept_text(self, number: int) -> Any:
        """Return a text or a name that was kept; of lists in lists, a short file could spell endless ones."""
        value = self.kept[number]
        if not isinstance(value, (str, _Name)):
            raise TypeError("a part that stands twice")
        return value

    def pop(self, count: int) -> list[Any]:
        """Take the last `count` values from the stack."""
        if count > len(self.stack):
            raise IndexError("more values are taken than there are")
        values = self.stack[len(self.stack) - count :]
        del self.stack[len(self.stack) - count :]
        return values

    def pop_to_mark(self) -> list[Any]:
        """Take the values after the last mark from the stack, and the mark."""
        start = self.marks.pop()
        values = self.stack[start:]
        del self.stack[start:]
        return values

    def add_pairs(self, flat: list[Any]) -> None:
        """Put keys and values, in turn, into the dictionary that is last on the stack."""
        into = self.stack[-1]
        if type(into) is not dict or not all(type(key) is str for key in flat[::2]):
            raise TypeError("values belong into a dictionary, beside texts")
        into.update(zip(flat[::2], flat[1::2], strict=True))

    def add_items(self, items: list[Any]) -> None:
        """Put items into the list that is last on the stack."""
        if type(self.stack[-1]) is not list:
            raise TypeError("items belong into a list")
        self.stack[-1].extend(items)

    def refer(self) -> None:
        """Replace ("storage", kind, key, place, count) by a flat `StoredArray`."""
        (what, kind, key, _, count) = self.stack.pop()
        if what != "storage" or not isinstance(key, str) or type(count) is not int or key in self.storages:
            raise TypeError("no storage, or one of several tensors")
        self.storages.add(key)
        self.stack.append(StoredArray(key, DTYPES[kind.text], (count,)))

    def build(self) -> None:
        """Replace a name and its arguments by a tensor, or by an empty dictionary."""
        made_by, arguments = self.pop(2)
        if made_by == _Name(ORDERED) and arguments == ():
            self.stack.append({})
            return
        if made_by != _Name(REBUILD):
            raise TypeError("neither a tensor nor a dictionary")
        flat, offset, shape, strides, *_ = arguments
        if not isinstance(flat, StoredArray) or not _is_whole(flat, offset, shape, strides):
            raise TypeError("a tensor that is a part of others")
        self.stack.append(StoredArray(flat.key, flat.dtype, shape))


def _is_whole(flat: StoredArray, offset: Any, shape: Any, strides: Any) -> bool:
    """Whether a tensor is its storage, all of it and in its order."""
    if type(shape) is not tuple or len(shape) > MAX_DIMENSIONS or offset != 0:
        return False
    if not all(type(size) is int and 0 <= size <= MAX_SIZE for size in shape):
        return False
    steps = [math.prod(max(size, 1) for size in shape[place + 1 :]) for place in range(len(shape))]
    return strides == tuple(steps) and (math.prod(shape),) == flat.shape


_CHANGES: dict[str, Callable[[_Spelling], None]] = {
    "EMPTY_DICT": lambda s: s.stack.append({}),
    "EMPTY_LIST": lambda s: s.stack.append([]),
    "EMPTY_TUPLE": lambda s: s.stack.append(()),
    "MARK": lambda s: s.marks.append(len(s.stack)),
    "TUPLE": lambda s: s.stack.append(tuple(s.pop_to_mark())),
    "TUPLE1": lambda s: s.stack.append(tuple(s.pop(1))),
    "TUPLE2": lambda s: s.stack.append(tuple(s.pop(2))),
    "TUPLE3": lambda s: s.stack.append(tuple(s.pop(3))),
    "SETITEM": lambda s: s.add_pairs(s.pop(2)),
    "SETITEMS": lambda s: s.add_pairs(s.pop_to_mark()),
    "APPEND": lambda s: s.add_items(s.pop(1)),
    "APPENDS": lambda s: s.add_items(s.pop_to_mark()),
    "BINPERSID": _Spelling.refer,
    "REDUCE": _Spelling.build,
}
