"""Training a byte-level BPE tokenizer, and writing it as transformers keeps one."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from colakit.data.running_text import END_OF_TEXT
from colakit.data.tokens import SentenceTokenizer
from colakit.utils.files import replacing, write_json


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> SentenceTokenizer:
    """Learn a byte-level BPE vocabulary (Sennrich et al. 2016, arXiv:1508.07909; bytes as in GPT-2).

    Args:
        texts: what to learn from.
        vocab_size: tokens wanted, the 256 bytes and the end-of-text token included.
    """
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    end_of_text_id = backend.token_to_id(END_OF_TEXT)
    assert end_of_text_id is not None, "the trainer was given it"
    return SentenceTokenizer(backend, end_of_text_id)


def save_tokenizer(tokenizer: SentenceTokenizer, folder: Path, *, max_tokens: int) -> None:
    """Write tokenizer.json and tokenizer_config.json, which transformers' `AutoTokenizer` opens."""
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(folder / "tokenizer.json") as temporary:
        tokenizer.backend.save(str(temporary))
    end_of_text = tokenizer.backend.id_to_token(tokenizer.end_of_text_id)
    special = dict.fromkeys(("bos_token", "eos_token", "unk_token"), end_of_text)
    settings = {"tokenizer_class": "GPT2Tokenizer", "model_max_length": max_tokens, **special}
    write_json(folder / "tokenizer_config.json", settings)
