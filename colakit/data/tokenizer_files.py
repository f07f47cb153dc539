"""Files of byte-level BPE tokenizers: tokenizer.json, vocab.json, merges.txt, and their special tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, RootModel, model_validator
from tokenizers import AddedToken

from colakit.utils.documents import Document, read_document, read_text

MAX_VALUES = 2**21
MAX_ADDED = 2**10  # each one added slows down the next
MAX_TOKEN = 2**10  # characters
MAX_BYTES = 2**24
END_OF_TEXT = "<|endoftext|>"


def _checked_vocabulary(vocab: dict[str, Any]) -> dict[str, int]:
    """Check types here, since pydantic would list a million faults."""
    for token, number in vocab.items():
        if type(number) is not int or not 0 <= number < len(vocab) + MAX_ADDED or len(token) > MAX_TOKEN:
            raise ValueError(
                f"{token[:40]!r} must have an id below the number of tokens (got {str(number)[:40]})"
            )
    return vocab


def pairs_of(merges: list[Any]) -> list[tuple[str, str]]:
    """Return merges, each written as text or as a pair, as pairs."""
    pairs = [tuple(merge.split(" ")) if isinstance(merge, str) else merge for merge in merges]
    for pair in pairs:
        if not isinstance(pair, (list, tuple)) or [type(part) for part in pair] != [str, str]:
            raise ValueError(f"must be pairs of tokens (got {str(pair)[:60]})")
    return [tuple(pair) for pair in pairs]


Vocabulary = Annotated[dict[str, Any], AfterValidator(_checked_vocabulary)]
TokenText = Annotated[str, Field(min_length=1, max_length=MAX_TOKEN)]


class AddedTokenEntry(Document):
    """A token that is matched before the text is split."""

    id: Annotated[int, Field(ge=0, lt=2**24)]
    content: TokenText
    single_word: bool = False
    lstrip: bool = False
    rstrip: bool = False
    normalized: bool = False
    special: bool = False

    def token(self) -> AddedToken:
        """Return it as the library's type."""
        return AddedToken(**self.model_dump(exclude={"id"}))


class ByteLevel(Document):
    """The splitting of text that GPT-2 has."""

    type: Literal["ByteLevel"]
    add_prefix_space: bool = False
    trim_offsets: bool = True
    use_regex: bool = True


class BPEModel(Document, extra="forbid"):
    """Vocabulary and merges."""

    type: Literal["BPE"] = "BPE"
    dropout: None = None
    unk_token: str | None = None
    continuing_subword_prefix: Literal[""] | None = None
    end_of_word_suffix: Literal[""] | None = None
    fuse_unk: bool = False
    byte_fallback: bool = False
    ignore_merges: bool = False
    vocab: Vocabulary
    merges: list[Any]  # checked by the library, or by `pairs_of`


class TokenizerFile(Document, extra="forbid"):
    """tokenizer.json of a byte-level BPE; whatever runs other rules or patterns on text is refused."""

    version: str | None = None
    truncation: dict[str, Any] | None = None
    padding: dict[str, Any] | None = None
    added_tokens: Annotated[list[AddedTokenEntry], Field(max_length=MAX_ADDED)] = Field([])
    normalizer: None = None
    pre_tokenizer: ByteLevel
    post_processor: dict[str, Any] | None = None
    decoder: ByteLevel
    model: BPEModel

    @model_validator(mode="after")
    def _ids_are_dense(self) -> TokenizerFile:
        """Embeddings have a row per token, so each id must be a row."""
        ids = {**self.model.vocab, **{entry.content: entry.id for entry in self.added_tokens}}
        if not ids or (largest := max(ids.values())) >= len(ids):
            raise ValueError(
                f"ids must be below the number of tokens, {len(ids):,} (got {largest if ids else None})"
            )
        return self


class VocabularyFile(RootModel[Vocabulary]):
    """vocab.json: token -> id."""

    model_config = ConfigDict(strict=True)


class TokenizerState(Document):
    """A tokenizer in a model file."""

    json_: str = Field(alias="json")
    end_of_text_id: Annotated[int, Field(ge=0)]
    prefix: bool
    suffix: bool


def _content(token: Any) -> Any:
    return token.get("content") if isinstance(token, dict) else token


class SpecialTokens(Document):
    """What tokenizer_config.json or special_tokens_map.json says."""

    eos_token: Annotated[TokenText, BeforeValidator(_content)] = END_OF_TEXT
    add_prefix_space: bool = False


def read_special_tokens(folder: Path) -> SpecialTokens:
    """Return the special tokens of a base's folder; those of GPT-2 if no file names any."""
    tokens = SpecialTokens()
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        if (folder / name).is_file():
            given = read_document(folder / name, SpecialTokens)
            tokens = tokens.model_copy(update=given.model_dump(exclude_unset=True))
    return tokens


def read_merges(path: Path) -> list[str]:
    """Return the merges of merges.txt.

    Raises:
        DocumentError: if it is missing, too large or not text.
    """
    text = read_text(path, MAX_BYTES)
    lines = [line for line in text.split("\n") if line and not line.startswith("#version")]
    return [line.rstrip("\r") for line in lines]
