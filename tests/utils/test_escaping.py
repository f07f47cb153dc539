"""Escaped text: Markdown shows it as it is, and it has no control characters."""

from __future__ import annotations

import ast

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from colakit.utils.text import escape, escape_markdown, file_name

any_text = st.text(st.characters(categories=None) | st.sampled_from("|*_`[]()<>&;~$#\\\n "), max_size=40)


@given(any_text)
@example("a|b")
@example("*a* _b_ __c__ `d` ~~e~~ <b>f</b> [g](h) ![i](j) &amp; $k$ \\| \\")
@example("a\n\n# b\r\n\x1b[31m\u202e\udcff")
def test_markdown_shows_a_name_as_it_is(name: str) -> None:
    cell = escape_markdown(name)
    tokens = MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(f"| a | {cell} |\n|---|---|\n")
    inline = [token for token in tokens if token.type == "inline"]
    assert len(inline) == 2
    assert all(child.type in ("text", "text_special") for child in inline[1].children or [])
    assert "".join(child.content for child in inline[1].children or []) == escape(name).strip(" ")


@given(any_text)
def test_escaped_text_is_printable_and_can_be_read_back(text: str) -> None:
    escaped = escape(text)
    assert escaped.isprintable()
    if "\\" not in text:
        quoted = escaped.replace("'", "\\'")
        assert ast.literal_eval(f"'{quoted}'") == text


@pytest.mark.parametrize(
    "text", ["id_dev", "0.733 [0.672, 0.787]", "± 0.1 %", "runs/demo-001", "a - b", "中文"]
)
def test_plain_text_stays_unchanged(text: str) -> None:
    assert escape_markdown(text) == text


@given(any_text, any_text)
@example("a/b", "a_b")
@example("n" * 300, "n" * 301)
@example("\udcff", "\ud800")
def test_file_names_are_valid_and_differ_if_texts_differ(text: str, other: str) -> None:
    name = file_name(text)
    assert len(f"source-{name}.png".encode()) <= 255
    assert not {"/", "\\", "\0", ":"} & set(name)
    assert (name == file_name(other)) == (text == other)
