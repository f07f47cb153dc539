"""An adapter that PEFT's mixed batches and hot-swap accept: LoRA on linear layers, and nothing else.

These routes take no trained norms, no trained head (`modules_to_save`) and no DoRA. So every change is
written as the LoRA update ΔW of a linear layer, exactly:

- LoRA, DoRA, PiSSA: ΔW = merged weight - base weight.
- A norm before the layers W, from weight g and bias b to g', b', with s = g'/g: for the base norm's output
  y = g·x + b, W(g'·x + b') = W·diag(s)·y + W·r with r = b' - s·b. W·r needs no bias: the mean of x is 0, so
  the sum of yᵢ/gᵢ is a constant K, the sum of bᵢ/gᵢ, and W·r = (W·r / K)·(1/g)ᵀ·y.
- The head: the carried base has a head of zeros, so ΔW is the head.

A layer after a changed norm has a ΔW of full rank; the others keep the rank of their adapter.

Shapes: D width, R rank.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from colakit.errors import ColakitError
from colakit.export.graph import EXTRA
from colakit.export.parity import Answer, transformers_answers
from colakit.models.gpt.model import GPT, GPTClassifier
from colakit.models.gpt.transformer import Transformer
from colakit.models.lora import NORMS
from colakit.storage.peft import BASE_FOLDER, PREFIX
from colakit.utils.extras import import_extra
from colakit.utils.files import replacing, write_json

NEGLIGIBLE = 1e-6  # singular values, relative to the largest
MIN_CONSTANT = 1e-3  # of |K|, relative to the sum of |bᵢ/gᵢ|
TRAIN_HEAD_ONLY = "Train the adapter with --set lora.modules_to_save=score, which leaves the norms alone."


def lora_updates(tuned: GPTClassifier, base: Transformer) -> dict[str, Tensor]:
    """Return module name -> ΔW (D_out, D_in) of every changed linear layer, the head among them.

    Args:
        tuned: without adapters.
        base: the body that it was tuned from, with the same padding token.

    Raises:
        ColakitError: if a changed parameter cannot be written as the update of a linear layer.
    """
    body = tuned.body
    originals = {name: each.detach().double() for name, each in base.named_parameters()}
    changed = {
        name
        for name, each in body.named_parameters()
        if not torch.equal(each.detach().double(), originals[name])
    }
    updates: dict[str, Tensor] = {}
    weights = {name: module for name, module in body.named_modules() if isinstance(module, nn.Linear)}
    followers = _followers(body)
    score = tuned.score.weight.detach().double()
    for name, module in body.named_modules():
        parts = {f"{name}.{part}" for part, _ in module.named_parameters(recurse=False)}
        if not parts & changed or isinstance(module, nn.Linear):
            continue
        if name not in followers or not isinstance(module, NORMS):
            raise ColakitError(
                f"--format peft: {name} was trained, and no linear layer can take its change",
                hint=TRAIN_HEAD_ONLY,
            )
        fold = _fold(name, module, originals)
        for follower in followers[name]:
            if follower == "score":
                score = fold(score)
            else:
                weight = weights[follower].weight.detach().double()
                updates[follower] = fold(weight) - originals[f"{follower}.weight"]
        changed -= parts
    for name, module in weights.items():
        if f"{name}.bias" in changed:
            raise ColakitError(f"--format peft: {name}.bias was trained", hint=TRAIN_HEAD_ONLY)
        if f"{name}.weight" in changed and name not in updates:
            updates[name] = module.weight.detach().double() - originals[f"{name}.weight"]
    prefix = tuned.config.body_name
    return {f"{prefix}.{name}": update for name, update in updates.items()} | {"score": score}


def _followers(body: Transformer) -> dict[str, list[str]]:
    """Return name of a norm -> names of the linear layers that read its output."""
    names = {module: name for name, module in body.named_modules()}
    followers: dict[str, list[str]] = {names[body.final_norm]: ["score"]}
    for block in body.blocks:
        first, attention, second, mlp = block.parts()  # type: ignore[operator]
        readers = ("c_attn", "q_proj", "k_proj", "v_proj"), ("c_fc", "gate_proj", "up_proj")
        for norm, module, leaves in ((first, attention, readers[0]), (second, mlp, readers[1])):
            read = [names[child] for leaf, child in module.named_children() if leaf in leaves]
            followers[names[norm]] = read
    return followers


def _fold(name: str, norm: nn.Module, originals: dict[str, Tensor]) -> Any:
    """Return a function from a weight on the trained norm's output to one on the base norm's."""
    gamma, new_gamma = originals[f"{name}.weight"], norm.get_parameter("weight").detach().double()
    if bool((gamma == 0).any()):
        raise ColakitError(f"--format peft: {name}.weight is 0 in the base", hint=TRAIN_HEAD_ONLY)
    scale = new_gamma / gamma
    if not isinstance(norm, nn.LayerNorm):
        return lambda weight: weight * scale
    beta, new_beta = originals[f"{name}.bias"], norm.bias.detach().double()
    rest = new_beta - scale * beta  # (D,)
    constant = (beta / gamma).sum()
    if bool(rest.any()) and bool(constant.abs() <= MIN_CONSTANT * (beta / gamma).abs().sum()):
        raise ColakitError(
            f"--format peft: the bias of {name} was trained, and its base output has no constant direction "
            "that could take the change",
            hint=TRAIN_HEAD_ONLY,
        )

    def fold(weight: Tensor) -> Tensor:
        folded = weight * scale
        return folded + torch.outer(weight @ rest / constant, 1 / gamma) if bool(rest.any()) else folded

    return fold


def carried_base(tuned: GPTClassifier, base: GPT) -> GPTClassifier:
    """Return the base with a head of zeros, and with the embedding rows that `tuned` has more."""
    missing = tuned.body.embedding.num_embeddings - base.body.embedding.num_embeddings
    embedding = base.body.embedding
    zeros = embedding.weight.new_zeros(missing, embedding.embedding_dim)
    embedding.weight = nn.Parameter(torch.cat([embedding.weight, zeros]), requires_grad=False)
    embedding.num_embeddings += missing
    base.body.config = tuned.config
    classifier = GPTClassifier(base.body, tuned.num_labels)
    classifier.score.weight.data.zero_()
    return classifier.requires_grad_(False).eval()


def peft_answers(folder: Path) -> Answer:
    """Return the logits of PEFT's model of an exported adapter on its carried base."""
    peft = import_extra("peft", EXTRA)
    return transformers_answers(
        folder / BASE_FOLDER, lambda model: peft.PeftModel.from_pretrained(model, folder)
    )


def write_lora(updates: dict[str, Tensor], folder: Path) -> int:
    """Write updates as an adapter folder of PEFT; return the largest rank."""
    tensors, ranks = {}, {}
    for name, update in updates.items():
        u, s, vt = torch.linalg.svd(update, full_matrices=False)
        rank = max(1, int((s > NEGLIGIBLE * s[0]).sum()))
        root = s[:rank].sqrt()
        ranks[name] = rank
        tensors[f"{PREFIX}{name}.lora_A.weight"] = (root[:, None] * vt[:rank]).float().contiguous()
        tensors[f"{PREFIX}{name}.lora_B.weight"] = (u[:, :rank] * root).float().contiguous()
    largest = max(ranks.values())
    config = {
        "peft_type": "LORA",
        "task_type": None,  # SEQ_CLS would add a head outside of LoRA
        "base_model_name_or_path": BASE_FOLDER,
        "inference_mode": True,
        "r": largest,
        "lora_alpha": largest,
        "lora_dropout": 0.0,
        "target_modules": sorted(updates),
        "rank_pattern": {name: rank for name, rank in ranks.items() if rank != largest},
        "alpha_pattern": {name: rank for name, rank in ranks.items() if rank != largest},
        "fan_in_fan_out": False,
        "bias": "none",
        "init_lora_weights": True,
    }
    with replacing(folder / "adapter_model.safetensors") as temporary:
        save_file(tensors, temporary, {"format": "pt"})
    write_json(folder / "adapter_config.json", config)
    return largest
