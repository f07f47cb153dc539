"""Parity of adapters and training with PEFT: equal losses, and folders that both libraries load."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import AutoPeftModelForSequenceClassification, LoraConfig, PeftModel, get_peft_model
from peft.optimizers import create_loraplus_optimizer
from peft.utils import get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import GPT2Config, GPT2ForSequenceClassification

from colakit.data.batches import Batch, pad
from colakit.errors import ColakitError
from colakit.inference.classifier import load_classifier
from colakit.models.gpt.model import GPTClassifier
from colakit.models.lora import LoRAConfig, block_of, inject, lora_layers, train_modules
from colakit.runtime.device import Compute
from colakit.storage.gpt2 import load_gpt
from colakit.storage.peft import apply_adapter, read_adapter, write_adapter
from colakit.training.loop import StepBatch, train
from colakit.training.objectives import classification
from colakit.training.optimizers import parameter_groups

PAD = 0
NUM_LABELS = 3
STEPS = 20


@dataclass(frozen=True)
class Variant:
    """One adapter, in PEFT's words and in ours; both start from rank 4 and alpha 8."""

    peft: dict[str, Any] = field(default_factory=dict)
    ours: dict[str, Any] = field(default_factory=dict)


VARIANTS = {
    "plain": Variant(),
    "rslora": Variant({"use_rslora": True}, {"rslora": True}),
    "dora": Variant({"use_dora": True}, {"dora": True}),
    "pissa": Variant({"init_lora_weights": "pissa"}, {"init": "pissa"}),
    "rslora with pissa": Variant(
        {"use_rslora": True, "init_lora_weights": "pissa"}, {"rslora": True, "init": "pissa"}
    ),
    "patterns": Variant(
        {
            "rank_pattern": {"attn.c_proj": 2, "h.1.mlp.c_fc": 6},
            "alpha_pattern": {"attn.c_proj": 5, "h.0.attn.c_attn": 3},
        },
        {
            "rank_pattern": {"attn.c_proj": 2, "h.1.mlp.c_fc": 6},
            "alpha_pattern": {"attn.c_proj": 5.0, "h.0.attn.c_attn": 3.0},
        },
    ),
    "patterns with pissa": Variant(
        {"rank_pattern": {"attn.c_proj": 2}, "alpha_pattern": {"c_fc": 3}, "init_lora_weights": "pissa"},
        {"rank_pattern": {"attn.c_proj": 2}, "alpha_pattern": {"c_fc": 3.0}, "init": "pissa"},
    ),
    "patterns with rslora and dora": Variant(
        {"rank_pattern": {"c_fc": 3}, "alpha_pattern": {"c_fc": 5}, "use_rslora": True, "use_dora": True},
        {"rank_pattern": {"c_fc": 3}, "alpha_pattern": {"c_fc": 5.0}, "rslora": True, "dora": True},
    ),
    "projections": Variant(
        {"target_modules": ["c_attn", "c_proj"]}, {"target_modules": ("c_attn", "c_proj")}
    ),
}

pytestmark = pytest.mark.filterwarnings(
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"  # PEFT 0.21 asks transformers 5 for it
)
every_variant = pytest.mark.parametrize("variant", VARIANTS)


def same(actual: Tensor, expected: Tensor) -> None:
    # fp32: the sums run in another order, and PiSSA's base went through an SVD
    torch.testing.assert_close(actual, expected, atol=1e-4, rtol=0)


def write_base(folder: Path, **shape: int) -> Path:
    """Write a random GPT-2 with a head of `NUM_LABELS` classes."""
    torch.manual_seed(0)
    config = GPT2Config(
        **{"vocab_size": 100, "n_positions": 32, "n_embd": 32, "n_layer": 2, "n_head": 4, **shape},
        initializer_range=0.2,
        num_labels=NUM_LABELS,
        pad_token_id=PAD,
        bos_token_id=None,
        eos_token_id=None,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        resid_pdrop=0.0,
    )
    model = GPT2ForSequenceClassification(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:  # biases start at 0 and norms at 1, where a mix-up would not show
                parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_base(tmp_path_factory.mktemp("base"))


def adapted_by_peft(base: Path, variant: str, **settings: Any) -> PeftModel:
    model = GPT2ForSequenceClassification.from_pretrained(base)
    torch.manual_seed(1)
    usual: dict[str, Any] = {
        "task_type": "SEQ_CLS",
        "r": 4,
        "lora_alpha": 8,
        "target_modules": ["c_attn", "c_proj", "c_fc"],
        "modules_to_save": ["score"],
        "fan_in_fan_out": True,
    }
    return get_peft_model(model, LoraConfig(**{**usual, **VARIANTS[variant].peft, **settings}))


def our_config(variant: str, **settings: Any) -> LoRAConfig:
    return LoRAConfig(**{"rank": 4, "alpha": 8.0, **VARIANTS[variant].ours, **settings})


def adapted_by_us(
    base: Path, config: LoRAConfig, modules_to_save: tuple[str, ...] = ("score",)
) -> GPTClassifier:
    torch.manual_seed(1)
    model = load_gpt(base).classifier(NUM_LABELS)
    inject(model, config)
    train_modules(model, modules_to_save)
    return model


def batches(count: int) -> list[Batch]:
    """Return ragged, right-padded batches of six sentences."""
    generator = torch.Generator().manual_seed(2)
    result = []
    for _ in range(count):
        lengths = torch.randint(1, 12, (6, 1), generator=generator)
        mask = (torch.arange(int(lengths.max())) < lengths).long()
        input_ids = torch.randint(1, 100, mask.shape, generator=generator) * mask
        result.append(Batch(input_ids, mask, torch.randint(0, NUM_LABELS, (6,), generator=generator)))
    return result


def shake(model: nn.Module) -> None:
    """Move every trainable tensor, as training would."""
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.2 * torch.randn_like(parameter))


@torch.no_grad()
def our_logits(model: GPTClassifier) -> Tensor:
    [batch] = batches(1)
    return model.eval()(batch.input_ids, batch.attention_mask)


@torch.no_grad()
def peft_logits(model: nn.Module) -> Tensor:
    [batch] = batches(1)
    return model.eval()(batch.input_ids, attention_mask=batch.attention_mask).logits


# -- training


def copy_start(source: PeftModel, target: GPTClassifier) -> None:
    """Give `target` the random start of `source`: the head and A. All else follows from W or is zero."""
    tensors = get_peft_model_state_dict(source)
    with torch.no_grad():
        target.score.weight.copy_(tensors["base_model.model.score.weight"])
        for name, layer in lora_layers(target):
            if not hasattr(layer, "start_a"):  # PiSSA's A follows from W, up to signs that Adam does not see
                layer.lora_a.copy_(tensors[f"base_model.model.{name}.lora_A.weight"])


def peft_losses(model: PeftModel, optimizer: torch.optim.Optimizer) -> list[float]:
    losses = []
    model.train()
    torch.manual_seed(4)
    for batch in batches(STEPS):
        loss = model(batch.input_ids, attention_mask=batch.attention_mask, labels=batch.labels).loss
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(learning(model), 1.0)
        optimizer.step()
        losses.append(loss.item())
    return losses


def our_losses(model: GPTClassifier, optimizer: torch.optim.Optimizer, compute: Compute) -> list[float]:
    model.train()
    torch.manual_seed(4)
    steps = [StepBatch([batch], len(batch), 0, "batch") for batch in batches(STEPS)]
    reports = train(model, steps, classification, optimizer, lr_at=lambda step: 1.0, compute=compute)
    return [report.loss for report in reports]


def learning(model: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def through_every_token(self: GPTClassifier, input_ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Compute the whole last block, so that dropout draws for the tokens that PEFT's model draws for."""
    hidden = self.transformer(input_ids)
    return self.score(hidden[torch.arange(len(hidden)), mask.sum(dim=1) - 1])


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@every_variant
def test_training_losses_equal_peft(
    base: Path, variant: str, dropout: float, fp32: Compute, monkeypatch: pytest.MonkeyPatch
) -> None:
    if dropout:
        monkeypatch.setattr(GPTClassifier, "forward", through_every_token)
    reference = adapted_by_peft(base, variant, lora_dropout=dropout)
    ours = adapted_by_us(base, our_config(variant, dropout=dropout))
    copy_start(reference, ours)
    optimizers = [
        torch.optim.AdamW(learning(model), lr=3e-3, weight_decay=0.1) for model in (reference, ours)
    ]
    check_losses(peft_losses(reference, optimizers[0]), our_losses(ours, optimizers[1], fp32))


def test_lora_plus_training_losses_equal_peft(base: Path, fp32: Compute) -> None:
    reference, ours = adapted_by_peft(base, "plain"), adapted_by_us(base, our_config("plain"))
    copy_start(reference, ours)
    expected = create_loraplus_optimizer(
        reference, torch.optim.AdamW, lr=1e-3, loraplus_lr_ratio=16, loraplus_weight_decay=0.1
    )
    actual = torch.optim.AdamW(parameter_groups(ours, lr=1e-3, weight_decay=0.1, loraplus_lr_ratio=16))
    check_losses(peft_losses(reference, expected), our_losses(ours, actual, fp32))


def check_losses(expected: list[float], actual: list[float]) -> None:
    # rounding of fp32 sums, which every step hands on to the next
    np.testing.assert_allclose(actual, expected, atol=1e-4, rtol=0)
    assert len(actual) == STEPS
    assert max(expected) - min(expected) > 0.3, "hardly anything was learnt"


# -- folders


@every_variant
def test_peft_opens_what_colakit_writes(base: Path, tmp_path: Path, variant: str, fp32: Compute) -> None:
    config = our_config(variant)
    ours = adapted_by_us(base, config, ("score", "ln_1", "ln_2", "ln_f"))
    fresh = our_logits(ours)
    our_losses(ours, torch.optim.AdamW(learning(ours), lr=1e-2), fp32)
    write_adapter(ours, tmp_path, config, base=str(base))
    assert (our_logits(ours) - fresh).abs().max() > 0.3
    same(peft_logits(AutoPeftModelForSequenceClassification.from_pretrained(tmp_path)), our_logits(ours))


@every_variant
def test_colakit_opens_what_it_writes(base: Path, tmp_path: Path, variant: str) -> None:
    config = our_config(variant)
    ours = adapted_by_us(base, config, ("score", "ln_1", "ln_2", "ln_f"))
    shake(ours)
    write_adapter(ours, tmp_path, config, base=str(base))
    same(our_logits(reopened(base, tmp_path)), our_logits(ours))


@every_variant
def test_colakit_opens_what_peft_writes(base: Path, tmp_path: Path, variant: str) -> None:
    reference = adapted_by_peft(base, variant, modules_to_save=["score", "ln_1", "ln_f"])
    shake(reference)
    reference.save_pretrained(tmp_path)
    same(our_logits(reopened(base, tmp_path)), peft_logits(reference))


@pytest.mark.parametrize(
    "settings",
    [
        {"target_modules": "all-linear"},
        {"target_modules": r".*\.attn\.c_(attn|proj)"},
        {"exclude_modules": ["mlp.c_proj"]},
        {"layers_to_transform": [1]},
    ],
    ids=str,
)
def test_every_form_of_peft_target_modules_loads(
    base: Path, tmp_path: Path, settings: dict[str, Any]
) -> None:
    reference = adapted_by_peft(base, "plain", **settings)
    shake(reference)
    reference.save_pretrained(tmp_path)
    same(our_logits(reopened(base, tmp_path)), peft_logits(reference))


@torch.no_grad()
@pytest.mark.filterwarnings("ignore:PiSSA changes the base weights:UserWarning")  # the conversion's own doing
def test_colakit_opens_pissa_that_peft_converted(base: Path, tmp_path: Path) -> None:
    reference, model = adapted_by_peft(base, "pissa"), load_gpt(base)
    reference.save_pretrained(tmp_path / "start")
    shake(reference)
    input_ids = torch.arange(1, 13).view(2, 6)
    expected = reference.eval().base_model.model.transformer(input_ids).last_hidden_state
    reference.save_pretrained(tmp_path / "end", path_initial_model_for_weight_conversion=tmp_path / "start")
    adapter = read_adapter(tmp_path / "end")
    assert adapter.config.init == "kaiming"
    apply_adapter(model, adapter, where="end")  # without a head: PEFT's conversion loses it
    same(model.transformer(input_ids), expected)


@pytest.mark.parametrize("layers", [(1,), (0,), (0, 1)])
def test_some_blocks_adapted_are_opened_by_peft_and_by_colakit(
    base: Path, tmp_path: Path, layers: tuple[int, ...]
) -> None:
    config = our_config("plain", layers_to_transform=layers)
    torch.manual_seed(1)
    ours = load_gpt(base).classifier(NUM_LABELS)
    inject(ours, config)
    train_modules(ours, layers=layers)
    shake(ours)
    write_adapter(ours, tmp_path, config, base=str(base))
    model = GPT2ForSequenceClassification.from_pretrained(base)
    reference = PeftModel.from_pretrained(model, tmp_path)
    same(peft_logits(reference), our_logits(ours))
    same(our_logits(reopened(base, tmp_path)), our_logits(ours))
    named = {block_of(name) for name, _ in reference.named_modules() if name.endswith("lora_A.default")}
    assert named == set(layers)


def test_an_adapter_without_one_of_its_layers_is_refused(base: Path, tmp_path: Path) -> None:
    reference = adapted_by_peft(base, "plain", layers_to_transform=[0, 1])
    reference.save_pretrained(tmp_path)
    path = tmp_path / "adapter_model.safetensors"
    kept = {name: tensor for name, tensor in load_file(path).items() if ".h.1.mlp.c_fc." not in name}
    save_file(kept, path, {"format": "pt"})
    with pytest.raises(ColakitError, match=r"h\.1\.mlp\.c_fc is missing"):
        reopened(base, tmp_path)


def test_a_language_model_ignores_the_classification_head(base: Path, tmp_path: Path) -> None:
    reference = adapted_by_peft(base, "plain")
    shake(reference)
    reference.save_pretrained(tmp_path)
    model, classifier = load_gpt(base), reopened(base, tmp_path)
    apply_adapter(model, read_adapter(tmp_path), where="adapter")
    [batch] = batches(1)
    assert torch.equal(model.transformer(batch.input_ids), classifier.transformer(batch.input_ids))


def test_toy_base_logits_equal_peft(toy: Path, tmp_path: Path, fp32: Compute) -> None:
    model = GPT2ForSequenceClassification.from_pretrained(toy / "base", num_labels=2, pad_token_id=PAD)
    settings = LoraConfig(task_type="SEQ_CLS", target_modules=["c_attn", "c_proj"], fan_in_fan_out=True)
    reference = get_peft_model(model, settings)
    shake(reference)
    reference.save_pretrained(tmp_path)
    classifier = load_classifier(tmp_path)
    assert classifier.label_names == ("LABEL_0", "LABEL_1")
    sentences = ["The cat sleeps.", "These old dogs that the girl likes see themselves.", "Boys boys."]
    tokens = classifier.encode(sentences)
    input_ids, mask = pad(tokens, np.arange(3))
    with torch.no_grad():
        expected = reference.eval()(input_ids, attention_mask=mask).logits
    same(torch.from_numpy(classifier.logits(tokens, fp32)), expected)


def reopened(base: Path, folder: Path) -> GPTClassifier:
    model = load_gpt(base).classifier(NUM_LABELS)
    apply_adapter(model, read_adapter(folder), where=str(folder))
    return model


# -- refusals


@pytest.fixture
def adapter(base: Path, tmp_path: Path) -> Path:
    """An adapter folder of PEFT's, with magnitudes and norms, for a test to spoil."""
    reference = adapted_by_peft(base, "dora", modules_to_save=["score", "ln_1"])
    reference.save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


@pytest.mark.parametrize(
    ("shape", "names"),
    [
        pytest.param({"n_embd": 16}, ["(4, 32)", "(4, 16)"], id="narrower"),
        pytest.param({"n_inner": 64}, ["transformer.h.0.mlp."], id="narrower inside"),
        pytest.param({"n_layer": 1}, ["transformer.h.1."], id="shallower"),
        pytest.param({"n_layer": 3}, ["transformer.h.2."], id="deeper"),
    ],
)
def test_an_adapter_for_another_base_is_refused(
    adapter: Path, tmp_path: Path, shape: dict[str, int], names: list[str]
) -> None:
    other = write_base(tmp_path / "other", **shape)
    with pytest.raises(ColakitError) as caught:
        reopened(other, adapter)
    assert [name for name in [*names, str(adapter)] if name not in str(caught.value)] == []


@pytest.mark.parametrize(
    "tails",
    [
        ("attn.c_attn.lora_A.weight",),
        ("attn.c_attn.lora_B.weight",),
        ("attn.c_attn.lora_magnitude_vector",),
        ("attn.c_attn.lora_A.weight", "attn.c_attn.lora_B.weight", "attn.c_attn.lora_magnitude_vector"),
        ("ln_1.bias",),
    ],
    ids=" ".join,
)
def test_an_incomplete_adapter_is_refused(base: Path, adapter: Path, tails: tuple[str, ...]) -> None:
    path = adapter / "adapter_model.safetensors"
    dropped = {f"base_model.model.transformer.h.1.{tail}" for tail in tails}
    tensors = load_file(path)
    assert dropped < tensors.keys()
    save_file({name: tensor for name, tensor in tensors.items() if name not in dropped}, path)
    module = "transformer.h.1.ln_1" if "ln_1.bias" in tails else "transformer.h.1.attn.c_attn"
    with pytest.raises(ColakitError) as caught:
        reopened(base, adapter)
    assert module in str(caught.value)


@pytest.mark.parametrize(
    ("key", "value", "name"),
    [
        ("lora_bias", True, "bias"),
        ("init_lora_weights", "olora", "olora"),
        ("init_lora_weights", "corda", "corda"),
        ("init_lora_weights", "lora_ga", "lora_ga"),
        ("peft_type", "IA3", "IA3"),
        ("peft_type", "LOHA", "LOHA"),
        ("use_qalora", True, "use_qalora"),
        ("layer_replication", [[0, 2]], "layer_replication"),
        ("alora_invocation_tokens", [5, 7], "alora_invocation_tokens"),
        ("init_lora_weights", "pissa", "pissa"),  # together with DoRA, which the folder has
        ("init_lora_weights", "pissa_niter_4", "pissa_niter_4"),  # a random decomposition cannot be repeated
        ("lora_alpha", "much", "adapter_config"),
        ("alpha_pattern", {"(": 3}, "adapter_config"),
    ],
)
def test_unsupported_adapters_are_refused(
    base: Path, adapter: Path, key: str, value: object, name: str
) -> None:
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))
    with pytest.raises(ColakitError, match=name):
        reopened(base, adapter)


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
@pytest.mark.parametrize("content", [None, b"", b"[]", b"\x00" * 64])
def test_missing_and_corrupt_adapter_files_are_named(adapter: Path, name: str, content: bytes | None) -> None:
    (adapter / name).unlink() if content is None else (adapter / name).write_bytes(content)
    with pytest.raises(ColakitError, match=name.replace(".", r"\.")):
        read_adapter(adapter)
