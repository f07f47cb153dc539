"""Registry of paradigms: functions that draw one minimal pair each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from colakit.data.builtin.grammar import Grammar, expand

Draw = Callable[[Grammar], str]


@dataclass(frozen=True)
class Paradigm:
    """A template of a phenomenon.

    Attributes:
        draw: returns a text with `[right|wrong]` where the sentences differ.
        framed: whether the sentence may be embedded in a longer one.
        end: final punctuation mark.
    """

    phenomenon: str
    name: str
    draw: Draw
    framed: bool
    end: str

    def pair(self, grammar: Grammar) -> tuple[str, str]:
        """Return an acceptable and an unacceptable sentence."""
        text = self.draw(grammar)
        before, after = grammar.frame() if self.framed else ("", "")
        members = expand(f"{before} {text} {after}")
        right, wrong = (member.replace(" ,", ",").replace(",,", ",") + self.end for member in members)
        return right[0].upper() + right[1:], wrong[0].upper() + wrong[1:]


REGISTER: list[Paradigm] = []


def paradigm(phenomenon: str, *, framed: bool = True, end: str = ".") -> Callable[[Draw], Draw]:
    """Register a function under its own name."""

    def enter(draw: Draw) -> Draw:
        REGISTER.append(Paradigm(phenomenon, draw.__name__, draw, framed, end))
        return draw

    return enter


def question(phenomenon: str) -> Callable[[Draw], Draw]:
    """Register a function that draws questions."""
    return paradigm(phenomenon, framed=False, end="?")
