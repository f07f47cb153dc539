"""Bits per byte of running text under a language model.

Unlike the loss per token, bits per byte compare models with different vocabularies. Every token is predicted
once, from the tokens before it in its slice of `num_positions` tokens.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from colakit.data.running_text import Vocabulary, encode_text
from colakit.data.tokenizer import SentenceTokenizer
from colakit.data.windows import slices
from colakit.errors import ColakitError
from colakit.inference.forward import bits_per_byte
from colakit.models.gpt.model import GPT
from colakit.runtime.device import Compute
from colakit.utils.array_cache import ArrayCache


def measure_texts(
    model: GPT,
    tokenizer: SentenceTokenizer,
    texts: Mapping[str, Sequence[Path]],
    compute: Compute,
    arrays: ArrayCache,
) -> dict[str, float]:
    """Return text name -> bits per byte; the model must have been placed on `compute`.

    Args:
        texts: name -> its files.

    Raises:
        ColakitError: if the result is not finite.
    """
    vocabulary = Vocabulary.of(tokenizer)
    results = {}
    for name, files in texts.items():
        stream = encode_text(files, tokenizer, arrays)
        batches = slices(stream, vocabulary, model.config.num_positions, tokenizer.end_of_text_id)
        results[name] = bits_per_byte(model, batches, compute)
        if not math.isfinite(results[name]):
            raise ColakitError(f"{name}: bits per byte are {results[name]}", hint="Try --precision fp32.")
    return results
