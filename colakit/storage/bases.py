"""Writing a base model of one's own, as the other commands and transformers open it."""

from __future__ import annotations

from pathlib import Path

import torch

from colakit.data.tokenizer import SentenceTokenizer, save_tokenizer
from colakit.models.gpt.model import Transformer
from colakit.storage.gpt2 import save_gpt


def write_base(body: Transformer, tokenizer: SentenceTokenizer, folder: Path) -> None:
    """Write a body, in bf16, and its tokenizer to `folder` in the transformers layout."""
    save_gpt(body.language_model(), folder, dtype=torch.bfloat16, end_of_text_id=tokenizer.end_of_text_id)
    save_tokenizer(tokenizer, folder, max_tokens=body.config.num_positions)
