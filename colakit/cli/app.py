"""The `colakit` command; torch is imported inside commands."""

from __future__ import annotations

import errno
import importlib
import os
import sys
from collections.abc import Sequence
from io import TextIOWrapper
from pathlib import Path
from typing import Annotated, Any

import typer

from colakit import __version__
from colakit.api.session import Resume, Session
from colakit.cli.options import command
from colakit.errors import EXIT_FAILED, ColakitError
from colakit.utils.console import print_error

BASE_AND_DATA = {"--base": "base", "--data": "data.path"}
STUDENT_FLAGS = {
    "--cell": "student.cell",
    "--hidden-size": "student.hidden_size",
    "--epochs": "student_training.epochs",
    "--lr": "student_training.lr",
    "--batch-size": "student_training.batch_size",
}

app = typer.Typer(
    name="colakit",
    help="Tune a pretrained GPT-2 with LoRA for sentence classification, and distil it into a small RNN.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
data_app = typer.Typer(help="Fetch CoLA; write the built-in corpus; check any.", no_args_is_help=True)
config_app = typer.Typer(help="Show the resolved settings; print their schema.", no_args_is_help=True)
app.add_typer(data_app, name="data")
app.add_typer(config_app, name="config")

ResumeOption = Annotated[
    Resume,
    typer.Option(
        "--resume",
        metavar="[auto]",
        help="Continue the run in --out; with `auto`, begin one if there is none to continue.",
        show_default=False,
    ),
]


def _run(session: Session, module: str, function: str = "run", **arguments: Any) -> None:
    run = getattr(importlib.import_module(f"colakit.{module}"), function)
    if "torch" in sys.modules:  # the command computes with it
        from colakit.runtime.device import prepare_cpu

        prepare_cpu()
    session.answer = run(session, **arguments)


@command(
    app,
    "generate",
    {
        "--base": "base",
        "--max-new-tokens": "generate.max_new_tokens",
        "--temperature": "generate.temperature",
        "--top-k": "generate.top_k",
        "--top-p": "generate.top_p",
        "--num-samples": "generate.num_samples",
    },
    data_on_stdout=True,
)
def generate(
    session: Session,
    *,
    prompt: Annotated[str | None, typer.Option(help="Text to continue; stdin where it is not given.")] = None,
    adapter: Annotated[
        str | None, typer.Option(help="Adapter folder, run folder or ckpt.pt to put on the base.")
    ] = None,
    rank: Annotated[
        int | None,
        typer.Option(min=1, help="Inject fresh adapters of this rank first; the text must not change."),
    ] = None,
) -> None:
    """Continue a prompt with the base model, or with an adapter on it."""
    _run(session, "cli.commands.generate", prompt=prompt, adapter=adapter, rank=rank)


@command(
    app,
    "pretrain",
    {
        "--objective": "pretrain.objective",
        "--init-from": "pretrain.init_from",
        "--tokenizer": "pretrain.tokenizer",
        "--vocab-size": "pretrain.vocab_size",
        "--num-layers": "pretrain.num_layers",
        "--width": "pretrain.width",
        "--num-heads": "pretrain.num_heads",
        "--num-positions": "pretrain.num_positions",
        "--window": "pretrain.window",
        "--tokens": "pretrain.tokens",
        "--optimizer": "pretrain.optimizer",
        "--lr": "pretrain.lr",
        "--batch-size": "pretrain.batch_size",
        "--sentences": "real_fake.sentences",
    },
)
def pretrain(
    session: Session,
    *,
    texts: Annotated[
        list[Path] | None,
        typer.Argument(metavar="TEXT…", help="Text files or folders (plain, .gz, .xz)."),
    ] = None,
    resume: ResumeOption = Resume.NEVER,
) -> None:
    """Pre-train a GPT-2 base on running text; --objective real-fake is a second stage."""
    _run(session, "api.pretrain", "pretrain", texts=texts or [], resume=resume)


@command(
    app,
    "finetune",
    {
        **BASE_AND_DATA,
        "--objective": "finetune.objective",
        "--method": "finetune.method",
        "--rank": "lora.rank",
        "--alpha": "lora.alpha",
        "--lora-dropout": "lora.dropout",
        "--target-modules": "lora.target_modules",
        "--layers-to-transform": "lora.layers_to_transform",
        "--epochs": "finetune.epochs",
        "--lr": "finetune.lr",
        "--batch-size": "finetune.batch_size",
    },
)
def finetune(
    session: Session,
    *,
    folds: Annotated[
        int | None,
        typer.Option(
            min=2,
            max=1000,
            metavar="K",
            help="Tune K models, each without one fold of train, side by side; --out/fold-1 to fold-K.",
        ),
    ] = None,
    resume: ResumeOption = Resume.NEVER,
) -> None:
    """Tune the base with LoRA: to label sentences, or to write some like those of train.

    With --folds, K runs are trained in processes of their own: as many side by side as there are cores
    (OMP_NUM_THREADS is the threads of each), on a GPU one after the other. Then every sentence of train is
    judged by the model that has not seen it.
    """
    _run(session, "api.finetune", resume=resume, num_folds=folds)


@command(
    app,
    "distill",
    {
        "--teacher": "distill.teacher",
        "--transfer-size": "transfer.size",
        "--transfer-text": "transfer.text",
        "--temperature": "distill.temperature",
        "--kd-weight": "distill.kd_weight",
        **STUDENT_FLAGS,
        **BASE_AND_DATA,
    },
)
def distill(session: Session, *, resume: ResumeOption = Resume.NEVER) -> None:
    """Train a small recurrent student to answer as its teacher does."""
    _run(session, "api.distill", resume=resume)


@command(app, "train-scratch", {**STUDENT_FLAGS, **BASE_AND_DATA})
def train_scratch(session: Session, *, resume: ResumeOption = Resume.NEVER) -> None:
    """Train the same student on the labels alone: the control that distilling has to beat."""
    _run(session, "api.train_scratch", resume=resume)


@command(
    app,
    "evaluate",
    {
        **BASE_AND_DATA,
        "--split": "evaluate.splits",
        "--batch-size": "evaluate.batch_size",
        "--group-by": "evaluate.group_by",
        "--annotations": "evaluate.annotations",
    },
)
def evaluate(
    session: Session,
    *,
    models: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="MODEL…",
            help="Runs, ckpt.pt files, adapters; with --pairs or --text bases too.",
        ),
    ] = None,
    pairs: Annotated[
        list[Path] | None,
        typer.Option(
            help="Minimal pairs, JSON lines with `sentence_good` and `sentence_bad` (.jsonl, .gz, .xz), or a "
            "folder of them; repeatable.",
            metavar="FILE",
            show_default=False,
        ),
    ] = None,
    text: Annotated[
        list[Path] | None,
        typer.Option(
            help="Running text (plain, .gz, .xz) or a folder of it, to measure in bits per byte; repeatable.",
            metavar="FILE",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Measure any number of models on any splits, side by side; with --pairs or --text, as language models.

    Where neither --data nor --config names data, it is the data that the models were trained on. Students
    whose teachers are among the models are compared with them. --group-by source and --annotations FILE
    report parts of a split apart; with --out they are also drawn.

    With --pairs, nothing is tuned: a model is right about a pair where it gives the acceptable sentence the
    higher log-probability. With --text, it is the bits a byte of running text takes. In both, the base is
    scored where it is named or no MODEL is.
    """
    if pairs and text:
        raise ColakitError("--pairs with --text: they are measured apart", hint="Leave one of them out.")
    if text:
        _run(session, "evaluation.bits_per_byte", models=models or [], texts=text)
    elif pairs:
        _run(session, "api.evaluate_pairs", models=models or [], pairs=pairs)
    elif models:
        _run(session, "api.evaluate", models=models)
    else:
        raise ColakitError(
            "evaluate: no MODEL is named",
            hint="Give run folders, ckpt.pt files or adapters; or minimal pairs (--pairs), or text (--text).",
        )


@command(app, "plot", {"--format": "plot.format"})
def plot(
    session: Session, *, runs: Annotated[list[Path], typer.Argument(metavar="RUN…", help="Run folders.")]
) -> None:
    """Draw the curves of run folders, and compare them."""
    _run(session, "cli.commands.plot", runs=runs)


@command(app, "predict", {"--base": "base", "--batch-size": "predict.batch_size"}, data_on_stdout=True)
def predict(
    session: Session,
    *,
    model: Annotated[str, typer.Option(help="ckpt.pt, run folder or adapter folder.")],
    file: Annotated[
        Path | None, typer.Argument(help="A sentence a line; stdin where it is not given or `-`.")
    ] = None,
    jsonl: Annotated[bool, typer.Option("--jsonl", help="JSON lines instead of TSV.")] = False,
) -> None:
    """Label sentences, with probabilities."""
    _run(session, "cli.commands.predict", model=model, file=file, jsonl=jsonl)


@command(app, "demo", dict(BASE_AND_DATA), config="demo")
def demo(session: Session) -> None:
    """Show the whole pipeline on the embedded base and corpus, in minutes and without a network."""
    _run(session, "cli.commands.demo")


@command(data_app, "fetch")
def data_fetch(session: Session) -> None:
    """Download CoLA into the cache, verified file by file."""
    _run(session, "cli.commands.data", action="fetch")


@command(data_app, "check", {"--data": "data.path"})
def data_check(
    session: Session,
    *,
    strict: Annotated[bool, typer.Option("--strict", help="Fail where there is a warning.")] = False,
) -> None:
    """Count a corpus: labels, majority rates, duplicates, contradictions, overlap between splits."""
    _run(session, "cli.commands.data", action="check", strict=strict)


@command(data_app, "write", {"--data": "data.path"})
def data_write(session: Session) -> None:
    """Write the built-in corpus into --out: CoLA's three files, and the minimal pairs of its dev splits."""
    _run(session, "cli.commands.data", action="write")


@command(config_app, "show", dict(BASE_AND_DATA))
def config_show(session: Session) -> None:
    """Print the resolved settings as YAML, with where each value came from."""
    _run(session, "cli.commands.config", action="show")


@command(config_app, "schema")
def config_schema(session: Session) -> None:
    """Print the JSON Schema of the settings."""
    _run(session, "cli.commands.config", action="schema")


@command(app, "doctor", dict(BASE_AND_DATA))
def doctor(session: Session) -> None:
    """Tell versions, device, precision and why, threads, caches, and what of the network answers."""
    _run(session, "cli.commands.doctor")


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"colakit {__version__}")
        raise typer.Exit()


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


def with_bare_resume(arguments: Sequence[str]) -> list[str]:
    """Write a `--resume` that no mode follows as `--resume=always`: typer's options always take a value."""
    modes = {mode.value for mode in Resume}
    following = [*arguments[1:], ""]  # one too many where there are none at all
    return [
        f"--resume={Resume.ALWAYS.value}" if word == "--resume" and after not in modes else word
        for word, after in zip(arguments, following, strict=False)
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code; known faults are printed without a traceback."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # whatever the locale says: sentences hold any letter
            stream.reconfigure(encoding="utf-8", errors=stream.errors)
    try:
        app(args=with_bare_resume(sys.argv[1:] if arguments is None else arguments), prog_name="colakit")
    except ColakitError as error:
        if os.environ.get("RANK", "0") == "0":  # under torchrun one process speaks for all
            print_error(error.message, error.hint)
        return error.exit_code
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        print_error(f"{error.filename or 'stdout'}: {error.strerror}", "Make room and run it again.")
        return EXIT_FAILED
    except SystemExit as finished:
        return finished.code if isinstance(finished.code, int) else int(bool(finished.code))
    return 0


if __name__ == "__main__":
    sys.exit(main())
