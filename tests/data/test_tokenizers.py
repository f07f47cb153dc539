"""Tokenizers of any kind are loaded as transformers loads them, unless their rules may take too long."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers.normalizers import Normalizer
from tokenizers.pre_tokenizers import PreTokenizer
from transformers import AutoTokenizer

from colakit.data.tokenizer import SentenceTokenizer, save_tokenizer
from colakit.data.tokenizer_files import check_rules
from colakit.errors import ColakitError

SENTENCES = ("The cats sleep.", "the  CAT <|end|> café 12345", "naïve\t''\n")
VOCAB = {"[UNK]": 0, "cat": 1, "the": 2, "##s": 3, "<|end|>": 4, "The": 5, "▁the": 6}
GPT4 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)


def word_piece(pre_tokenizer: PreTokenizer | None = None, normalizer: Normalizer | None = None) -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(VOCAB, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizer or pre_tokenizers.Whitespace()
    tokenizer.normalizer = normalizer or normalizers.NFC()
    return tokenizer


def unigram() -> Tokenizer:
    tokenizer = Tokenizer(models.Unigram([("[UNK]", 0.0), ("<|end|>", 0.0), ("▁the", -1.0)], unk_id=0))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    return tokenizer


def split(pattern: str) -> Tokenizer:
    return word_piece(pre_tokenizers.Split(Regex(pattern), "isolated"))


KINDS = {
    "WordPiece": word_piece(normalizer=normalizers.BertNormalizer()),
    "Unigram": unigram(),
    "WordLevel": Tokenizer(models.WordLevel(VOCAB, unk_token="[UNK]")),
    "pattern of GPT-4": split(GPT4),
    "replacement": word_piece(normalizer=normalizers.Replace(" ", "▁")),
}


def folder_of(tokenizer: Tokenizer, folder: Path, kind: str = "PreTrainedTokenizerFast") -> Path:
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": kind, "eos_token": "<|end|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        *((name, "PreTrainedTokenizerFast") for name in KINDS),
        ("WordPiece", "BertTokenizer"),
        ("WordPiece", "NotInTransformers"),
    ],
)
def test_ids_equal_those_of_transformers(name: str, kind: str, tmp_path: Path) -> None:
    folder = folder_of(KINDS[name], tmp_path, kind)
    reference = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    tokenizer = SentenceTokenizer.from_base(folder)
    tokens = tokenizer.encode(SENTENCES)
    for i, sentence in enumerate(SENTENCES):
        assert tokens.sentence(i).tolist() == reference(sentence, add_special_tokens=False).input_ids
    assert tokenizer.end_of_text_id == reference.eos_token_id


@pytest.mark.parametrize("name", KINDS)
def test_a_saved_tokenizer_gives_the_same_ids(name: str, tmp_path: Path) -> None:
    tokenizer = SentenceTokenizer.from_base(folder_of(KINDS[name], tmp_path))
    save_tokenizer(tokenizer, tmp_path / "saved", max_tokens=8)
    saved = SentenceTokenizer.from_base(tmp_path / "saved")
    assert saved.encode(SENTENCES).ids.tolist() == tokenizer.encode(SENTENCES).ids.tolist()
    assert saved.fingerprint() == tokenizer.fingerprint()


@pytest.mark.parametrize(
    "pattern",
    [
        *("(a+)+$", "(a|a)*$", "(.*){9}x", r"(a*)\1", ".*.*.*x", r"[a-z]+\w+\d{2,}x"),
        *(".?" * 20 + "x", "(?:.|a)" * 20 + "x", ".{0,9}" * 9 + "x", "(.*|x)(.*|x)(.*|x)y", "(.?(.??x)?){1}"),
        *(".{0,5000}", "(.?|..?)(.?|..?)(.?|..?)(.?|..?)(.?|..?)(.?|..?)x"),
    ],
)
def test_a_pattern_that_may_take_exponential_time_is_refused(pattern: str, tmp_path: Path) -> None:
    with pytest.raises(ColakitError, match=r"tokenizer.json: pre_tokenizer: .* may take exponential time"):
        SentenceTokenizer.from_base(folder_of(split(pattern), tmp_path))


@pytest.mark.parametrize(
    "pattern",
    [
        r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
        GPT4,
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{M}]*[\p{Ll}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\s+(?!\S)",
        r"[!#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+| ?[\p{P}\p{S}]+[\r\n]*|\s+",
    ],
)
def test_patterns_of_known_models_are_accepted(pattern: str, tmp_path: Path) -> None:
    tokenizer = SentenceTokenizer.from_base(folder_of(split(pattern), tmp_path))
    assert len(tokenizer.encode(["The cat's 123 (mice)."]).ids)


LENGTHENING: dict[str, Normalizer] = {
    **{
        f"replacements of {kind}": normalizers.Sequence([normalizers.Replace(replaced, "a" * 9)] * 3)
        for kind, replaced in {"a text": "a", "nothing": "", "a pattern": Regex("a")}.items()
    },
    "a prefix": normalizers.Prepend("a" * 100),
    "prefixes": normalizers.Sequence([normalizers.Prepend("a" * 9)] * 3),
    "bytes": normalizers.Sequence([normalizers.ByteLevel()] * 30),
}


@pytest.mark.parametrize("name", LENGTHENING)
def test_rules_that_multiply_the_text_are_refused(name: str, tmp_path: Path) -> None:
    folder = folder_of(word_piece(normalizer=LENGTHENING[name]), tmp_path)
    with pytest.raises(ColakitError, match="normalizer: rules may lengthen a text more than 64 times"):
        SentenceTokenizer.from_base(folder)


def test_a_table_that_multiplies_the_text_is_refused() -> None:
    trie, text = bytes(8), b"a" * 100 + b"\0"
    table = base64.b64encode(len(trie).to_bytes(4, "little") + trie + text).decode()
    with pytest.raises(ValueError, match="it replaces a character by more than 64 bytes"):
        check_rules({"type": "Precompiled", "precompiled_charsmap": table})


@pytest.mark.parametrize("rule", [normalizers.Replace(Regex("x*"), "y"), decoders.Strip("a", 0, 1)])
def test_rules_on_which_the_library_panics_are_refused(
    rule: Normalizer | decoders.Decoder, tmp_path: Path
) -> None:
    tokenizer = word_piece()
    part = "normalizer" if isinstance(rule, Normalizer) else "decoder"
    setattr(tokenizer, part, rule)
    with pytest.raises(ColakitError, match=rf"tokenizer\.json: {part}: a .* must not"):
        SentenceTokenizer.from_base(folder_of(tokenizer, tmp_path))


@pytest.mark.parametrize(
    "tokens",
    [
        {"pad_token": {"__type": "AddedToken", "content": "x", "\x1b[31m": 1}},
        {"added_tokens_decoder": {"3": {"content": "x", "\x1b[31m": 1}}},
        {"additional_special_tokens": [{"content": "x", "\x1b[31m": 1}]},
    ],
)
def test_unknown_fields_of_tokens_are_refused_and_not_printed(
    tokens: dict[str, Any], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = folder_of(word_piece(), tmp_path) / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **tokens}))
    with pytest.raises(ColakitError, match=r"tokenizer_config\.json: .*x1b\[31m.* is not a field of a token"):
        SentenceTokenizer.from_base(tmp_path)
    assert "".join(capfd.readouterr()) == ""


def test_a_decoder_that_fails_is_named() -> None:
    tokenizer = Tokenizer(models.WordLevel({"a": 0}, unk_token="a"))
    tokenizer.decoder = decoders.Strip("a", 0, 10)
    with pytest.raises(ColakitError, match=r"tokenizer: cannot be read .*index out of bounds"):
        SentenceTokenizer(tokenizer, 0).decode([0])


def test_ids_of_a_template_beyond_the_vocabulary_count(tmp_path: Path) -> None:
    tokenizer = word_piece()
    tokenizer.post_processor = processors.BertProcessing(("<|end|>", 10**6), ("The", 5))
    assert SentenceTokenizer.from_base(folder_of(tokenizer, tmp_path), template=True).vocab_size == 10**6 + 1


def test_a_template_of_many_tokens_is_refused(tmp_path: Path) -> None:
    tokenizer = word_piece()
    tokenizer.post_processor = processors.TemplateProcessing("<|end|> " * 500 + "$A", None, [("<|end|>", 1)])
    with pytest.raises(ColakitError, match=r"tokenizer\.json: post_processor: has more than 256 values"):
        SentenceTokenizer.from_base(folder_of(tokenizer, tmp_path), template=True)


def test_a_class_that_wants_another_package_is_named(tmp_path: Path) -> None:
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "T5Tokenizer"}')
    (tmp_path / "spiece.model").write_bytes(b"x")
    with pytest.raises(ColakitError, match=f"{tmp_path}: cannot be read"):
        SentenceTokenizer.from_base(tmp_path)
