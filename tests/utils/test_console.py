"""Texts of others on a terminal: control characters are escaped, and nothing is mark-up."""

from __future__ import annotations

import io
import json
import re
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from colakit.utils.console import Reporter, data_output, print_error, print_json
from colakit.utils.text import printable

NAMES = [
    *("\x1b[31mred", "\x1b]0;title\x07", "\r\x1b[2K", "\x9b31m", "\0", "\x7f", "a\tb"),
    *("[/x]", "[bold]", "[", "\\", "\\\\", "a\\[/x]", ":cat:", "$x$", "{0}", "%s"),
    *(
        "\u202eright",
        "\u2066",
        "\u2028",
        "\ufeff",
        "\ud800",
        "\U000e0041",
        "é\u0301 \u0645\u0627\u200c\u0647\u0627 漢字 😀",
    ),
]
RICH = re.compile(r"\r?\x1b\[[0-9;?]*[A-Za-z]")  # styles and cursor movements that rich itself prints
SAFE = "\n\u200c\u200d"


def is_invisible(character: str) -> bool:
    return unicodedata.category(character) in ("Cc", "Cf", "Cs", "Zl", "Zp") and character not in SAFE


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def a_terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """Make stdout and stderr one wide terminal (in the test itself: pytest sets them after the fixtures)."""
    stream = Terminal()
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "200")
    for name in ("sys.stdout", "sys.stderr"):
        monkeypatch.setattr(name, stream)
    return stream


def assert_shown(terminal: Terminal, *texts: str) -> None:
    """Check that the terminal shows `texts`, and received no control characters but rich's own."""
    for text in texts:
        assert printable(text) in terminal.getvalue()
    plain = RICH.sub("", terminal.getvalue())
    assert [
        c for c in plain if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp") and c not in SAFE
    ] == []


@settings(max_examples=300, deadline=None)
@given(st.text(st.characters()) | st.text("\x1b[]\\\u202e\ud800aé "))
def test_printable_text_has_no_control_characters_and_is_stable(text: str) -> None:
    shown = printable(text)
    assert not any(is_invisible(character) for character in shown)
    assert printable(shown) == shown
    assert not text.isprintable() or shown == text
    shown.encode("utf-8")


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_every_output_shows_a_name_as_it_is_spelt(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = a_terminal(monkeypatch)
    reporter = Reporter()
    for show in (reporter.say, reporter.warn, reporter.heading, reporter.result):
        show(f"<{name}>")
    print_error(f"<{name}>", f"hint <{name}>")
    reporter.table(f"title {name}", ["split", name], [[name, "1"], ["x", name]])
    with reporter.progress(f"work on {name}", 2) as bar:
        bar.advance(2, f"note {name}")
    assert_shown(terminal, f"<{name}>", f"hint <{name}>", f"title {name}", f"work on {name}", f"note {name}")
    assert RICH.sub("", terminal.getvalue()).count(printable(name)) >= 12


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_data_on_a_terminal_are_escaped_and_json_stays_json(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = a_terminal(monkeypatch)
    data_output().write(f"a\t{name}\n")
    print_json({"name": name})
    row, _, document = terminal.getvalue().partition("\n")
    assert row == "a\t" + printable(name, keep="\n\t")
    assert json.loads(document) == {"name": name}
    assert document.isascii()
    assert "\x1b" not in document
    assert "\x7f" not in document


def test_data_in_a_pipe_are_unchanged(capfd: pytest.CaptureFixture[str]) -> None:
    data_output().write("\x1b[31m\u202e\x9b\n")
    data_output().flush()
    assert capfd.readouterr().out == "\x1b[31m\u202e\x9b\n"
