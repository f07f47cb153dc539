"""GPT-2 against transformers: logits, text, gradients, and every layout of the files."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, GPT2Config, GPT2ForSequenceClassification, GPT2LMHeadModel

from colakit.data.batches import Batch
from colakit.errors import ColakitError
from colakit.inference.generation import generate_tokens
from colakit.models.gpt.attention import KVCache
from colakit.models.gpt.model import GPT
from colakit.runtime.device import Compute
from colakit.storage.gpt2 import CONV1D_TAILS, load_gpt, save_gpt
from colakit.training.objectives import language_modelling

TINY: dict[str, Any] = {
    "vocab_size": 100,
    "n_positions": 64,
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 4,
    "initializer_range": 0.2,  # at GPT-2's 0.02 all logits of so small a model would be alike
}
PAD = 0

Pair = tuple[GPT2LMHeadModel, GPT]


def reference_model(**shape: Any) -> GPT2LMHeadModel:
    torch.manual_seed(0)
    config = GPT2Config(**shape, bos_token_id=None, eos_token_id=None, pad_token_id=PAD)
    model = GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:  # biases start at 0 and norms at 1, where a mix-up would not show
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def draw_ids(model: GPT2LMHeadModel, rows: int, tokens: int) -> Tensor:
    return torch.randint(
        1, model.config.vocab_size, (rows, tokens), generator=torch.Generator().manual_seed(1)
    )


def ragged(model: GPT2LMHeadModel) -> tuple[Tensor, Tensor]:
    """Return (input_ids, attention_mask) of four sentences of 1, 4, 7 and 9 tokens."""
    mask = (torch.arange(9) < torch.tensor([[1], [4], [7], [9]])).long()
    return draw_ids(model, 4, 9) * mask, mask


def same(actual: Tensor, expected: Tensor) -> None:
    # both are fp32; sums run in another order, over 12 layers at most
    torch.testing.assert_close(actual, expected, atol=1e-4, rtol=0)


@pytest.fixture(scope="module", params=["tiny", "small"])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    """The same random model twice, tiny or of GPT-2 small's full size: transformers' and ours."""
    theirs = reference_model(**TINY if request.param == "tiny" else {})
    folder = tmp_path_factory.mktemp(request.param)
    theirs.save_pretrained(folder)
    yield theirs, load_gpt(folder)
    shutil.rmtree(folder)  # half a gigabyte


@pytest.fixture(scope="module")
def tiny() -> GPT2LMHeadModel:
    return reference_model(**TINY)


@pytest.fixture
def saved(tiny: GPT2LMHeadModel, tmp_path: Path) -> Path:
    """A folder with the tiny model, for a test to spoil."""
    tiny.save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def greedy(
    model: GPT, prompt: Tensor, num_tokens: int, compute: Compute, stop_id: int | None = None
) -> Tensor:
    tokens = generate_tokens(
        model, prompt, max_new_tokens=num_tokens, compute=compute, temperature=0, stop_id=stop_id
    )
    return torch.stack(list(tokens), dim=1)


def greedy_reference(model: GPT2LMHeadModel, prompt: Tensor, num_tokens: int, **options: Any) -> Tensor:
    mask = torch.ones_like(prompt)
    text = model.generate(prompt, attention_mask=mask, max_new_tokens=num_tokens, do_sample=False, **options)
    return text[:, prompt.shape[1] :]


# -- logits, text, gradients


@torch.no_grad()
def test_logits_match_transformers(pair: Pair) -> None:
    theirs, ours = pair
    input_ids = draw_ids(theirs, 2, 12)
    same(ours(input_ids), theirs(input_ids).logits)


@torch.no_grad()
@pytest.mark.parametrize("activation", ["gelu_new", "gelu_pytorch_tanh", "gelu", "relu", "silu"])
def test_every_shape_setting_of_the_config_reaches_the_model(activation: str, tmp_path: Path) -> None:
    theirs = reference_model(**TINY, n_inner=48, activation_function=activation, layer_norm_epsilon=0.1)
    theirs.save_pretrained(tmp_path)
    input_ids = draw_ids(theirs, 2, 12)
    same(load_gpt(tmp_path)(input_ids), theirs(input_ids).logits)


@torch.no_grad()
def test_classifier_logits_match_transformers_on_a_ragged_batch(pair: Pair) -> None:
    theirs, ours = pair
    with torch.device("meta"):  # the body comes from `theirs`
        reference = GPT2ForSequenceClassification(GPT2Config(**{**theirs.config.to_dict(), "num_labels": 3}))
    reference.transformer = theirs.transformer
    reference.score = torch.nn.Linear(ours.config.width, 3, bias=False)
    reference.eval()
    classifier = ours.classifier(3)
    classifier.score.weight.copy_(reference.score.weight)
    input_ids, mask = ragged(theirs)
    same(classifier(input_ids, mask), reference(input_ids, attention_mask=mask).logits)


@torch.no_grad()
@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize("samples", [1, 3])
def test_greedy_text_matches_transformers(pair: Pair, samples: int, use_cache: bool, fp32: Compute) -> None:
    theirs, ours = pair
    prompt = draw_ids(theirs, samples, 6)
    expected = greedy_reference(theirs, prompt, 10, use_cache=use_cache)
    assert torch.equal(greedy(ours, prompt, 10, fp32), expected)


def test_stopped_samples_match_transformers(tiny: GPT2LMHeadModel, saved: Path, fp32: Compute) -> None:
    prompt = draw_ids(tiny, 3, 6)
    stop_id = int(greedy_reference(tiny, prompt, 4)[0, 3])  # ends the first sample after 4 tokens at most
    expected = greedy_reference(tiny, prompt, 10, eos_token_id=stop_id, pad_token_id=stop_id)
    assert torch.equal(greedy(load_gpt(saved), prompt, 10, fp32, stop_id), expected)


@torch.no_grad()
def test_cached_logits_match_uncached_ones(pair: Pair) -> None:
    theirs, ours = pair
    input_ids = draw_ids(theirs, 2, 12)
    cache = KVCache(ours.config, 2, 12, torch.device("cpu"), torch.float32)
    pieces = [
        ours.transformer.forward_cached(part, cache)
        for part in (input_ids[:, :5], *input_ids[:, 5:].split(1, dim=1))
    ]
    # one query at a time takes another attention kernel than twelve
    torch.testing.assert_close(ours.lm_logits(torch.cat(pieces, dim=1)), ours(input_ids), atol=2e-5, rtol=0)


def test_gradients_match_transformers(tiny: GPT2LMHeadModel, saved: Path) -> None:
    ours = load_gpt(saved)
    input_ids, mask = ragged(tiny)
    labels = input_ids.masked_fill(mask == 0, -100)
    tiny.zero_grad()
    tiny(input_ids, attention_mask=mask, labels=labels).loss.backward()
    count = int(mask[:, 1:].sum())
    (language_modelling(ours, Batch(input_ids, mask)).total / count).backward()
    theirs = dict(tiny.named_parameters())
    for name, parameter in ours.named_parameters():
        expected = theirs[name].grad
        assert parameter.grad is not None
        assert expected is not None
        same(parameter.grad, expected.t() if name.endswith(CONV1D_TAILS) else expected)
        assert expected.abs().max() > 1e-3, f"{name}: the tolerance would hide a missing gradient"


# -- files


def write_sharded(model: GPT2LMHeadModel, folder: Path) -> None:
    model.save_pretrained(folder, max_shard_size="40KB")
    assert len(list(folder.glob("model-*.safetensors"))) > 1


def write_bin(model: GPT2LMHeadModel, folder: Path) -> None:
    model.config.save_pretrained(folder)
    torch.save(model.state_dict(), folder / "pytorch_model.bin")


def write_bin_with_masks(model: GPT2LMHeadModel, folder: Path) -> None:
    """As OpenAI's release stands on the hub: no prefix, and the causal masks kept beside the weights."""
    masks = {
        f"h.{layer}.attn.{name}": mask
        for layer in range(model.config.n_layer)
        for name, mask in (("bias", torch.ones(1, 1, 64, 64).tril()), ("masked_bias", torch.tensor(-1e4)))
    }
    model.config.save_pretrained(folder)
    torch.save({**model.transformer.state_dict(), **masks}, folder / "pytorch_model.bin")


def write_classifier(model: GPT2LMHeadModel, folder: Path) -> None:
    classifier = GPT2ForSequenceClassification(model.config)
    classifier.transformer = model.transformer
    classifier.save_pretrained(folder)


LAYOUTS: dict[str, Callable[[GPT2LMHeadModel, Path], object]] = {
    "prefixed": lambda model, folder: model.save_pretrained(folder),
    "without prefix": lambda model, folder: model.transformer.save_pretrained(folder),
    "sharded": write_sharded,
    "pytorch_model.bin": write_bin,
    "with causal masks": write_bin_with_masks,
    "classifier": write_classifier,
}


@torch.no_grad()
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_of_the_files_loads(tiny: GPT2LMHeadModel, layout: str, tmp_path: Path) -> None:
    folder = tmp_path / "base"
    folder.mkdir()
    LAYOUTS[layout](tiny, folder)
    input_ids = draw_ids(tiny, 2, 12)
    same(load_gpt(folder)(input_ids), tiny(input_ids).logits)


@torch.no_grad()
def test_transformers_opens_what_save_gpt_writes(tiny: GPT2LMHeadModel, saved: Path, tmp_path: Path) -> None:
    ours = load_gpt(saved)
    save_gpt(ours, tmp_path / "again")
    input_ids = draw_ids(tiny, 2, 12)
    reopened = AutoModelForCausalLM.from_pretrained(tmp_path / "again").eval()
    assert torch.equal(reopened(input_ids).logits, tiny(input_ids).logits)
    again = load_gpt(tmp_path / "again")
    assert again.config == ours.config
    assert all(torch.equal(tensor, ours.state_dict()[name]) for name, tensor in again.state_dict().items())


# -- refusals


C_FC = "transformer.h.1.mlp.c_fc.weight"
EXTRA = "transformer.h.2.ln_1.weight"


@pytest.mark.parametrize(
    ("change", "names"),
    [
        pytest.param({C_FC: None}, [C_FC, "missing"], id="missing"),
        pytest.param({C_FC: torch.ones(32, 64)}, [C_FC, "(64, 32)", "(128, 32)"], id="wrong shape"),
        pytest.param({C_FC: torch.ones(32, 128, 1)}, [C_FC, "(128, 32)"], id="wrong dimensions"),
        pytest.param({EXTRA: torch.ones(32)}, [EXTRA], id="extra"),
    ],
)
def test_tensors_that_do_not_fit_are_named(saved: Path, change: dict[str, Any], names: list[str]) -> None:
    tensors = {**load_file(saved / "model.safetensors"), **change}
    save_file({name: t for name, t in tensors.items() if t is not None}, saved / "model.safetensors")
    with pytest.raises(ColakitError) as caught:
        load_gpt(saved)
    assert [name for name in names if name not in str(caught.value)] == []


@pytest.mark.parametrize(
    ("key", "value", "names"),
    [
        ("model_type", "bert", ["model_type", "'bert'", "'gpt2', 'llama'"]),
        ("scale_attn_weights", False, ["scale_attn_weights", "False"]),
        ("scale_attn_by_inverse_layer_idx", True, ["scale_attn_by_inverse_layer_idx", "True"]),
        ("tie_word_embeddings", False, ["tie_word_embeddings", "False"]),
        ("activation_function", "mish", ["activation", "'mish'", "gelu_new"]),
        ("n_head", 5, ["num_heads", "5", "32"]),
        ("n_layer", 3, ["transformer.h.2.", "missing"]),
    ],
)
def test_configs_that_colakit_does_not_compute_are_refused(
    saved: Path, key: str, value: object, names: list[str]
) -> None:
    path = saved / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))
    with pytest.raises(ColakitError) as caught:
        load_gpt(saved)
    assert [name for name in names if name not in str(caught.value)] == []


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
@pytest.mark.parametrize("content", [None, b"", b"\x00" * 64])
def test_absent_and_damaged_files_are_named(saved: Path, name: str, content: bytes | None) -> None:
    (saved / name).unlink() if content is None else (saved / name).write_bytes(content)
    with pytest.raises(ColakitError, match=name.replace(".", r"\.")):
        load_gpt(saved)


@pytest.mark.parametrize("content", [{"epoch": 3}, {"model": {}}, [torch.ones(1)]], ids=repr)
def test_a_bin_of_anything_but_named_tensors_is_refused(saved: Path, content: object) -> None:
    (saved / "model.safetensors").unlink()
    torch.save(content, saved / "pytorch_model.bin")
    with pytest.raises(ColakitError, match=r"pytorch_model\.bin"):
        load_gpt(saved)


class Payload:
    """Creates a file when it is unpickled."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return Path.touch, (self.canary,)


def test_a_flipped_byte_in_a_bin_is_refused_or_harmless(tiny: GPT2LMHeadModel, tmp_path: Path) -> None:
    write_bin(tiny, tmp_path)
    path = tmp_path / "pytorch_model.bin"
    whole, wanted, refused = path.read_bytes(), load_gpt(tmp_path).state_dict(), 0
    # the pickle stands first; behind it are weights, any bytes of which load
    for position in range(0, 4000, 50):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 0x80]) + whole[position + 1 :])
        try:
            found = load_gpt(tmp_path).state_dict()
        except ColakitError:
            refused += 1
            continue
        assert all(torch.equal(tensor, wanted[name]) for name, tensor in found.items())
    assert refused > 10


@pytest.mark.parametrize("protocol", ["zip", "legacy", "pickle"])
def test_a_pickle_s_payload_never_runs(saved: Path, tmp_path: Path, protocol: str) -> None:
    canary, path = tmp_path / "canary", saved / "pytorch_model.bin"
    content = {"transformer.wte.weight": Payload(canary)}
    (saved / "model.safetensors").unlink()
    if protocol == "pickle":
        # torch's own protocol, and the one it reads without a warning
        path.write_bytes(pickle.dumps(content, protocol=2))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=protocol == "zip")
    with pytest.raises(ColakitError, match=r"pytorch_model\.bin"):
        load_gpt(saved)
    assert not canary.exists()
    torch.load(path, weights_only=False) if protocol != "pickle" else pickle.loads(path.read_bytes())  # noqa: S301
    assert canary.exists(), "the payload is a dud, and the test shows nothing"
