"""The `colakit` command. Flags are made from the settings they set; torch is imported inside commands."""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from colakit import __version__
from colakit.console import Reporter, print_error, print_json
from colakit.context import Context, saved_settings
from colakit.errors import EXIT_INTERRUPTED, ColakitError
from colakit.loading import resolve
from colakit.settings import describe_type, leaf_fields

FIELDS = dict(leaf_fields())
SHARED_FLAGS = {"--seed": "seed", "--device": "device", "--precision": "precision"}
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
data_app = typer.Typer(help="Fetch CoLA; check a corpus.", no_args_is_help=True)
config_app = typer.Typer(help="Show the resolved settings; print their schema.", no_args_is_help=True)
app.add_typer(data_app, name="data")
app.add_typer(config_app, name="config")

Resume = Annotated[bool, typer.Option("--resume", help="Continue the run in --out.")]


def _setting_parameter(flag: str, key: str) -> inspect.Parameter:
    """A flag whose text goes to pydantic as it is, so that all faults are found at once and worded alike."""
    field = FIELDS[key]
    default = "" if field.default in (None, "", ()) else f" (default {_written(field.default)})"
    kind = describe_type(field.annotation)
    option = typer.Option(
        flag, help=f"{field.description}{default}", metavar=kind.upper(), show_default=False
    )
    return inspect.Parameter(
        _parameter_name(flag),
        inspect.Parameter.KEYWORD_ONLY,
        default=None,
        annotation=Annotated[str | None, option],
    )


def _written(value: object) -> str:
    return ",".join(value) if isinstance(value, tuple) else str(value)


def _common_parameters() -> list[inspect.Parameter]:
    options: dict[str, tuple[Any, Any]] = {
        "config": (
            Path | None,
            typer.Option("--config", help="YAML file of the experiment.", metavar="FILE"),
        ),
        "assign": (
            list[str] | None,
            typer.Option(
                "--set", help="Any setting; repeatable.", metavar="SECTION.KEY=VALUE", show_default=False
            ),
        ),
        "out": (Path | None, typer.Option("--out", help="Folder to write to.", metavar="DIR")),
        "as_json": (bool, typer.Option("--json", help="One JSON object on stdout, all else on stderr.")),
        "dry_run": (bool, typer.Option("--dry-run", help="Check everything, print the plan, touch nothing.")),
        "quiet": (bool, typer.Option("--quiet", help="Results, warnings and errors only.")),
    }
    return [
        inspect.Parameter(
            name,
            inspect.Parameter.KEYWORD_ONLY,
            default=False if kind is bool else None,
            annotation=Annotated[kind, option],
        )
        for name, (kind, option) in options.items()
    ]


def command(
    group: typer.Typer, name: str, flags: Mapping[str, str] | None = None, *, data_on_stdout: bool = False
) -> Callable[[Callable[..., None]], None]:
    """Register a command whose flags stand for settings.

    The function below it takes a `Context` and its own arguments, calls `context.run`, and has no other work.

    Args:
        flags: flag -> dotted key of the setting.
        data_on_stdout: stdout carries data even without `--json`.
    """
    all_flags = {**(flags or {}), **SHARED_FLAGS}

    def register(function: Callable[..., None]) -> None:
        def callback(**options: Any) -> None:
            context = _context(name, all_flags, options, data_on_stdout)
            try:
                function(context, **options)
            except KeyboardInterrupt:
                raise ColakitError("interrupted", exit_code=EXIT_INTERRUPTED) from None
            if context.as_json and context.answer is not None:
                print_json(context.answer)

        own = list(inspect.signature(function, eval_str=True).parameters.values())[1:]
        generated = [_setting_parameter(flag, key) for flag, key in all_flags.items()]
        parameters = [*own, *generated, *_common_parameters()]
        callback.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        callback.__annotations__ = {p.name: p.annotation for p in parameters}
        group.command(name, help=inspect.cleandoc(function.__doc__ or ""))(callback)

    return register


def _context(name: str, flags: Mapping[str, str], options: dict[str, Any], data_on_stdout: bool) -> Context:
    """Take the common options and the settings' flags out of `options`, and resolve them."""
    chosen = {key: (flag, options.pop(_parameter_name(flag))) for flag, key in flags.items()}
    config, out, as_json = options.pop("config"), options.pop("out"), options.pop("as_json")
    if config is None and out is not None and options.get("resume"):
        config = saved_settings(out)
    resolved = resolve(
        flags={key: pair for key, pair in chosen.items() if pair[1] is not None},
        assignments=options.pop("assign") or (),
        config=config,
    )
    reporter = Reporter(quiet=options.pop("quiet"), results_on_stderr=as_json or data_on_stdout)
    return Context(name, resolved, reporter, out, options.pop("dry_run"), as_json)


def _parameter_name(flag: str) -> str:
    return flag.removeprefix("--").replace("-", "_")


def _run(context: Context, module: str, **arguments: Any) -> None:
    context.answer = importlib.import_module(f"colakit.commands.{module}").run(context, **arguments)


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
    context: Context,
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
    _run(context, "generate", prompt=prompt, adapter=adapter, rank=rank)


@command(
    app,
    "finetune",
    {
        **BASE_AND_DATA,
        "--rank": "lora.rank",
        "--alpha": "lora.alpha",
        "--lora-dropout": "lora.dropout",
        "--target-modules": "lora.target_modules",
        "--epochs": "finetune.epochs",
        "--lr": "finetune.lr",
        "--batch-size": "finetune.batch_size",
    },
)
def finetune(context: Context, *, resume: Resume = False) -> None:
    """Tune the base with LoRA for classification."""
    _run(context, "finetune", resume=resume)


@command(
    app,
    "distill",
    {
        "--teacher": "distill.teacher",
        "--temperature": "distill.temperature",
        "--kd-weight": "distill.kd_weight",
        **STUDENT_FLAGS,
        **BASE_AND_DATA,
    },
)
def distill(context: Context, *, resume: Resume = False) -> None:
    """Train a small recurrent student to answer as its teacher does."""
    _run(context, "distill", resume=resume)


@command(app, "train-scratch", {**STUDENT_FLAGS, **BASE_AND_DATA})
def train_scratch(context: Context, *, resume: Resume = False) -> None:
    """Train the same student on the labels alone: the control that distilling has to beat."""
    _run(context, "train_scratch", resume=resume)


@command(
    app, "evaluate", {**BASE_AND_DATA, "--split": "evaluate.splits", "--batch-size": "evaluate.batch_size"}
)
def evaluate(
    context: Context,
    *,
    models: Annotated[list[str], typer.Argument(metavar="MODEL…", help="Runs, ckpt.pt files, adapters.")],
) -> None:
    """Measure any number of models on any splits, side by side."""
    _run(context, "evaluate", models=models)


@command(app, "plot", {"--format": "plot.format"})
def plot(
    context: Context, *, runs: Annotated[list[Path], typer.Argument(metavar="RUN…", help="Run folders.")]
) -> None:
    """Draw the curves of run folders, and compare them."""
    _run(context, "plot", runs=runs)


@command(app, "predict", {"--base": "base", "--batch-size": "predict.batch_size"}, data_on_stdout=True)
def predict(
    context: Context,
    *,
    model: Annotated[str, typer.Option(help="ckpt.pt, run folder or adapter folder.")],
    file: Annotated[
        Path | None, typer.Argument(help="A sentence a line; stdin where it is not given or `-`.")
    ] = None,
    jsonl: Annotated[bool, typer.Option("--jsonl", help="JSON lines instead of TSV.")] = False,
) -> None:
    """Label sentences, with probabilities."""
    _run(context, "predict", model=model, file=file, jsonl=jsonl)


@command(data_app, "fetch")
def data_fetch(context: Context) -> None:
    """Download CoLA into the cache, verified file by file."""
    _run(context, "data", action="fetch")


@command(data_app, "check", {"--data": "data.path"})
def data_check(
    context: Context,
    *,
    strict: Annotated[bool, typer.Option("--strict", help="Fail where there is a warning.")] = False,
) -> None:
    """Count a corpus: labels, majority rates, duplicates, contradictions, overlap between splits."""
    _run(context, "data", action="check", strict=strict)


@command(config_app, "show", dict(BASE_AND_DATA))
def config_show(context: Context) -> None:
    """Print the resolved settings as YAML, with where each value came from."""
    _run(context, "config", action="show")


@command(config_app, "schema")
def config_schema(context: Context) -> None:
    """Print the JSON Schema of the settings."""
    _run(context, "config", action="schema")


@command(app, "doctor", dict(BASE_AND_DATA))
def doctor(context: Context) -> None:
    """Tell versions, device, precision and why, threads, caches, and what of the network answers."""
    _run(context, "doctor")


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


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code; known faults are printed without a traceback."""
    try:
        app(args=None if arguments is None else list(arguments), prog_name="colakit")
    except ColakitError as error:
        print_error(error.message, error.hint)
        return error.exit_code
    except SystemExit as finished:
        return finished.code if isinstance(finished.code, int) else int(bool(finished.code))
    return 0


if __name__ == "__main__":
    sys.exit(main())
