"""The program `colakit`. Torch is imported inside commands, so that `--help` is fast."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Sequence
from io import TextIOWrapper
from typing import Annotated

import typer
from typer.exceptions import TyperException

from colakit import __version__
from colakit.cli.commands.baseline import baseline_command
from colakit.cli.commands.config import (
    config_reference_command,
    config_schema_command,
    config_show_command,
)
from colakit.cli.commands.data import (
    data_check_command,
    data_corrupt_command,
    data_fetch_command,
    data_write_command,
)
from colakit.cli.commands.demo import demo_command
from colakit.cli.commands.distill import distill_command
from colakit.cli.commands.doctor import doctor_command
from colakit.cli.commands.evaluate import evaluate_command
from colakit.cli.commands.export import export_command
from colakit.cli.commands.finetune import finetune_command
from colakit.cli.commands.generate import generate_command
from colakit.cli.commands.plot import plot_command
from colakit.cli.commands.predict import predict_command
from colakit.cli.commands.pretrain import pretrain_command
from colakit.cli.commands.report import report_command
from colakit.cli.commands.serve import serve_command
from colakit.cli.commands.sweep import sweep_command
from colakit.cli.commands.train_scratch import train_scratch_command
from colakit.errors import EXIT_FAILED, EXIT_USAGE, ColakitError, plain_rule
from colakit.storage.output import Resume
from colakit.utils.console import print_error

PATH_FAULTS = (  # of paths that are given or recorded
    *(errno.ENAMETOOLONG, errno.ELOOP, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.EACCES, errno.EROFS),
)

app = typer.Typer(
    name="colakit",
    help="Fine-tune GPT-2 or Llama with LoRA for sentence classification; distil it into a small RNN.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # rich's tables cut long names
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
GROUPS = {
    "data": "Fetch CoLA, write the built-in corpus, check a corpus.",
    "config": "Show the resolved settings, their schema or their reference.",
}
groups = {
    name: typer.Typer(help=text, short_help=text, no_args_is_help=True) for name, text in GROUPS.items()
}
for _name, _group in groups.items():
    app.add_typer(_group, name=_name)
COMMANDS = {  # group, empty for none -> its commands
    "": (
        *(generate_command, pretrain_command, finetune_command, distill_command, train_scratch_command),
        baseline_command,
        sweep_command,
        *(evaluate_command, plot_command, report_command, predict_command, export_command),
        *(serve_command, demo_command, doctor_command),
    ),
    "data": (data_fetch_command, data_check_command, data_corrupt_command, data_write_command),
    "config": (config_show_command, config_schema_command, config_reference_command),
}
for _name, _commands in COMMANDS.items():
    for _command in _commands:
        _command.add_to(groups.get(_name, app))


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
    """Write `--resume` without a mode as `--resume=always`: Typer options always take a value."""
    modes = {mode.value for mode in Resume}
    following = [*arguments[1:], ""]
    return [
        f"--resume={Resume.ALWAYS.value}" if word == "--resume" and after not in modes else word
        for word, after in zip(arguments, following, strict=False)
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code; expected errors are printed without a traceback."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # sentences may hold any letter, whatever the locale
            stream.reconfigure(encoding="utf-8", errors=stream.errors)
    words = with_bare_resume(sys.argv[1:] if arguments is None else arguments)
    try:
        _check_encoding(words)
        code = app(args=words, prog_name="colakit", standalone_mode=False)  # errors are raised
    except ColakitError as error:
        if os.environ.get("RANK", "0") == "0":  # under torchrun, one process prints
            print_error(error.message, error.hint, error.exit_code)
        return error.exit_code
    except TyperException as error:
        return _print_usage_error(error)
    except OSError as error:
        where = str(error.filename or "stdout")[:200]
        if error.errno == errno.ENOSPC:
            print_error(f"{where}: {error.strerror}", "Free disk space and run it again.")
            return EXIT_FAILED
        if error.errno not in PATH_FAULTS:
            raise
        print_error(f"{where}: {error.strerror}", "Check the path.")
        return EXIT_USAGE
    except SystemExit as finished:
        return finished.code if isinstance(finished.code, int) else int(bool(finished.code))
    return code if isinstance(code, int) else 0


def _check_encoding(words: Sequence[str]) -> None:
    """Raise `ColakitError` if an argument is not UTF-8: it could be written to no JSON or YAML file."""
    for word in words:
        try:
            word.encode("utf-8")
        except UnicodeEncodeError:
            raise ColakitError(
                f"argument {word[:80]!r}: is not UTF-8", hint="Rename the file, or write the text in UTF-8."
            ) from None


def _print_usage_error(error: TyperException) -> int:
    context = getattr(error, "ctx", None)
    hint = f"`{context.command_path} --help` lists arguments and options." if context else None
    if text := error.format_message():  # empty if a command without arguments printed its help
        print_error(plain_rule(text), hint)
    return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
