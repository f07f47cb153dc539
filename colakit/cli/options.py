"""Command options: flags are generated from the settings they set, with their help and defaults."""

from __future__ import annotations

import inspect
import os
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, get_origin

import typer
from typer.core import TyperCommand, TyperOption

from colakit.api.session import Session
from colakit.config.resolve import resolve
from colakit.config.settings import describe_type, leaf_fields
from colakit.errors import EXIT_INTERRUPTED, ColakitError, nearest
from colakit.storage.output import Resume
from colakit.utils.console import Reporter, print_json

FIELDS = dict(leaf_fields())
BASE_AND_DATA = {"--base": "base", "--data": "data.path"}
SHARED_FLAGS = {"--seed": "seed", "--device": "device", "--precision": "precision"}
STUDENT_FLAGS = {
    "--student-base": "student.base",
    "--cell": "student.cell",
    "--hidden-size": "student.hidden_size",
    "--epochs": "student_training.epochs",
    "--lr": "student_training.lr",
    "--batch-size": "student_training.batch_size",
}
ResumeOption = Annotated[
    Resume,
    typer.Option(
        "--resume",
        metavar="[auto]",
        help="Continue the run in --out. With `auto`, start one if there is none.",
        show_default=False,
    ),
]


TextsArgument = Annotated[
    list[Path] | None,
    typer.Argument(metavar="TEXT…", help="Text files or folders (plain, .gz, .xz, .zst)."),
]


def _parse_seeds(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise ColakitError(
            f"--seeds {text}: must be whole numbers, separated by commas", hint="For example --seeds 0,1,2."
        ) from None


SeedsOption = Annotated[
    Sequence[int] | None,
    typer.Option(
        "--seeds",
        parser=_parse_seeds,
        metavar="0,1,2",
        help="Train one run for each seed, side by side, in --out/seed-0, seed-1 …; report mean ± sd.",
        show_default=False,
    ),
]


def _setting_parameter(flag: str, key: str, default: object) -> inspect.Parameter:
    """Return a text option; pydantic validates the value, so that all errors are reported at once."""
    field = FIELDS[key]
    shown = "" if default in (None, "", ()) else f" (default {_written(default)})"
    kind = describe_type(field.annotation)
    text: Any
    if field.annotation is bool:  # a switch; its opposite overrides a file
        names, kind, text = f"{flag}/--no-{flag.removeprefix('--')}", "", bool | None
    else:
        names, text = flag, list[str] | None if get_origin(field.annotation) is tuple else str | None
    option = typer.Option(names, help=f"{field.description}{shown}", metavar=kind, show_default=False)
    return inspect.Parameter(
        _parameter_name(flag),
        inspect.Parameter.KEYWORD_ONLY,
        default=None,
        annotation=Annotated[text, option],
    )


def _written(value: object) -> str:
    return ",".join(value) if isinstance(value, tuple) else str(value)


def _common_parameters() -> list[inspect.Parameter]:
    options: dict[str, tuple[Any, Any]] = {
        "config": (
            Path | None,
            typer.Option("--config", help="YAML file of the experiment, or `demo`.", metavar="FILE"),
        ),
        "assign": (
            list[str] | None,
            typer.Option(
                "--set", help="Any setting; repeatable.", metavar="SECTION.KEY=VALUE", show_default=False
            ),
        ),
        "out": (Path | None, typer.Option("--out", help="Folder to write to.", metavar="DIR")),
        "as_json": (bool, typer.Option("--json", help="One JSON object on stdout, all else on stderr.")),
        "dry_run": (
            bool,
            typer.Option("--dry-run", help="Check everything, print the plan and its time, write nothing."),
        ),
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


class _Parser(TyperCommand):
    """Warns if an option with one value is given twice, and suggests options for an unknown one."""

    flags: ClassVar[Mapping[str, str]] = {}

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the words after the name of the command; Typer silently takes the last of repeated values."""
        try:
            _, _, given = self.make_parser(ctx).parse_args(args=list(args))
        except Exception as error:
            unknown = getattr(error, "option_name", None)
            if hasattr(error, "possibilities") and (options := self._suggest(str(unknown))):
                error.message = f"No such option: {unknown}. Did you mean {' or '.join(options)}?"  # type: ignore[attr-defined]
                error.possibilities = None
            raise
        for option, times in Counter(given).items():
            takes_one = isinstance(option, TyperOption) and not (option.multiple or option.is_flag)
            if takes_one and times > 1:
                Reporter().warn(f"{option.opts[0]} was given {times} times; the last value is used")
        return super().parse_args(ctx, args)

    def _suggest(self, unknown: str) -> list[str]:
        """Return options like an unknown one: of the same setting, of these words, or spelt alike."""
        name = unknown.removeprefix("--").replace("-", "_")
        flag_of = {key: flag for flag, key in self.flags.items()}
        sections = {key.rpartition(".")[0] for key in flag_of}
        keys = [key.rpartition(".") for key in FIELDS]
        if same := ["".join(key) for key in keys if key[0] in sections and key[2] == name]:
            return [flag_of.get(key, f"--set {key}=VALUE") for key in same]
        options = [option for option in self.params if isinstance(option, TyperOption)]
        helps = {option.opts[0]: (option.help or "").lower() for option in options}
        words = set(name.split("_"))
        described = [flag for flag, text in helps.items() if words <= set(re.findall(r"\w+", text))]
        if described and len(words) > 1:
            return [min(described, key=lambda flag: len(helps[flag]))]  # the most specific help
        near = nearest(unknown, helps)
        return [near] if near else []


@dataclass(frozen=True)
class Command:
    """A command of the program, made by the decorator `command`.

    Attributes:
        name: after `colakit` or its group.
        callback: called by Typer with all options.
        help: text of `--help`.
        flags: flag -> dotted key of the setting it sets.
    """

    name: str
    callback: Callable[..., None]
    help: str
    flags: Mapping[str, str]

    def add_to(self, group: typer.Typer) -> None:
        """Register the command."""
        parser = type("Parser", (_Parser,), {"flags": self.flags})
        summary = self.help.partition("\n\n")[0]
        group.command(self.name, cls=parser, help=self.help, short_help=summary)(self.callback)


def command(
    name: str,
    flags: Mapping[str, str] | None = None,
    *,
    data_on_stdout: bool = False,
    config: str | None = None,
    defaults: Mapping[str, str] | None = None,
) -> Callable[[Callable[..., dict[str, Any] | None]], Command]:
    """Make a command of a function that takes a `Session` and its own options, and returns `--json` data.

    Args:
        flags: flag -> dotted key of the setting it sets.
        data_on_stdout: stdout carries data even without `--json`.
        config: default of `--config`.
        defaults: dotted key -> default of this command, if not that of the setting.
    """
    all_flags = {**(flags or {}), **SHARED_FLAGS}

    def register(function: Callable[..., dict[str, Any] | None]) -> Command:
        def callback(**options: Any) -> None:
            options["config"] = options["config"] or (Path(config) if config else None)
            session = _session(name, all_flags, options, data_on_stdout)
            try:
                result = function(session, **options)
            except KeyboardInterrupt:
                raise ColakitError("the command did not finish", exit_code=EXIT_INTERRUPTED) from None
            if session.dry_run:
                session.reporter.say("dry run: nothing was written")
            if session.as_json and result is not None and os.environ.get("RANK", "0") == "0":
                print_json(result)

        own = list(inspect.signature(function, eval_str=True).parameters.values())[1:]
        generated = [
            _setting_parameter(flag, key, (defaults or {}).get(key, FIELDS[key].default))
            for flag, key in all_flags.items()
        ]
        context = inspect.Parameter("context", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context)
        parameters = [context, *own, *generated, *_common_parameters()]
        callback.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        callback.__annotations__ = {p.name: p.annotation for p in parameters}
        paragraphs = inspect.cleandoc(function.__doc__ or "").split("\n\n")  # the terminal wraps them
        return Command(name, callback, "\n\n".join(" ".join(each.split()) for each in paragraphs), all_flags)

    return register


def _session(name: str, flags: Mapping[str, str], options: dict[str, Any], data_on_stdout: bool) -> Session:
    """Remove the common options and the flags of settings from `options`; return the session they define."""
    chosen = {key: (flag, _joined(options.pop(_parameter_name(flag)))) for flag, key in flags.items()}
    config, out, as_json = options.pop("config"), options.pop("out"), options.pop("as_json")
    if (like := options.get("like")) is not None:
        if config is not None:
            raise ColakitError(
                "--like with --config: --like takes the settings of its run", hint="Remove one of them."
            )
        config = like / "settings.yaml"
        if not config.is_file():
            raise ColakitError(
                f"--like {like}: is not a run (no settings.yaml)", hint="Give a run folder of distill."
            )
    if config is None and out is not None and options.get("resume", Resume.NEVER) is not Resume.NEVER:
        saved = out / "settings.yaml"
        config = saved if saved.is_file() else None
    resolved = resolve(
        flags={key: pair for key, pair in chosen.items() if pair[1] is not None},
        assignments=options.pop("assign") or (),
        config=config,
        command=options.pop("context").command_path,
    )
    reporter = Reporter(quiet=options.pop("quiet"), results_on_stderr=as_json or data_on_stdout)
    return Session(name, resolved, reporter, out, options.pop("dry_run"), as_json)


def _joined(value: str | bool | list[str] | None) -> str | bool | None:
    """Join the values of a repeatable flag by commas."""
    return ",".join(value) or None if isinstance(value, list) else value


def _parameter_name(flag: str) -> str:
    return flag.removeprefix("--").replace("-", "_")
