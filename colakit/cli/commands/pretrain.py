"""`colakit pretrain`."""

from __future__ import annotations

from typing import Any

from colakit.api.session import Session
from colakit.cli.options import ResumeOption, TextsArgument, command
from colakit.storage.output import Resume


@command(
    "pretrain",
    {
        "--objective": "pretrain.objective",
        "--init-from": "pretrain.init_from",
        "--tokenizer": "pretrain.tokenizer",
        "--vocab-size": "pretrain.vocab_size",
        "--family": "pretrain.family",
        "--num-layers": "pretrain.num_layers",
        "--width": "pretrain.width",
        "--num-heads": "pretrain.num_heads",
        "--num-kv-heads": "pretrain.num_kv_heads",
        "--num-positions": "pretrain.num_positions",
        "--window": "pretrain.window",
        "--tokens": "pretrain.tokens",
        "--optimizer": "pretrain.optimizer",
        "--lr": "pretrain.lr",
        "--batch-size": "pretrain.batch_size",
        "--sentences": "real_fake.sentences",
        "--track": "track",
    },
)
def pretrain_command(
    session: Session,
    *,
    texts: TextsArgument = None,
    resume: ResumeOption = Resume.NEVER,
) -> dict[str, Any]:
    """Pre-train a GPT-2 or Llama base on running text; --objective real-fake is a second stage."""
    from colakit.api.pretrain import pretrain

    return pretrain(session, texts=texts or [], resume=resume)
