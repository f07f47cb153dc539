"""GGUF files against transformers' own loading."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGUFWriter, quants
from gguf.constants import GGMLQuantizationType as Type
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from colakit.data.tokenizer import END_OF_TEXT, SentenceTokenizer, train_tokenizer
from colakit.errors import ColakitError
from colakit.storage.gguf_file import OUTSIDE, TENSORS
from colakit.storage.gpt2 import load_gpt, read_config, resolve_base

SIZE, LAYERS, HEADS, KV_HEADS, INNER = 64, 2, 4, 2, 96
TEXTS = ["the cat sat on the mat in 1999", "didn't the dogs bark  2 times?", "café naïve 日本語\n\nend"]


def interleave(tensor: Tensor, heads: int) -> Tensor:
    """Permute rows as llama.cpp's converter of the architecture `llama` does."""
    return tensor.unflatten(0, (heads, 2, -1)).transpose(1, 2).reshape(tensor.shape)


def write_gguf(
    path: Path, family: str = "llama", kind: Type = Type.F32, facts: dict[str, Any] | None = None
) -> dict[str, Tensor]:
    """Write a random model, and return its tensors after quantisation, with transformers' names."""
    torch.manual_seed(0)
    head = 128 if family == "qwen3" else SIZE // HEADS  # transformers reads no other width of Qwen3
    tokenizer = train_tokenizer(TEXTS * 3, 300)
    vocab = tokenizer.vocab_size
    config = AutoConfig.for_model(
        family,
        vocab_size=vocab,
        hidden_size=SIZE,
        intermediate_size=INNER,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        head_dim=head,
        tie_word_embeddings=True,
        initializer_range=0.2,
        rms_norm_eps=1e-5,
    )
    state = AutoModelForCausalLM.from_config(config).state_dict()
    writer = GGUFWriter(path, family)
    writer.add_context_length(64)
    writer.add_embedding_length(SIZE)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_key_length(head)
    writer.add_value_length(head)
    writer.add_rope_freq_base(1000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    add_tokenizer(writer, tokenizer, facts or {})
    expected = {}
    names = {value: key for key, value in OUTSIDE.items()}
    parts = {value: key for key, value in TENSORS.items()}
    for name, tensor in state.items():
        if name == "lm_head.weight":
            continue
        if name in names:
            stored_name = names[name]
        else:
            _, _, layer, *rest, weight = name.split(".")
            stored_name = f"blk.{layer}.{parts['.'.join(rest)]}.{weight}"
        heads = {"attn_q": HEADS, "attn_k": KV_HEADS}.get(stored_name.split(".")[-2])
        permuted = interleave(tensor, heads) if heads and family == "llama" else tensor
        if tensor.ndim == 2:
            data = quants.quantize(permuted.numpy(), kind)
            writer.add_tensor(stored_name, data, raw_dtype=kind)
            restored = torch.from_numpy(quants.dequantize(data, kind).astype(np.float32))
            if heads and family == "llama":
                restored = restored.unflatten(0, (heads, -1, 2)).transpose(1, 2).reshape(tensor.shape)
            expected[name] = restored
        else:
            writer.add_tensor(stored_name, permuted.numpy())
            expected[name] = tensor
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return expected


def add_tokenizer(writer: GGUFWriter, tokenizer: SentenceTokenizer, facts: dict[str, Any]) -> None:
    state = json.loads(tokenizer.backend.to_str())
    vocabulary = sorted(state["model"]["vocab"], key=state["model"]["vocab"].get)
    vocabulary[6] = "<|im_end|>"  # as in chat models, beside <|endoftext|>
    writer.add_tokenizer_model(facts.get("model", "gpt2"))
    writer.add_tokenizer_pre(facts.get("pre", "smollm"))
    writer.add_token_list(vocabulary)
    writer.add_token_types([3 if token.startswith("<|") else 1 for token in vocabulary])
    writer.add_token_merges([" ".join(pair) for pair in state["model"]["merges"]])
    writer.add_bos_token_id(5)
    writer.add_eos_token_id(6)


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
def test_weights_and_logits_equal_those_of_transformers(family: str, tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    state = write_gguf(path, family)
    model = load_gpt(path)
    assert model.state_dict().keys() == state.keys()
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in state.items())
    reference = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=path.name).eval()
    ids = torch.randint(0, 200, (2, 12), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(model(ids), reference(ids).logits, atol=1e-4, rtol=0)


@pytest.mark.parametrize("kind", [Type.F16, Type.BF16, Type.Q8_0, Type.Q4_0, Type.Q4_1, Type.Q5_0, Type.Q5_1])
def test_quantised_weights_are_dequantised(kind: Type, tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    state = write_gguf(path, kind=kind)
    model = load_gpt(path)
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in state.items())


def test_the_tokenizer_separates_texts_by_end_of_text(tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    write_gguf(path)
    tokenizer = SentenceTokenizer.from_base(path, prefix=True, suffix=True)
    ids = tokenizer.encode(["the cat"]).sentence(0).tolist()
    assert tokenizer.backend.id_to_token(ids[0]) == tokenizer.backend.id_to_token(ids[-1]) == END_OF_TEXT
    assert tokenizer.decode(ids) == "the cat"


def test_start_token_replaces_the_first_token_only(tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    write_gguf(path)
    tokenizer = SentenceTokenizer.from_base(path, prefix=True, suffix=True, start="a")
    tokens = [tokenizer.backend.id_to_token(i) for i in tokenizer.encode(["the"]).sentence(0).tolist()]
    assert (tokens[0], tokens[-1]) == ("a", END_OF_TEXT)
    with pytest.raises(ColakitError, match=r"start_token: .<s>. is 3 tokens"):
        SentenceTokenizer.from_base(path, start="<s>")


def test_digits_are_single_tokens_of_smollm(tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    write_gguf(path)
    tokenizer = SentenceTokenizer.from_base(path)
    texts = [tokenizer.decode([i]) for i in tokenizer.encode(["in 1999"]).sentence(0).tolist()]
    assert texts[-4:] == ["1", "9", "9", "9"]


@pytest.mark.parametrize("facts", [{"model": "llama"}, {"pre": "deepseek-llm"}])
def test_unsupported_tokenizers_are_refused(facts: dict[str, str], tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    write_gguf(path, facts=facts)
    with pytest.raises(ColakitError, match=r"tiny\.gguf: its tokenizer: cannot be read .*smollm"):
        SentenceTokenizer.from_base(path)


def test_unsupported_architectures_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.gguf"
    writer = GGUFWriter(path, "mamba")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(ColakitError, match="architecture is 'mamba'; colakit loads llama"):
        read_config(path)


@pytest.mark.parametrize("size", [0, 3, 40, 700, 5000])
def test_a_truncated_file_is_refused(size: int, tmp_path: Path) -> None:
    write_gguf(tmp_path / "whole.gguf")
    path = tmp_path / "part.gguf"
    path.write_bytes((tmp_path / "whole.gguf").read_bytes()[:size])
    assert resolve_base(str(path)) == path
    with pytest.raises(ColakitError, match=r"part\.gguf: "):
        load_gpt(path)
