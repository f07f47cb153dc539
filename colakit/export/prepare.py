"""A classifier made ready for other programs: no adapter, calibrated logits, a padding token.

Pipelines take the softmax of the logits and its largest class. So the temperature is divided into the head,
and the threshold may be moved into a bias; softmax and argmax then give colakit's own answers.

Shapes: V tokens, D width, C classes.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import logit
from tokenizers import AddedToken, Tokenizer
from torch import Tensor, nn

from colakit.data.tokenizer import SentenceTokenizer
from colakit.errors import ColakitError
from colakit.inference.classifier import SentenceClassifier
from colakit.models.gpt.model import GPTClassifier
from colakit.models.lora import merge_and_unload
from colakit.models.rnn.model import DistilRNN

PADDING = "<|padding|>"


@dataclass(frozen=True)
class PreparedModel:
    """A classifier as it is exported.

    Attributes:
        classifier: fp32, on the CPU, without adapters; its temperature is 1.
        pad_id: token that pads sentences; it never ends one.
        temperature: divided into the head.
        folded_threshold: moved into a bias; None leaves the threshold to the reader of the files.
        shift: (C,), to add to the logits in ONNX, if no bias of the model could take the threshold.
    """

    classifier: SentenceClassifier
    pad_id: int
    temperature: float
    folded_threshold: float | None = None
    shift: Tensor | None = None

    def expected(self, logits: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the logits (N, C) that the files must give where the original has `logits`."""
        scaled = logits / np.float32(self.temperature)
        return scaled if self.folded_threshold is None else scaled + _shift(self.folded_threshold)


def prepare(
    original: SentenceClassifier, *, fold_threshold: bool = False, needs_bias: bool = False
) -> PreparedModel:
    """Return a copy of a classifier as it is exported.

    Args:
        fold_threshold: move the threshold into a bias.
        needs_bias: whether a bias of the model must take it, for transformers; ONNX's graph can have its own.

    Raises:
        ColakitError: if there is no threshold to move, or no bias to take it.
    """
    classifier = replace(original, model=deepcopy(original.model).float().cpu().eval(), lora=None)
    classifier.model.requires_grad_(False)
    merge_and_unload(classifier.model)
    classifier.model.requires_grad_(False)
    pad_id = classifier.tokenizer.end_of_text_id
    if isinstance(classifier.model, GPTClassifier) and _ends_with(classifier.tokenizer, pad_id):
        classifier, pad_id = _with_padding_token(classifier, classifier.model)
    head, temperature, threshold = classifier.model.score, original.temperature, original.threshold
    head.weight.data = head.weight / temperature
    if head.bias is not None:
        head.bias.data = head.bias / temperature
    prepared = PreparedModel(replace(classifier, temperature=1.0), pad_id, temperature)
    if not fold_threshold:
        return prepared
    if threshold is None or not 0 < threshold < 1:
        raise ColakitError(
            f"--fold-threshold: the model's threshold is {threshold}; it must be between 0 and 1",
            hint="Leave --fold-threshold out: without a threshold, the most probable label is predicted.",
        )
    shift = torch.from_numpy(_shift(threshold))
    folded = replace(classifier, temperature=1.0, threshold=0.5)
    rest = None if _add_to_bias(classifier.model, shift) else shift
    if rest is not None and needs_bias:
        raise ColakitError(
            "--fold-threshold: neither the head nor the final norm (RMSNorm) of this model has a bias",
            hint="Use --format onnx: its graph adds one.",
        )
    return PreparedModel(folded, pad_id, temperature, threshold, rest)


def _shift(threshold: float) -> NDArray[np.float32]:
    """Return what to add to the logits (2,) so that class 1 has probability 1/2 at the threshold."""
    half = float(logit(threshold)) / 2
    return np.array([half, -half], dtype=np.float32)


def _add_to_bias(model: GPTClassifier | DistilRNN, shift: Tensor) -> bool:
    """Add `shift` (C,) to the logits by a bias of the head or of the final norm; return whether it could."""
    if model.score.bias is not None:
        model.score.bias.data += shift
        return True
    norm = model.body.final_norm if isinstance(model, GPTClassifier) else None
    if not isinstance(norm, nn.LayerNorm):
        return False
    # the smallest change of the bias (D,) whose product with the head's weight (C, D) is the shift
    norm.bias.data += torch.linalg.pinv(model.score.weight.double()).matmul(shift.double()).float()
    return True


def _ends_with(tokenizer: SentenceTokenizer, token: int) -> bool:
    return bool(tokenizer.encode(["a"]).ids[-1] == token)


def _with_padding_token(
    classifier: SentenceClassifier, model: GPTClassifier
) -> tuple[SentenceClassifier, int]:
    """Add a padding token to the tokenizer, and a row to the embedding if it has none for it.

    transformers reads the last token that is not padding, so the end-of-text token cannot be both.
    """
    own = classifier.tokenizer
    backend = Tokenizer.from_str(own.backend.to_str())
    backend.add_special_tokens([AddedToken(PADDING, normalized=False, special=True)])
    tokenizer = SentenceTokenizer.from_dict({**own.to_dict(), "json": backend.to_str()})
    pad_id = backend.token_to_id(PADDING)
    assert pad_id is not None
    embedding = model.body.embedding
    if missing := max(0, pad_id + 1 - embedding.num_embeddings):
        zeros = embedding.weight.new_zeros(missing, embedding.embedding_dim)
        embedding.weight.data = torch.cat([embedding.weight, zeros])
        embedding.num_embeddings += missing
        model.config = model.body.config = replace(model.config, vocab_size=embedding.num_embeddings)
    return replace(classifier, tokenizer=tokenizer), pad_id
