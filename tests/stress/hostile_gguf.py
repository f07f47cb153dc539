"""Cases of GGUF files for `hostile.py`, derived from the models of their header.

A case is the document of a valid file with values replaced at any node and written again, with counts,
lengths and types that no valid file has. Its bytes are then left, cut or flipped.
"""

from __future__ import annotations

import functools
import json
import struct
import tempfile
from pathlib import Path
from typing import Any

import torch
from gguf import GGMLQuantizationType, GGUFWriter, quants
from hostile_schema import Content, altered, torn
from hypothesis import strategies as st
from pydantic import BaseModel

from colakit.data import gguf
from colakit.data.gguf import ARRAY, SCALARS, STRING, GgufCounts, GgufTensor
from colakit.data.gguf_tokenizer import KEY, GgufTokenizer
from colakit.data.tokenizer import train_tokenizer
from colakit.models.gpt.config import GPTConfig
from colakit.models.gpt.model import GPT
from colakit.storage.gguf_file import OUTSIDE, TENSORS, GgufModel
from colakit.storage.gpt2 import load_gpt, load_tokenizer

FAMILY = "llama"
NAME = "model.gguf"
TYPES = {code: kind for kind, code in SCALARS.items()}
LIES = {  # texts of `hostile_schema.RAW` -> type and bytes of a value
    "\ue000deep": (ARRAY, struct.pack("<IQ", ARRAY, 1) * 10_000),
    "\ue000open": (ARRAY, struct.pack("<IQ", ARRAY, 2**40)),
    "\ue000many": (ARRAY, struct.pack("<IQ", STRING, 300_000) + bytes(8 * 300_000)),
    "\ue000objects": (ARRAY, struct.pack("<IQ", TYPES["B"], 2**22) + bytes(2**22)),
    "\ue000long": (STRING, struct.pack("<Q", 2**20) + b"x" * 2**20),
    "\ue000digits": (STRING, struct.pack("<Q", 2**64 - 1)),
    "\ue000exponent": (ARRAY, struct.pack("<IQ", TYPES["Q"], 2**61)),
    "\ue000bytes": (STRING, struct.pack("<Q", 2) + b"\xff\xfe"),
    "\ue000escape": (STRING, struct.pack("<Q", 3) + b"a\0b"),
    "\ue000constant": (TYPES["d"], struct.pack("<d", float("nan"))),
    "\ue000twice": (13, b""),
}


class GgufDocument(BaseModel):
    """All of a header."""

    counts: GgufCounts
    general: dict[str, Any]
    model: GgufModel
    tokenizer: GgufTokenizer
    tensors: list[GgufTensor]


def valid_file() -> bytes:
    """Return a small model in a GGUF file."""
    tokenizer = train_tokenizer(["the cat sleeps . the dogs sleep ."] * 4, 280)
    state = json.loads(tokenizer.backend.to_str())["model"]
    sizes = {"vocab_size": tokenizer.vocab_size, "num_positions": 8, "width": 32, "num_layers": 1}
    torch.manual_seed(0)
    model = GPT(GPTConfig(**sizes, num_heads=2, mlp_width=32, family=FAMILY, activation="silu"))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / NAME
        writer = GGUFWriter(path, FAMILY)
        writer.add_context_length(8)
        writer.add_embedding_length(32)
        writer.add_block_count(1)
        writer.add_feed_forward_length(32)
        writer.add_head_count(2)
        writer.add_layer_norm_rms_eps(1e-5)
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre("smollm")
        writer.add_token_list(sorted(state["vocab"], key=state["vocab"].get))
        writer.add_token_types([3, *[1] * (len(state["vocab"]) - 1)])
        writer.add_token_merges([" ".join(pair) for pair in state["merges"]])
        writer.add_eos_token_id(0)
        names = {f"model.layers.0.{value}.weight": f"blk.0.{key}.weight" for key, value in TENSORS.items()}
        names |= {value: key for key, value in OUTSIDE.items()}
        for name, tensor in model.state_dict().items():
            kind = GGMLQuantizationType.Q8_0 if tensor.ndim == 2 else GGMLQuantizationType.F32
            writer.add_tensor(names[name], quants.quantize(tensor.numpy(), kind), raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path.read_bytes()


def document_of(raw: bytes) -> tuple[dict[str, Any], bytes]:
    """Return the parts of a file's header as in `GgufDocument`, and its data."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / NAME
        path.write_bytes(raw)
        file = gguf.open_gguf(path)

    def part(prefix: str) -> dict[str, Any]:
        return {
            key.removeprefix(prefix): value for key, value in file.facts.items() if key.startswith(prefix)
        }

    tensors = [tensor.model_dump() for tensor in file.tensors.values()]
    counts = {"magic": "GGUF", "version": 3, "tensors": len(tensors), "entries": len(file.facts)}
    sections = {"general": part("general."), "model": part(f"{FAMILY}."), "tokenizer": part(KEY)}
    return {"counts": counts, **sections, "tensors": tensors}, raw[file.data_start :]


def encoded(value: Any) -> tuple[int, bytes]:
    """Return the type and the bytes of a value of the metadata."""
    if isinstance(value, str):
        raw = value.encode("utf-8", "surrogatepass")
        return LIES.get(value, (STRING, struct.pack("<Q", len(raw)) + raw))
    if isinstance(value, (list, dict)):
        items = [encoded(each) for each in (value.values() if isinstance(value, dict) else value)]
        kind = items[0][0] if items else TYPES["I"]
        return ARRAY, struct.pack("<IQ", kind, len(items)) + b"".join(raw for _, raw in items)
    if value is None:
        return 13, b""
    whole = isinstance(value, int) and not isinstance(value, bool)
    code = ("I" if 0 <= value < 2**32 else "q" if -(2**63) <= value < 2**63 else "Q") if whole else "d"
    code = "?" if isinstance(value, bool) else code
    return TYPES[code], struct.pack(f"<{code}", value % 2**64 if code == "Q" else value)


def number(value: Any, size: int) -> bytes:
    """Return a number of the header; the bytes of other values are cut or filled up to `size`."""
    raw = (
        value.to_bytes(16, "little", signed=True)
        if isinstance(value, int) and abs(value) < 2**127
        else encoded(value)[1]
    )
    return raw[:size].ljust(size, b"\1")


def written(document: Any, data: bytes, good: dict[str, Any]) -> bytes:
    """Return the file of a document that need not be valid."""
    document = document if isinstance(document, dict) else {}
    counts, tensors = (document.get(name) for name in ("counts", "tensors"))
    counts = counts if isinstance(counts, dict) else {}
    sizes = {"version": 4, "tensors": 8, "entries": 8}
    sections = {"general": "general.", "model": f"{FAMILY}.", "tokenizer": KEY}
    facts = {
        f"{prefix}{key}": value
        for section, prefix in sections.items()
        for key, value in (document[section] if isinstance(document.get(section), dict) else {}).items()
    }
    magic = str(counts.get("magic")).encode("utf-8", "replace")[:4].ljust(4, b"\0")
    lengths = {"tensors": tensors, "entries": [*facts]}
    for name, held in lengths.items():  # as many as there are, unless the count itself was replaced
        if counts.get(name) == good["counts"][name] and isinstance(held, list):
            counts = {**counts, name: len(held)}
    parts = [magic, *(number(counts.get(name), size) for name, size in sizes.items())]
    for key, value in facts.items():
        kind, raw = encoded(value)
        parts += [encoded(key)[1], struct.pack("<I", kind), raw]
    for tensor in tensors if isinstance(tensors, list) else ():
        entry = tensor if isinstance(tensor, dict) else {"name": tensor}
        shape = entry.get("shape")
        shape = shape[::-1] if isinstance(shape, list) else [shape]
        parts += [encoded(str(entry.get("name")))[1], struct.pack("<I", len(shape))]
        parts += [*(number(size, 8) for size in shape), number(entry.get("kind"), 4)]
        parts.append(number(entry.get("offset"), 8))
    header = b"".join(parts)
    return Content(header + bytes(-len(header) % 32) + data)


@functools.cache
def _good() -> tuple[bytes, dict[str, Any], bytes]:
    raw = valid_file()
    return raw, *document_of(raw)


def gguf_cases() -> st.SearchStrategy[dict[str, bytes]]:
    raw, document, data = _good()
    others = altered(document, GgufDocument).map(lambda other: written(other, data, document))
    return st.fixed_dictionaries({NAME: torn(st.just(raw)) | torn(others) | others})


def read_gguf(folder: Path) -> object:
    """Load the model and the tokenizer of a GGUF file."""
    gguf._parse.cache_clear()  # cases may be as long and as old as each other
    return load_gpt(folder / NAME), load_tokenizer(folder / NAME).encode(["the cat"])
