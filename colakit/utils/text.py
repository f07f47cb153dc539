"""Escaping of names and other text that users choose."""

from __future__ import annotations

import re
from collections.abc import Callable

# characters that have a meaning in Markdown; `_` only where a word starts or ends, `]` only in a link
MARKDOWN = re.compile(r"[\\`*|<>~$&]|(?<![^\W_])_|_(?![^\W_])|\](?=[(\[:])")


def escape_unprintable(text: str, is_shown: Callable[[str], bool] = str.isprintable) -> str:
    r"""Write control characters, and those that are not shown, as Python does (`\n`, `\x1b`, `\u202e`)."""
    return "".join(
        character
        if character.isprintable() and is_shown(character)
        else character.encode("unicode_escape").decode("ascii")
        for character in text
    )


def escape_markdown(text: str) -> str:
    """Escape text for a cell of a Markdown table, so that it is shown as it is."""
    return MARKDOWN.sub(r"\\\g<0>", escape_unprintable(text))
