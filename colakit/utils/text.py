"""Escaping of names and other text that users choose."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable

MAX_FILE_NAME = 100  # characters; file systems allow 255 bytes
INVISIBLE = {"Cc", "Cf", "Cs", "Zl", "Zp"}  # Unicode categories: controls, formats, surrogates, line ends
JOINERS = "\u200c\u200d"  # needed by Persian, Indic scripts and emoji

# characters that have a meaning in Markdown; `_` only where a word starts or ends, `]` only in a link
MARKDOWN = re.compile(r"[\\`*|<>~$&]|(?<![^\W_])_|_(?![^\W_])|\](?=[(\[:])")


def escape(text: str, is_shown: Callable[[str], bool] = str.isprintable) -> str:
    r"""Write the characters that are not shown as Python does (`\n`, `\x1b`, `\u202e`)."""
    return "".join(
        character if is_shown(character) else character.encode("unicode_escape").decode("ascii")
        for character in text
    )


def printable(text: str, keep: str = "") -> str:
    """Escape controls, formats and surrogates, except joiners and those in `keep`, such as line ends."""
    keep += JOINERS
    return escape(text, lambda letter: letter in keep or unicodedata.category(letter) not in INVISIBLE)


def escape_markdown(text: str) -> str:
    """Escape text for a cell of a Markdown table, so that it is shown as it is."""
    return MARKDOWN.sub(r"\\\g<0>", escape(text))


def file_name(text: str) -> str:
    """Return text as a part of a file name; texts that differ give names that differ."""
    import hashlib  # imported on use, to keep `--help` fast
    from urllib.parse import quote

    name = quote(text, safe=" ", errors="surrogatepass")
    if len(name) <= MAX_FILE_NAME:
        return name
    return f"{name[: MAX_FILE_NAME - 17]}-{hashlib.sha256(name.encode()).hexdigest()[:16]}"
