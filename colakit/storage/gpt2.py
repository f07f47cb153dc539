"""GPT-2 in the transformers layout: load and save folders, resolve hub names.

transformers stores block weights as `Conv1D` (in, out), colakit as `nn.Linear` (out, in). Files may omit the
prefix `transformer.`, and may contain causal masks (`attn.bias`), the tied output layer and a head `score`.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from safetensors.torch import save_file
from torch import Tensor

from colakit.data.tokenizer import SentenceTokenizer, save_tokenizer
from colakit.errors import ColakitError, nearest
from colakit.models.gpt.config import GPT_SIZES, GPTConfig
from colakit.models.gpt.model import GPT, Transformer
from colakit.models.meta_device import without_weights
from colakit.storage.hub import fetch_from_hub
from colakit.storage.run_schemas import Fraction
from colakit.storage.tensors import read_weights_file
from colakit.utils.documents import Document, MissingError, library_errors, read_document
from colakit.utils.files import replacing, write_text

CONV1D_TAILS = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")
CONFIG_NAMES = {  # key of config.json -> field of GPTConfig
    "vocab_size": "vocab_size",
    "n_positions": "num_positions",
    "n_embd": "width",
    "n_layer": "num_layers",
    "n_head": "num_heads",
    "n_inner": "mlp_width",
    "activation_function": "activation",
    "layer_norm_epsilon": "layer_norm_epsilon",
    "embd_pdrop": "embedding_dropout",
    "attn_pdrop": "attention_dropout",
    "resid_pdrop": "residual_dropout",
}
FIXED_FEATURES = {
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "tie_word_embeddings": True,
}


class ConfigFile(Document):
    """The fields of a GPT-2's config.json that colakit reads."""

    model_type: Literal["gpt2"]
    vocab_size: Annotated[int, Field(ge=1, le=GPT_SIZES["vocab_size"])] = 50257
    n_positions: Annotated[int, Field(ge=1, le=GPT_SIZES["num_positions"])] = 1024
    n_embd: Annotated[int, Field(ge=1, le=GPT_SIZES["width"])] = 768
    n_layer: Annotated[int, Field(ge=1, le=GPT_SIZES["num_layers"])] = 12
    n_head: Annotated[int, Field(ge=1, le=GPT_SIZES["num_heads"])] = 12
    n_inner: Annotated[int, Field(ge=1, le=2**18)] | None = None
    activation_function: str = ""
    layer_norm_epsilon: Annotated[float, Field(gt=0, lt=1)] = 1e-5
    embd_pdrop: Fraction = 0
    attn_pdrop: Fraction = 0
    resid_pdrop: Fraction = 0
    scale_attn_weights: Literal[True] = True
    scale_attn_by_inverse_layer_idx: Literal[False] = False
    tie_word_embeddings: Literal[True] = True


class ShardIndex(Document):
    """model.safetensors.index.json: tensor -> file."""

    weight_map: Annotated[dict[str, Annotated[str, Field(pattern=r"^[^/\\]+$")]], Field(min_length=1)]


MAX_SHARDS = 2**8
EMBEDDED = Path(__file__).parents[1] / "assets" / "base"  # the base `builtin`
KNOWN_SHAPES = {
    "gpt2": GPTConfig(),
    "gpt2-medium": GPTConfig(width=1024, num_layers=24, num_heads=16),
    "gpt2-large": GPTConfig(width=1280, num_layers=36, num_heads=20),
    "gpt2-xl": GPTConfig(width=1600, num_layers=48, num_heads=25),
    "distilgpt2": GPTConfig(num_layers=6),
}


def resolve_base(name: str, flag: str = "--base") -> Path:
    """Return the folder of a base model: `builtin`, a local folder, or a hub model (cached or downloaded).

    Args:
        flag: command-line flag to name in errors.

    Raises:
        ColakitError: if `name` is not a folder and cannot be downloaded.
    """
    path = EMBEDDED if name == "builtin" else Path(name).expanduser()
    if path.is_dir():
        return path
    if name == "builtin":
        raise ColakitError(f"{flag} builtin: {EMBEDDED} not found", hint="Reinstall colakit.")
    _check_spelling(name, flag)
    if path.exists() or name.startswith((".", "/", "~")):
        fault = "is a file" if path.exists() else "not found"
        raise ColakitError(
            f"{flag}: {name!r} {fault}; must be a folder or a hub name",
            hint="A base folder contains config.json, model.safetensors and the tokenizer's files.",
        )
    return fetch_from_hub(name, flag)


def local_base(name: str) -> Path | None:
    """Return the folder of a base, as `resolve_base`, but None if it would have to be downloaded."""
    if name == "builtin" or Path(name).expanduser().exists():
        return resolve_base(name)
    from huggingface_hub import try_to_load_from_cache

    files = (try_to_load_from_cache(name, file) for file in ("model.safetensors", "pytorch_model.bin"))
    return next((Path(file).parent for file in files if isinstance(file, str)), None)


def _check_spelling(name: str, flag: str) -> None:
    """Raise `ColakitError` for a misspelt known name, before asking the hub: others there are OWNER/NAME."""
    known = ["builtin", *KNOWN_SHAPES]
    near = nearest(name, known)
    if near and name not in known and "/" not in name and not Path(name).exists():
        raise ColakitError(
            f"{flag}: {name!r} is neither a folder nor a hub name. Did you mean {near}?",
            hint="Name `builtin`, a folder or a hub model (OWNER/NAME, or gpt2).",
        )


def plan_config(name: str, flag: str = "--base") -> GPTConfig:
    """Return the config of a base without downloading anything.

    Args:
        flag: command-line flag to name in errors.

    Raises:
        ColakitError: if it is not a folder, not in the hub's cache and not in `KNOWN_SHAPES`.
    """
    if name == "builtin" or Path(name).expanduser().exists() or name.startswith((".", "/", "~")):
        return read_config(resolve_base(name, flag))
    _check_spelling(name, flag)
    from huggingface_hub import try_to_load_from_cache

    cached = (
        try_to_load_from_cache(name, "config.json") if re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name) else None
    )
    if isinstance(cached, str):
        return read_config(Path(cached).parent)
    if name.rpartition("/")[2] in KNOWN_SHAPES:
        return KNOWN_SHAPES[name.rpartition("/")[2]]
    raise ColakitError(
        f"{flag}: {name!r} is not a folder and not in the hub's cache; a dry run downloads nothing",
        hint="Pass a folder, or run once without --dry-run.",
    )


def read_config(folder: Path) -> GPTConfig:
    """Return the config in `folder`/config.json.

    Raises:
        ColakitError: if the file is missing, broken, or not of a plain GPT-2.
    """
    path = folder / "config.json"
    try:
        file = read_document(path, ConfigFile, hint="Choose a GPT-2 base, or download the model again.")
    except MissingError:
        raise ColakitError(
            f"{path}: file not found", hint="A base is a folder in the transformers layout."
        ) from None
    with library_errors(path):
        given = file.model_dump(exclude_unset=True)
        return GPTConfig(**{field: given[key] for key, field in CONFIG_NAMES.items() if key in given})


def load_tokenizer(folder: Path, *, prefix: bool = False, suffix: bool = False) -> SentenceTokenizer:
    """Return the tokenizer of a base.

    Raises:
        ColakitError: if it is broken, or the base has no embedding for some of its tokens.
    """
    tokenizer = SentenceTokenizer.from_folder(folder, prefix=prefix, suffix=suffix)
    if tokenizer.vocab_size > (rows := read_config(folder).vocab_size):
        raise ColakitError(
            f"{folder}: its tokenizer has {tokenizer.vocab_size:,} tokens; config.json says {rows:,}",
            hint="Download the model again; both files must come from one checkpoint.",
        )
    return tokenizer


def load_gpt(folder: Path) -> GPT:
    """Return the language model in `folder`, fp32, in evaluation mode.

    Raises:
        ColakitError: if a tensor is missing, unexpected or of the wrong shape.
    """
    config = read_config(folder)
    with without_weights():  # skip initialisation; the file replaces all weights
        model = GPT(config)
    weights = {name: tensor for name, tensor in read_weights(folder).items() if name != "score.weight"}
    _check_tensors(folder, weights, {name: tuple(p.shape) for name, p in model.named_parameters()})
    model.load_state_dict(weights, assign=True)
    return model.requires_grad_(True).eval()


def read_weights(folder: Path) -> dict[str, Tensor]:
    """Return the folder's tensors in fp32, with colakit's names and `nn.Linear`'s (out, in)."""
    tensors: dict[str, Tensor] = {}
    for path in _weight_files(folder):
        for name, tensor in read_weights_file(path, hint="Download the file again.").items():
            if not name.startswith(("transformer.", "score.", "lm_head.")):
                name = f"transformer.{name}"
            if name.endswith((".attn.bias", ".attn.masked_bias")) or name == "lm_head.weight":
                continue  # causal masks, and the output layer, which is tied to the embedding
            if name.endswith(CONV1D_TAILS) and tensor.ndim == 2:  # other shapes are rejected later
                tensor = tensor.t()
            tensors[name] = tensor.contiguous()
    return tensors


def _weight_files(folder: Path) -> list[Path]:
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    older = folder / "pytorch_model.bin"
    if single.is_file():
        return [single]
    if index.is_file():
        names = set(read_document(index, ShardIndex, hint="Download the model again.").weight_map.values())
        if len(names) > MAX_SHARDS:
            raise ColakitError(f"{index}: lists {len(names):,} files; {MAX_SHARDS} are allowed")
        return [folder / name for name in sorted(names)]
    if older.is_file():
        return [older]
    raise ColakitError(
        f"{folder}: contains neither model.safetensors nor pytorch_model.bin",
        hint="A base is a folder in the transformers layout.",
    )


def _check_tensors(folder: Path, weights: dict[str, Tensor], shapes: dict[str, tuple[int, ...]]) -> None:
    faults = [f"{name} is missing" for name in shapes if name not in weights]
    faults += [f"{name} is not in the model" for name in weights if name not in shapes]
    faults += [
        f"{name} is {tuple(weights[name].shape)}, config.json says {shape}"
        for name, shape in shapes.items()
        if name in weights and tuple(weights[name].shape) != shape
    ]
    if faults:
        more = f"; and {len(faults) - 3} more" if len(faults) > 3 else ""
        raise ColakitError(
            f"{folder}: weights and config.json disagree: {'; '.join(faults[:3])}{more}",
            hint="Download the model again; both files must come from one checkpoint.",
        )


def save_gpt(
    model: GPT, folder: Path, *, dtype: torch.dtype = torch.float32, end_of_text_id: int = 0
) -> None:
    """Write config.json and model.safetensors to `folder`, each atomically."""
    folder.mkdir(parents=True, exist_ok=True)
    config: dict[str, Any] = {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "bos_token_id": end_of_text_id,
        "eos_token_id": end_of_text_id,
        "dtype": str(dtype).removeprefix("torch."),
        **{key: getattr(model.config, field) for key, field in CONFIG_NAMES.items()},
        **FIXED_FEATURES,
    }
    tensors = {
        name: (tensor.t() if name.endswith(CONV1D_TAILS) else tensor).to(dtype).contiguous()
        for name, tensor in model.state_dict().items()
    }
    write_text(folder / "config.json", json.dumps(config, indent=2) + "\n")
    with replacing(folder / "model.safetensors") as temporary:
        save_file(tensors, temporary, metadata={"format": "pt"})


def write_base(body: Transformer, tokenizer: SentenceTokenizer, folder: Path) -> None:
    """Write a body as a bf16 language model, and its tokenizer, to `folder`."""
    save_gpt(body.language_model(), folder, dtype=torch.bfloat16, end_of_text_id=tokenizer.end_of_text_id)
    save_tokenizer(tokenizer, folder, max_tokens=body.config.num_positions)


def base_fingerprint(model: GPT) -> str:
    """Return a SHA-256 over shape and weights, without dropout settings."""
    digest = hashlib.sha256()
    shape = {field.name: getattr(model.config, field.name) for field in fields(model.config)}
    digest.update(json.dumps({k: v for k, v in shape.items() if "dropout" not in k}, sort_keys=True).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().float().contiguous().cpu().numpy().tobytes())
    return digest.hexdigest()
