"""`evaluate --text`: bits per byte of running text."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from support.toy import ToyGrammar

from colakit.data.running_text import Stream, Vocabulary
from colakit.data.windows import slices
from colakit.storage.gpt2 import load_gpt

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def text(tmp_path: Path) -> Path:
    """Short documents: each fits into one window, after the end-of-text token."""
    grammar = ToyGrammar(9)
    path = tmp_path / "toy.txt"
    path.write_text("\n<|endoftext|>\n".join(grammar.acceptable() for _ in range(40)), encoding="utf-8")
    return path


def transformers_bits_per_byte(folder: Path, text: str, num_tokens: int) -> float:
    """Of a document and the end-of-text token after it, slice by slice, with nothing of ours."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    end = tokenizer.eos_token_id
    ids = [end, *tokenizer(text, add_special_tokens=False)["input_ids"], end]
    nats = 0.0
    for start in range(0, len(ids) - 1, num_tokens):
        row = torch.tensor([ids[start : start + num_tokens + 1]])
        with torch.no_grad():
            logprobs = model(input_ids=row[:, :-1]).logits[0].double().log_softmax(dim=-1)
        nats -= float(logprobs.gather(1, row[0, 1:, None]).sum())
    return nats / math.log(2) / len(text.encode())


@pytest.mark.parametrize(
    "text",
    [
        ToyGrammar(3).acceptable(),
        "the cat " * 200,  # no capital, no mark: no sentence begins inside
        "Ünïcödé 中文. " + " ".join(ToyGrammar(4).acceptable() for _ in range(20)),
    ],
    ids=["one slice", "no sentence starts", "several slices"],
)
def test_bits_per_byte_match_transformers(text: str, toy: Path, colakit: Run, tmp_path: Path) -> None:
    text = text.strip()
    (tmp_path / "one.txt").write_text(text, encoding="utf-8")
    code, out, err = colakit(
        *("evaluate", "--text", tmp_path / "one.txt", "--base", toy / "base", "--json"),
        *("--precision", "fp32", "--quiet"),
    )
    assert code == 0, err
    (result,) = json.loads(out)["models"][0]["bits_per_byte"].values()
    num_tokens = load_gpt(toy / "base").config.num_positions
    expected = transformers_bits_per_byte(toy / "base", text, num_tokens)
    assert result == pytest.approx(expected, abs=1e-5)  # fp32, summed in another order


@pytest.mark.parametrize("num_tokens", [1, 3, 8, 50])
def test_every_token_is_predicted_once(num_tokens: int) -> None:
    ids = np.arange(1, 21, dtype=np.uint16)
    stream = Stream(ids, np.array([0]), np.array([0, len(ids)]))
    two_bytes, not_blank = np.full(21, 2, dtype=np.int32), np.zeros(21, dtype=np.bool_)
    facts = Vocabulary(two_bytes, not_blank, np.arange(21, dtype=np.int32))
    result, num_bytes = [], 0
    for batch, size in slices(stream, facts, num_tokens, 0, size=2):
        num_bytes += size
        for row, mask in zip(batch.input_ids.tolist(), batch.attention_mask.tolist(), strict=True):
            real = [token for token, there in zip(row, mask, strict=True) if there]
            assert real == list(range(real[0], real[0] + len(real)))  # behind the token before them
            result += real[1:]
    assert result == ids.tolist()
    assert num_bytes == 40


def test_in_domain_text_takes_fewer_bits(toy: Path, colakit: Run, text: Path, tmp_path: Path) -> None:
    strange = tmp_path / "strange.txt"
    strange.write_text(text.read_text(encoding="utf-8")[::-1].replace("<", "").replace(">", ""), "utf-8")
    out_folder = tmp_path / "measured"
    code, out, err = colakit(
        *("evaluate", "--text", text, "--text", strange, "--base", toy / "base", "--out", out_folder)
    )
    assert code == 0, err
    assert "bits per byte" in out
    result = json.loads((out_folder / "text.json").read_text(encoding="utf-8"))
    measured = result["models"][0]["bits_per_byte"]
    assert list(measured) == result["texts"] == [str(text), str(strange)]
    assert 0 < measured[str(text)] < measured[str(strange)]
    assert f"| {measured[str(text)]:.4f} |" in (out_folder / "text.md").read_text(encoding="utf-8")


def test_a_dry_run_reads_nothing(toy: Path, colakit: Run, text: Path) -> None:
    code, out, _ = colakit("evaluate", "--text", text, "--base", toy / "base", "--dry-run")
    assert code == 0
    assert f"would measure {text} with base base" in " ".join(out.split())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--text", "none.txt"], "none.txt: file not found"),
        (["--text", "empty.txt"], "empty.txt: no text found"),
        (["--text", "empty.txt", "--pairs", "empty.txt"], "--pairs and --text cannot be combined"),
        (["--text", "empty.txt", "nobody"], "nobody: not found"),
        (
            ["--text", "empty.txt", "--data", "cola"],
            "--data with --text: the text takes the place of a dataset",
        ),
        (["--text", "empty.txt", "--group-by", "source"], "--group-by with --text"),
        (["--text", "empty.txt", "--ensembles"], "--ensembles with --text"),
        (["--pairs", "empty.txt", "--errors", "3"], "--errors with --pairs"),
    ],
)
def test_invalid_arguments_are_errors(
    words: list[str], message: str, toy: Path, colakit: Run, tmp_path: Path
) -> None:
    (tmp_path / "empty.txt").write_text("\n", encoding="utf-8")
    code, _, err = colakit("evaluate", "--base", toy / "base", *words)
    assert code == 2
    assert message in " ".join(err.split())


def write_broken_base(toy: Path, folder: Path, value: float) -> Path:
    """Write the toy base with `value` in the weights of its last norm to `folder`, and return it."""
    folder.mkdir()
    for file in (toy / "base").iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    tensors = load_file(folder / "model.safetensors")
    name = next(name for name in tensors if name.endswith("ln_f.weight"))
    tensors[name] = torch.full_like(tensors[name], value)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_a_result_that_is_not_finite_is_an_error(toy: Path, colakit: Run, text: Path, tmp_path: Path) -> None:
    broken = write_broken_base(toy, tmp_path / "broken", 3e38)
    code, _, err = colakit("evaluate", "--text", text, "--base", broken)
    assert code == 2
    assert "bits per byte are nan" in " ".join(err.split())


def test_a_base_with_weights_that_are_not_finite_is_refused(
    toy: Path, colakit: Run, text: Path, tmp_path: Path
) -> None:
    broken = write_broken_base(toy, tmp_path / "broken", math.nan)
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text('{"sentence_good": "a b", "sentence_bad": "b a"}\n', encoding="utf-8")
    message = f"{broken}: the weight transformer.ln_f.weight has values that are infinite or NaN"
    for words in (
        ["evaluate", "--text", text],
        ["evaluate", "--pairs", pairs],
        ["generate", "--prompt", "a"],
        ["finetune", "--data", "builtin", "--out", tmp_path / "run"],
    ):
        code, _, err = colakit(*words, "--base", broken)
        assert code == 2
        assert message in " ".join(err.split())
