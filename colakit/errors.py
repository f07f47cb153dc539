"""`ColakitError`, the exception for user errors, and exit codes."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

EXIT_FAILED = 1  # the run itself failed
EXIT_USAGE = 2  # invalid usage, configuration or input; nothing was written
EXIT_INTERRUPTED = 130  # Ctrl-C

PLAIN_WORDS = {  # of pydantic and typer -> of this program
    r"^Value error, ": "",
    r", (unable to parse|unable to interpret|got a number with|not \d+$).*": "",
    r"(Input )?should be (a )?valid ": "must be a valid ",
    r"(Input )?should be ": "must be ",
    r"(String|Tuple|List|Dictionary) should have ": "must have ",
    r" after validation": "",
    r"a valid integer": "a whole number",
    r"a valid number": "a number",
    r"a valid boolean": "true or false",
    r"a valid string": "text",
    r"a valid (list|tuple|array)": "a list",
    r"a valid (dictionary|object)": "a mapping",
    r"(greater than or equal to|≥)": "at least",
    r"(less than or equal to|≤)": "at most",
}


class ColakitError(Exception):
    """An error that the user can fix; the command line prints it without a traceback.

    Args:
        message: *where: what was wrong (got X); what is allowed*.
        hint: how to fix it.
        exit_code: exit status of the process, one of the `EXIT_` constants.
    """

    def __init__(self, message: str, *, hint: str | None = None, exit_code: int = EXIT_USAGE) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.exit_code = exit_code

    def __str__(self) -> str:
        return f"{self.message}\n{self.hint}" if self.hint else self.message


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or its type if it has none."""
    text = str(error).strip()
    if text.startswith("Weights only load failed"):  # torch's advice on how to execute it anyway
        return "it must contain only tensors and plain data"
    return text.splitlines()[0][:160] if text else type(error).__name__


def plain_rule(message: str) -> str:
    """Return the rule that a library's message states, in the words of this program: `must be at least 2`."""
    for pattern, words in PLAIN_WORDS.items():
        message = re.sub(pattern, words, message)
    return message


def did_you_mean(wrong: str, allowed: Iterable[str]) -> str:
    """Return ` Did you mean X?` for the nearest allowed name, or a list of the allowed names."""
    names = list(allowed)
    if near := nearest(wrong, names):
        return f" Did you mean {near}?"
    return f" Allowed: {', '.join(names)}." if names else ""


def nearest(wrong: str, allowed: Iterable[str]) -> str | None:
    """Return the allowed name that is most like a wrong one; None if none is."""
    near = difflib.get_close_matches(wrong, list(allowed), n=1, cutoff=0.6)
    return near[0] if near else None
