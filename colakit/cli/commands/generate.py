"""`colakit generate`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from colakit.api.session import Session
from colakit.cli.options import command
from colakit.errors import ColakitError
from colakit.utils.console import data_output

if TYPE_CHECKING:
    from colakit.data.tokenizer import SentenceTokenizer


@command(
    "generate",
    {
        "--base": "base",
        "--start-token": "start_token",
        "--max-new-tokens": "generate.max_new_tokens",
        "--temperature": "generate.temperature",
        "--top-k": "generate.top_k",
        "--top-p": "generate.top_p",
        "--num-samples": "generate.num_samples",
        "--dora": "lora.dora",
        "--rslora": "lora.rslora",
        "--init": "lora.init",
    },
    data_on_stdout=True,
)
def generate_command(
    session: Session,
    *,
    prompt: Annotated[str | None, typer.Option(help="Text to continue (default: stdin).")] = None,
    adapter: Annotated[
        str | None, typer.Option(help="Adapter folder, run folder or ckpt.pt to load on the base.")
    ] = None,
    rank: Annotated[
        int | None,
        typer.Option(min=1, help="Inject fresh adapters of this rank; they do not change the text."),
    ] = None,
) -> dict[str, Any]:
    """Continue a prompt with the base, or with an adapter on it."""
    return generate(session, prompt=prompt, adapter=adapter, rank=rank)


def generate(
    session: Session, *, prompt: str | None, adapter: str | None = None, rank: int | None = None
) -> dict[str, Any]:
    """Print the prompt with its continuation; return the texts."""
    import torch

    from colakit.data.delimited import read_text
    from colakit.inference.generation import generate_tokens
    from colakit.inference.language_models import load_language_model
    from colakit.models.lora import inject
    from colakit.training.model_setup import lora_config

    if adapter is not None and rank is not None:
        raise ColakitError(
            "--rank with --adapter: fresh adapters are for a plain base", hint="Remove one of them."
        )
    if rank is None:
        for key in ("lora.dora", "lora.rslora", "lora.init"):
            if session.resolved.was_typed(key):
                raise ColakitError(
                    f"{session.resolved.origins[key]} without --rank: is a variant of fresh adapters",
                    hint="Add --rank.",
                )
    settings = session.settings.generate
    if session.dry_run:
        return _plan(session, adapter, rank)
    model, tokenizer = load_language_model(
        adapter,
        session.settings.base,
        base_typed=session.resolved.was_typed("base"),
        start_token=session.settings.start_token,
    )
    if rank is not None:
        names = inject(model, lora_config(session.settings.lora, rank))
        session.reporter.say(f"injected fresh adapters of rank {rank} into {len(names)} layers")
    text = prompt
    if text is None:
        encoding = session.settings.data.encoding
        text = "".join(read_text(sys.stdin.buffer, "stdin", encoding)).rstrip("\r\n")
    session.compute.place(model.requires_grad_(False)).eval()
    ids = tokenizer.encode([text]).ids.astype("int64")  # an empty prompt becomes the end-of-text token
    if len(ids) > model.config.num_positions:
        session.reporter.warn(
            f"the model reads the last {model.config.num_positions} of the prompt's {len(ids)} tokens"
        )
    generator = torch.Generator().manual_seed(session.settings.seed)
    tokens = generate_tokens(
        model,
        torch.from_numpy(ids).repeat(settings.num_samples, 1),
        max_new_tokens=settings.max_new_tokens,
        compute=session.compute,
        temperature=settings.temperature,
        top_k=settings.top_k,
        top_p=settings.top_p,
        stop_id=tokenizer.end_of_text_id,
        generator=generator,
    )
    streaming = settings.num_samples == 1 and not session.as_json
    rows: list[list[int]] = [[] for _ in range(settings.num_samples)]
    stream = _Stream(tokenizer, text) if streaming else None
    for step in tokens:
        for row, token in zip(rows, step.tolist(), strict=True):
            row.append(token)
        if stream is not None:
            stream.update(rows[0])
    texts = [text + tokenizer.decode(row) for row in rows]
    if stream is not None:
        stream.finish(rows[0])
    elif not session.as_json:
        data_output().write("\n---\n".join(texts) + "\n")
    return {"prompt": text, "texts": texts, "seed": session.settings.seed}


def _plan(session: Session, adapter: str | None, rank: int | None) -> dict[str, Any]:
    """Print the plan; reads only the configuration of the base."""
    from colakit.models.gpt.model import GPT
    from colakit.models.lora import inject
    from colakit.models.meta_device import without_weights
    from colakit.storage.gpt2 import plan_config
    from colakit.training.model_setup import lora_config

    if adapter is not None and not Path(adapter).expanduser().exists():
        raise ColakitError(
            f"--adapter {adapter}: not found", hint="Give an adapter folder, a run or a ckpt.pt."
        )
    plan: dict[str, Any] = {"max_new_tokens": session.settings.generate.max_new_tokens, "adapter": adapter}
    if adapter is None:
        with without_weights():
            model = GPT(plan_config(session.settings.base)).requires_grad_(False)
            if rank is not None:
                inject(model, lora_config(session.settings.lora, rank))
        plan["parameters"] = session.print_parameters(model)
    session.reporter.result(f"would add {plan['max_new_tokens']} tokens on {session.compute}")
    return plan


class _Stream:
    """Writes text token by token; incomplete characters wait for their remaining bytes."""

    def __init__(self, tokenizer: SentenceTokenizer, prompt: str) -> None:
        self.tokenizer, self.written, self.out = tokenizer, "", data_output()
        self.out.write(prompt)

    def update(self, ids: list[int]) -> None:
        text = self.tokenizer.decode(ids).rstrip("\ufffd")
        if text.startswith(self.written):
            self.out.write(text[len(self.written) :])
            self.out.flush()
            self.written = text

    def finish(self, ids: list[int]) -> None:
        self.out.write(self.tokenizer.decode(ids)[len(self.written) :] + "\n")
        self.out.flush()
