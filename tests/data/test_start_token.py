"""The token before a sentence: its default, the setting, and what records it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from colakit.data.tokenizer import END_OF_TEXT, SentenceTokenizer, save_tokenizer, train_tokenizer
from colakit.errors import ColakitError
from colakit.inference.classifier import load_classifier
from colakit.storage.gpt2 import SMOLLM2, resolve_base
from colakit.utils.files import write_json

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def chat(tmp_path: Path) -> Path:
    """Folder of a tokenizer whose BOS token starts a turn of a dialogue."""
    tokenizer = train_tokenizer(["the cat sat on the mat"] * 3, 270)
    tokenizer.backend.add_special_tokens(["<|turn|>"])
    save_tokenizer(tokenizer, tmp_path / "chat", max_tokens=32)
    edit_config(tmp_path / "chat", {"bos_token": "<|turn|>"})
    return tmp_path / "chat"


def edit_config(folder: Path, changes: dict[str, Any]) -> None:
    path = folder / "tokenizer_config.json"
    write_json(path, {**json.loads((path).read_text()), **changes})


def starts(tokenizer: SentenceTokenizer) -> str | None:
    ids = tokenizer.with_boundaries(prefix=True).encode(["the cat"]).sentence(0)
    return tokenizer.backend.id_to_token(int(ids[0]))


def test_end_of_text_precedes_the_bos_token_as_default(chat: Path) -> None:
    assert starts(SentenceTokenizer.from_base(chat)) == END_OF_TEXT
    text = (chat / "tokenizer.json").read_text().replace(END_OF_TEXT, "<|end|>")
    (chat / "tokenizer.json").write_text(text)
    edit_config(chat, {"eos_token": "<|end|>", "unk_token": "<|end|>"})
    tokenizer = SentenceTokenizer.from_base(chat)
    assert starts(tokenizer) == "<|turn|>"
    assert tokenizer.backend.id_to_token(tokenizer.end_of_text_id) == "<|end|>"


@pytest.mark.parametrize(
    ("start", "token"), [("<|turn|>", "<|turn|>"), ("\n", "Ċ"), (END_OF_TEXT, END_OF_TEXT)]
)
def test_setting_replaces_the_start_token_and_exported_tokenizers_record_it(
    start: str, token: str, chat: Path, tmp_path: Path
) -> None:
    tokenizer = SentenceTokenizer.from_base(chat, start=start)
    assert starts(tokenizer) == token
    assert tokenizer.backend.id_to_token(tokenizer.end_of_text_id) == END_OF_TEXT
    assert starts(SentenceTokenizer.from_dict(tokenizer.to_dict())) == token
    save_tokenizer(tokenizer, tmp_path / "saved", max_tokens=32)
    assert starts(SentenceTokenizer.from_base(tmp_path / "saved")) == token
    exported = AutoTokenizer.from_pretrained(tmp_path / "saved")
    assert (exported.bos_token, exported.eos_token) == (token, END_OF_TEXT)


def test_a_start_of_several_tokens_is_refused(chat: Path) -> None:
    with pytest.raises(ColakitError, match=r"start_token: 'xyz' is 3 tokens of this base; it must be one"):
        SentenceTokenizer.from_base(chat, start="xyz")


def test_runs_record_their_start_token(colakit: Run, toy: Path, tmp_path: Path) -> None:
    flags = ["--base", toy / "base", "--data", toy / "corpus", "--start-token", ".", "--epochs", "1"]
    code, _, err = colakit("finetune", *flags, "--set", "finetune.add_bos=true", "--out", tmp_path / "run")
    assert code == 0, err
    run = load_classifier(tmp_path / "run")
    adapter = load_classifier(tmp_path / "run" / "adapter", base=str(toy / "base"))
    assert starts(run.tokenizer) == starts(adapter.tokenizer) == "."
    assert (run.encode(["a dog"]).ids == adapter.encode(["a dog"]).ids).all()


def test_base_smollm2_names_the_command_that_fetches_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(ColakitError, match=r"base smollm2: .* not found") as caught:
        resolve_base("smollm2")
    assert "make base-smollm2" in str(caught.value.hint)
    fetched = tmp_path / "colakit" / "bases" / SMOLLM2
    fetched.parent.mkdir(parents=True)
    fetched.touch()
    assert resolve_base("smollm2") == fetched
