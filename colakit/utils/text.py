"""Escaping of names and other text that users choose."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from urllib.parse import quote

MAX_FILE_NAME = 100  # characters; file systems allow 255 bytes

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


def file_name(text: str) -> str:
    """Return text as a part of a file name; texts that differ give names that differ."""
    name = quote(text, safe=" ", errors="surrogatepass")
    if len(name) <= MAX_FILE_NAME:
        return name
    return f"{name[: MAX_FILE_NAME - 17]}-{hashlib.sha256(name.encode()).hexdigest()[:16]}"
