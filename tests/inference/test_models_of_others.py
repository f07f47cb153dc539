"""Models as their owners left them: logits equal to those of transformers and PEFT, or a refusal."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    GPT2Config,
    GPT2ForSequenceClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
)

from colakit.data.tokenizer import END_OF_TEXT, save_tokenizer, train_tokenizer
from colakit.distillation.teachers import require_above_chance
from colakit.errors import ColakitError
from colakit.evaluation.metrics import measure
from colakit.inference.classifier import load_classifier
from colakit.inference.language_models import load_language_model
from colakit.models.gpt.model import GPTClassifier
from colakit.runtime.device import Compute
from colakit.storage.peft import INERT
from colakit.utils.files import write_json

Run = Callable[..., tuple[int, str, str]]
SENTENCES = ["the cat sat", "didn't the dogs bark", "a dog", "the cat"]
TURN = "<|turn|>"

pytestmark = [
    pytest.mark.filterwarnings(f"ignore:{message}")
    for message in (
        "`is_gradient_checkpointing` is deprecated:FutureWarning",  # PEFT 0.21 asks transformers 5 for it
        "fan_in_fan_out is set to False but the target module is `Conv1D`:UserWarning",
        "Setting `save_embedding_layers` to `True`:UserWarning",
        "Adapter .default.:peft.utils.warning.PeftWarning",  # biases of B
    )
]


def write_model(folder: Path, family: str = "gpt2", **settings: Any) -> Path:
    """Write a tiny classifier of transformers, with a tokenizer that knows a chat token."""
    tokenizer = train_tokenizer([*SENTENCES, "the cat sat on the mat"] * 3, 280)
    tokenizer.backend.add_special_tokens([TURN])
    torch.manual_seed(0)
    shared: dict[str, Any] = {"vocab_size": tokenizer.vocab_size, "initializer_range": 0.2, **settings}
    model: nn.Module
    if family == "gpt2":
        model = GPT2ForSequenceClassification(
            GPT2Config(n_positions=32, n_embd=32, n_layer=2, n_head=4, pad_token_id=1, **shared)
        )
    else:
        sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
        heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
        positions = {"max_position_embeddings": 32, "pad_token_id": 1}
        model = LlamaForSequenceClassification(LlamaConfig(**sizes, **heads, **positions, **shared))
    shake(model)
    model.save_pretrained(folder)  # type: ignore[operator]
    save_tokenizer(tokenizer, folder, max_tokens=32)
    return folder


def shake(model: nn.Module) -> None:
    """Add noise to all parameters: adapters, biases and norms start where a mix-up would not show."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp(request.param), request.param)


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("gpt2"))


def write_adapter(base: Path, folder: Path, **settings: Any) -> Path:
    """Write a trained adapter of PEFT on `base`."""
    options = {"task_type": "SEQ_CLS", "r": 4, "target_modules": "all-linear", **settings}
    adapted = get_peft_model(AutoModelForSequenceClassification.from_pretrained(base), LoraConfig(**options))
    shake(nn.ModuleList(module for name, module in adapted.named_modules() if "lora_" in name))
    shake(adapted.get_submodule("base_model.model.score"))
    adapted.save_pretrained(folder)
    return folder


def add_template(folder: Path, single: str) -> None:
    """Let a tokenizer add boundary tokens, by its template."""
    path = folder / "tokenizer.json"
    content = json.loads((path).read_text())
    ids = {token["content"]: token["id"] for token in content["added_tokens"]}
    parts: list[dict[str, Any]] = []
    for token in single.split():
        name, kind = ("A", "Sequence") if token.startswith("$") else (token, "SpecialToken")
        parts.append({kind: {"id": name, "type_id": 0}})
    special = {t: {"id": t, "ids": [ids[t]], "tokens": [t]} for t in single.split() if t != "$A"}
    content["post_processor"] = {
        "type": "TemplateProcessing",
        "single": parts,
        "pair": [*parts, {"Sequence": {"id": "B", "type_id": 0}}],
        "special_tokens": special,
    }
    write_json(path, content)


def edit_json(path: Path, changes: dict[str, Any]) -> None:
    write_json(path, {**json.loads((path).read_text()), **changes})


def our_logits(where: Path, base: Path | None = None) -> Tensor:
    classifier = load_classifier(where, base=None if base is None else str(base))
    compute = Compute(torch.device("cpu"), torch.float32, "test")
    return torch.from_numpy(np.asarray(classifier.logits(classifier.encode(SENTENCES), compute)))


def reference_logits(reference: nn.Module, tokenizer_folder: Path) -> Tensor:
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    reference.eval()
    with torch.no_grad():
        rows = [reference(**tokenizer(text, return_tensors="pt")).logits for text in SENTENCES]
    return torch.cat(rows)


def check(ours: Tensor, expected: Tensor) -> None:
    assert expected.std() > 0.05, "logits that differ between sentences"
    torch.testing.assert_close(ours, expected, atol=1e-4, rtol=0)


def whole(folder: Path) -> nn.Module:
    return AutoModelForSequenceClassification.from_pretrained(folder)


def adapted(folder: Path, base: Path) -> nn.Module:
    return PeftModel.from_pretrained(whole(base), folder)


def copied(source: Path, target: Path) -> Path:
    return Path(shutil.copytree(source, target))


def test_a_whole_classifier_of_transformers_is_a_model(model: Path, tmp_path: Path) -> None:
    folder = copied(model, tmp_path / "model")
    edit_json(folder / "config.json", {"id2label": {"0": "bad", "1": "good"}})
    check(our_logits(folder), reference_logits(whole(folder), folder))
    assert load_classifier(folder).label_names == ("bad", "good")


@pytest.mark.parametrize("template", [f"{TURN} $A", f"$A {END_OF_TEXT}", f"{TURN} $A {END_OF_TEXT}"])
def test_boundary_tokens_of_a_tokenizer_are_added(model: Path, template: str, tmp_path: Path) -> None:
    folder = copied(model, tmp_path / "model")
    add_template(folder, template)
    expected = reference_logits(whole(folder), folder)
    assert not torch.allclose(expected, our_logits(model), atol=1e-3)
    check(our_logits(folder), expected)
    adapter = write_adapter(folder, tmp_path / "adapter")
    check(our_logits(adapter, folder), reference_logits(adapted(adapter, folder), folder))


def test_add_bos_token_is_read_as_transformers_reads_it(model: Path, tmp_path: Path) -> None:
    folder = copied(model, tmp_path / "model")
    edit_json(folder / "tokenizer_config.json", {"add_bos_token": True, "bos_token": TURN})
    check(our_logits(folder), reference_logits(whole(folder), folder))


def test_the_tokenizer_beside_an_adapter_is_used(model: Path, tmp_path: Path) -> None:
    adapter = write_adapter(model, tmp_path / "adapter")
    plain = our_logits(adapter, model)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(model / name, adapter / name)
    edit_json(adapter / "tokenizer_config.json", {"add_prefix_space": True})
    expected = reference_logits(adapted(adapter, model), adapter)
    assert not torch.allclose(expected, plain, atol=1e-3)
    check(our_logits(adapter, model), expected)


@pytest.mark.parametrize("where", ["base", "adapter"])
def test_a_tokenizer_larger_than_the_embedding_is_refused_with_both_sizes(
    gpt2: Path, where: str, colakit: Run, tmp_path: Path
) -> None:
    base = copied(gpt2, tmp_path / "base")
    adapter = write_adapter(base, tmp_path / "adapter")
    rows = json.loads((base / "config.json").read_text())["vocab_size"]
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    tokenizer.save_pretrained(base if where == "base" else adapter)
    code, _, err = colakit("predict", "the cat", "--model", adapter, "--base", base)
    assert code == 2
    assert f"its tokenizer has {rows + 1} tokens, but the model {rows} embeddings" in " ".join(err.split())
    if where == "base":
        with pytest.raises(ColakitError, match=f"{rows + 1} tokens, but the model {rows} embeddings"):
            load_language_model(None, str(base), base_typed=True)


def test_an_embedding_resized_with_the_adapter_is_opened(model: Path, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.add_tokens(["cat sat"])
    resized = whole(model)
    resized.resize_token_embeddings(len(tokenizer), mean_resizing=False)  # type: ignore[operator]
    config = LoraConfig(task_type="SEQ_CLS", r=4, target_modules="all-linear")
    trained = get_peft_model(resized, config)
    shake(trained)
    for name, parameter in whole(model).named_parameters():  # the base itself stays as it is
        if "embed_tokens" not in name and "wte" not in name and "score" not in name:
            target = dict(trained.named_parameters())
            key = f"base_model.model.{name}"
            head, _, leaf = key.rpartition(".")
            target.get(key, target.get(f"{head}.base_layer.{leaf}")).data.copy_(parameter)
    trained.save_pretrained(tmp_path / "adapter")
    tokenizer.save_pretrained(tmp_path / "adapter")
    check(our_logits(tmp_path / "adapter", model), reference_logits(trained, tmp_path / "adapter"))


def test_an_old_adapter_of_torch_tensors_is_opened(model: Path, tmp_path: Path) -> None:
    adapter = write_adapter(model, tmp_path / "adapter")
    expected = reference_logits(adapted(adapter, model), model)
    torch.save(load_file(adapter / "adapter_model.safetensors"), adapter / "adapter_model.bin")
    (adapter / "adapter_model.safetensors").unlink()
    edit_json(adapter / "adapter_config.json", {"modules_to_save": None})  # as PEFT 0.5 wrote it
    check(our_logits(adapter, model), expected)


def test_a_pickled_object_in_an_adapter_is_never_run(gpt2: Path, tmp_path: Path) -> None:
    adapter = write_adapter(gpt2, tmp_path / "adapter")
    (adapter / "adapter_model.safetensors").unlink()
    torch.save({"x": Path("harmless")}, adapter / "adapter_model.bin")
    with pytest.raises(ColakitError, match=r"adapter_model\.bin: cannot be read"):
        load_classifier(adapter, base=str(gpt2))


def test_sharded_torch_weights_are_opened(model: Path, tmp_path: Path) -> None:
    folder = copied(model, tmp_path / "model")
    expected = reference_logits(whole(folder), folder)
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    shards = {"pytorch_model-00001-of-00002.bin": {}, "pytorch_model-00002-of-00002.bin": {}}
    for number, (name, tensor) in enumerate(sorted(tensors.items())):
        list(shards.values())[number % 2][name] = tensor
    for file, part in shards.items():
        torch.save(part, folder / file)
    places = {name: file for file, part in shards.items() for name in part}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": places}))
    check(our_logits(folder), expected)


@pytest.mark.parametrize("bias", ["all", "lora_only"])
@pytest.mark.filterwarnings("ignore:.*bias.*:UserWarning")
def test_trained_biases_are_read_as_peft_reads_them(gpt2: Path, bias: str, tmp_path: Path) -> None:
    adapter = write_adapter(gpt2, tmp_path / "adapter", bias=bias)
    path = adapter / "adapter_model.safetensors"
    tensors = {k: v + 0.3 if k.endswith(".bias") else v for k, v in load_file(path).items()}
    save_file(tensors, path, {"format": "pt"})
    check(our_logits(adapter, gpt2), reference_logits(adapted(adapter, gpt2), gpt2))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"target_modules": ["wte", "c_attn"]}, "LoRA on embeddings"),
        ({"lora_bias": True, "target_modules": ["c_attn"]}, "lora_bias is not supported"),
        ({"trainable_token_indices": {"wte": [1, 2]}}, "trainable_token_indices is not supported"),
    ],
)
def test_what_colakit_does_not_compute_is_refused_with_a_way_out_that_works(
    gpt2: Path, settings: dict[str, Any], message: str, tmp_path: Path
) -> None:
    adapter = write_adapter(gpt2, tmp_path / "adapter", **settings)
    with pytest.raises(ColakitError, match=message) as refused:
        load_classifier(adapter, base=str(gpt2))
    assert "merge_and_unload, save_pretrained" in str(refused.value.hint)
    merged = adapted(adapter, gpt2).merge_and_unload()  # type: ignore[operator]
    merged.save_pretrained(tmp_path / "merged")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(gpt2 / name, tmp_path / "merged" / name)
    check(our_logits(tmp_path / "merged"), reference_logits(adapted(adapter, gpt2), gpt2))


@pytest.mark.parametrize(
    ("file", "changes", "message"),
    [
        ("config.json", {"problem_type": "regression"}, "problem_type is 'regression'"),
        ("config.json", {"quantization_config": {"bits": 4}}, "quantization_config"),
        ("config.json", {"add_cross_attention": True}, "add_cross_attention"),
        ("config.json", {"pad_token_id": 0}, "pad_token_id is 0"),
        ("tokenizer_config.json", {"split_special_tokens": True}, "split_special_tokens"),
    ],
)
def test_fields_that_would_change_the_numbers_are_refused(
    gpt2: Path, file: str, changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    folder = copied(gpt2, tmp_path / "model")
    add_template(folder, f"$A {END_OF_TEXT}")
    edit_json(folder / file, changes)
    with pytest.raises(ColakitError, match=message):
        load_classifier(folder)


@pytest.mark.parametrize("boundaries", [(), ("add_bos",), ("add_eos",), ("add_bos", "add_eos")])
def test_transformers_encodes_with_the_tokenizer_beside_our_adapter_as_colakit_does(
    boundaries: tuple[str, ...], colakit: Run, toy: Path, tmp_path: Path
) -> None:
    flags = ["--base", toy / "base", "--data", toy / "corpus", "--epochs", "1"]
    sets = [part for name in boundaries for part in ("--set", f"finetune.{name}=true")]
    code, _, err = colakit("finetune", *flags, *sets, "--out", tmp_path / "run")
    assert code == 0, err
    assert ("must pad with another token than eos_token" in " ".join(err.split())) == (
        "add_eos" in boundaries
    )
    adapter = tmp_path / "run" / "adapter"
    model = adapted(adapter, toy / "base")
    ours = load_classifier(adapter)
    compute = Compute(torch.device("cpu"), torch.float32, "test")
    assert isinstance(ours.model, GPTClassifier)
    expected = reference_logits(model, adapter)
    check(torch.from_numpy(ours.logits(ours.encode(SENTENCES), compute)), expected)


@pytest.fixture(scope="module")
def reversed_adapter(tmp_path_factory: pytest.TempPathFactory, toy: Path) -> Path:
    """Folder of PEFT's files only, of a tuned model whose two classes are exchanged."""
    from colakit import Settings, finetune

    folder = tmp_path_factory.mktemp("reversed")
    settings = Settings.model_validate(
        {"base": str(toy / "base"), "data": {"path": str(toy / "corpus")}, "finetune": {"epochs": 1}}
    )
    run = finetune(settings, out=folder / "run", quiet=True).path
    adapter = copied(Path(run) / "adapter", folder / "adapter")
    (adapter / "colakit.json").unlink()
    path = adapter / "adapter_model.safetensors"
    tensors = {k: -v if k.endswith("score.weight") else v for k, v in load_file(path).items()}
    save_file(tensors, path, {"format": "pt"})
    return adapter


def test_evaluating_a_model_without_label_names_says_how_its_classes_are_taken(
    reversed_adapter: Path, colakit: Run, toy: Path
) -> None:
    code, _, err = colakit("evaluate", reversed_adapter, "--base", toy / "base", "--data", toy / "corpus")
    assert code == 0, err
    assert "names no labels; its classes are taken as 0 for unacceptable, 1 for acceptable" in " ".join(
        err.split()
    )


def test_a_teacher_below_chance_is_refused() -> None:
    labels = np.array([0, 1, 1, 0, 1, 1, 0, 1, 1, 0])
    logits = np.stack([-labels, labels], axis=1).astype(np.float32)
    require_above_chance(measure(logits, labels, labels), ["teacher"])
    require_above_chance(measure(logits, labels, np.ones_like(labels)), ["teacher"])  # one class only: MCC 0
    with pytest.raises(ColakitError, match=r"teacher: its MCC on val is -1\.000, below chance") as refused:
        require_above_chance(measure(-logits, labels, 1 - labels), ["teacher"])
    assert "distill.allow_teacher_below_chance=true" in str(refused.value.hint)


TARGETS = ["c_attn", "c_fc", "q_proj", "up_proj"]  # of both families
OPTIONS: dict[str, dict[str, Any]] = {
    "rslora": {"use_rslora": True},
    "dora": {"use_dora": True},
    "dora and rslora": {"use_dora": True, "use_rslora": True},
    "alpha": {"lora_alpha": 3},
    "dropout": {"lora_dropout": 0.5},
    "gaussian": {"init_lora_weights": "gaussian"},
    "random": {"init_lora_weights": False},
    "one block": {"layers_to_transform": [1], "target_modules": TARGETS},
    "an index": {"layers_to_transform": 0, "target_modules": TARGETS},
    "pattern of blocks": {
        "layers_to_transform": [1],
        "layers_pattern": ["h", "layers"],
        "target_modules": TARGETS,
    },
    "norms": {"modules_to_save": ["score", "ln_1", "input_layernorm"]},
    "biases": {"bias": "all"},
}
BY_FAMILY: dict[str, dict[str, dict[str, Any]]] = {
    "gpt2": {
        "ranks": {"rank_pattern": {"c_attn": 2}, "alpha_pattern": {r"h\.0\.mlp\.c_fc": 5}},
        "pattern of names": {"target_modules": r".*\.attn\.c_(attn|proj)"},
        "excluded": {"target_modules": ["c_attn", "c_proj"], "exclude_modules": ["mlp.c_proj"]},
        "embedding trained": {"target_modules": ["c_attn"], "modules_to_save": ["score", "wte"]},
    },
    "llama": {
        "ranks": {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {r"layers\.0\.mlp\.up_proj": 5}},
        "pattern of names": {"target_modules": r".*\.self_attn\.(q|v)_proj"},
        "excluded": {
            "target_modules": ["q_proj", "o_proj"],
            "exclude_modules": ["layers.0.self_attn.o_proj"],
        },
        "embedding trained": {"target_modules": ["q_proj"], "modules_to_save": ["score", "embed_tokens"]},
    },
}


@pytest.mark.parametrize("option", [*OPTIONS, *BY_FAMILY["gpt2"]])
@pytest.mark.filterwarnings("ignore:.*bias.*:UserWarning")
def test_every_option_of_peft_gives_its_logits(model: Path, option: str, tmp_path: Path) -> None:
    family = json.loads((model / "config.json").read_text())["model_type"]
    adapter = write_adapter(model, tmp_path / "adapter", **{**OPTIONS, **BY_FAMILY[family]}[option])
    check(our_logits(adapter, model), reference_logits(adapted(adapter, model), model))


UNSUPPORTED: dict[str, Any] = {
    "alora_invocation_tokens": [1],
    "arrow_config": {"top_k": 1},
    "corda_config": {"corda_method": "kpm"},
    "ensure_weight_tying": True,
    "eva_config": {"rho": 2.0},
    "kasa_config": {"beta": 1.0},
    "layer_replication": [[0, 2]],
    "loftq_config": {"loftq_bits": 4},
    "lora_bias": True,
    "lora_ga_config": {"direction": "ArB2r"},
    "megatron_config": {"hidden_size": 32},
    "monteclora_config": {"samples": 2},
    "target_parameters": ["mlp.up_proj.weight"],
    "trainable_token_indices": [1],
    "use_bdlora": {"nblocks": 2},
    "use_qalora": True,
    "velora_config": {"num_groups": 2},
}
HONOURED = {  # by colakit, or by the tests above
    *("peft_type", "base_model_name_or_path", "r", "target_modules", "exclude_modules", "lora_alpha"),
    *("lora_dropout", "bias", "use_rslora", "modules_to_save", "init_lora_weights", "layers_to_transform"),
    *("alpha_pattern", "use_dora", *INERT),
}


def test_every_field_of_peft_is_honoured_or_refused() -> None:
    fields = {field.name for field in dataclasses.fields(LoraConfig)}
    assert fields - HONOURED - UNSUPPORTED.keys() == set()


@pytest.mark.parametrize("key", UNSUPPORTED)
def test_unsupported_options_of_peft_are_refused(gpt2: Path, key: str, tmp_path: Path) -> None:
    adapter = write_adapter(gpt2, tmp_path / "adapter")
    edit_json(adapter / "adapter_config.json", {key: UNSUPPORTED[key]})
    with pytest.raises(ColakitError, match=rf"adapter_config\.json: .*{key} is not supported"):
        load_classifier(adapter, base=str(gpt2))
