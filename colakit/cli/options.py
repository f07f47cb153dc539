"""From settings to flags: how a command of the program is declared.

Flags are made from the settings they set, so that help, bounds and defaults stand in one place.
"""

from __future__ import annotations

import inspect
import os
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, get_origin

import typer
from typer.core import TyperCommand, TyperOption

from colakit.api.session import Resume, Session, saved_settings
from colakit.config.resolve import resolve
from colakit.config.settings import describe_type, leaf_fields
from colakit.errors import EXIT_INTERRUPTED, ColakitError
from colakit.utils.console import Reporter, print_json

FIELDS = dict(leaf_fields())
SHARED_FLAGS = {"--seed": "seed", "--device": "device", "--precision": "precision"}


def _setting_parameter(flag: str, key: str) -> inspect.Parameter:
    """A flag whose text goes to pydantic as it is, so that all faults are found at once and worded alike."""
    field = FIELDS[key]
    default = "" if field.default in (None, "", ()) else f" (default {_written(field.default)})"
    kind = describe_type(field.annotation)
    option = typer.Option(flag, help=f"{field.description}{default}", metavar=kind, show_default=False)
    text = list[str] | None if get_origin(field.annotation) is tuple else str | None
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


class _LastValueCounts(TyperCommand):
    """A command that says so where an option of one value has several: typer takes the last in silence."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the words behind the command's name."""
        _, _, given = self.make_parser(ctx).parse_args(args=list(args))
        for option, times in Counter(given).items():
            takes_one = isinstance(option, TyperOption) and not (option.multiple or option.is_flag)
            if takes_one and times > 1:
                said = f"{option.opts[0]} takes one value and was given {times}; the last one counts"
                Reporter().warn(said)
        return super().parse_args(ctx, args)


def command(
    group: typer.Typer,
    name: str,
    flags: Mapping[str, str] | None = None,
    *,
    data_on_stdout: bool = False,
    config: str | None = None,
) -> Callable[[Callable[..., None]], None]:
    """Register a command whose flags stand for settings.

    The function below it takes a `Session` and its own arguments, and hands them on to the command's module.

    Args:
        flags: flag -> dotted key of the setting.
        data_on_stdout: stdout carries data even without `--json`.
        config: what `--config` is where it is not given.
    """
    all_flags = {**(flags or {}), **SHARED_FLAGS}

    def register(function: Callable[..., None]) -> None:
        def callback(**options: Any) -> None:
            options["config"] = options["config"] or (Path(config) if config else None)
            session = _context(name, all_flags, options, data_on_stdout)
            try:
                function(session, **options)
            except KeyboardInterrupt:
                raise ColakitError("interrupted", exit_code=EXIT_INTERRUPTED) from None
            if session.as_json and session.answer is not None and os.environ.get("RANK", "0") == "0":
                print_json(session.answer)

        own = list(inspect.signature(function, eval_str=True).parameters.values())[1:]
        generated = [_setting_parameter(flag, key) for flag, key in all_flags.items()]
        parameters = [*own, *generated, *_common_parameters()]
        callback.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        callback.__annotations__ = {p.name: p.annotation for p in parameters}
        group.command(name, cls=_LastValueCounts, help=inspect.cleandoc(function.__doc__ or ""))(callback)

    return register


def _context(name: str, flags: Mapping[str, str], options: dict[str, Any], data_on_stdout: bool) -> Session:
    """Take the common options and the settings' flags out of `options`, and resolve them."""
    chosen = {key: (flag, _joined(options.pop(_parameter_name(flag)))) for flag, key in flags.items()}
    config, out, as_json = options.pop("config"), options.pop("out"), options.pop("as_json")
    if config is None and out is not None and options.get("resume", Resume.NEVER) is not Resume.NEVER:
        config = saved_settings(out)
    resolved = resolve(
        flags={key: pair for key, pair in chosen.items() if pair[1] is not None},
        assignments=options.pop("assign") or (),
        config=config,
    )
    reporter = Reporter(quiet=options.pop("quiet"), results_on_stderr=as_json or data_on_stdout)
    return Session(name, resolved, reporter, out, options.pop("dry_run"), as_json)


def _joined(value: str | list[str] | None) -> str | None:
    """A flag for several names takes them apart by commas, or one at a time."""
    return ",".join(value) or None if isinstance(value, list) else value


def _parameter_name(flag: str) -> str:
    return flag.removeprefix("--").replace("-", "_")
