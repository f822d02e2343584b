"""The final answer of a completion: the content of its last `\\boxed{...}`."""

from __future__ import annotations

import re
from typing import NamedTuple

# A backslash before `\boxed` is taken as part of it, as in text that came through JSON;
# every other escaped backslash or brace is literal.
_BRACES = re.compile(r"(?P<box>\\(?:boxed|fbox)\s*\{)|\\(?:[{}]|\\(?!boxed|fbox))|[{}]")
_SOMETHING = re.compile(r"\s*\S")
_WORD = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{2,}")
_SENTENCE = 8


class Boxed(NamedTuple):
    """The content of a box and its half-open span of characters in the text."""

    content: str
    start: int
    end: int


def last_boxed(text: str) -> Boxed | None:
    r"""The last `\boxed{...}` or `\fbox{...}` whose braces balance; None when there is none.

    Last is the one that opens last, so of nested boxes the inner one. An unterminated
    box counts for nothing and hides nothing, and neither does an empty one where another holds
    something. Takes time linear in the text.
    """
    open_braces: list[int | None] = []  # where a box's content starts; None for a plain brace
    last: tuple[bool, int, int] | None = None
    for token in _BRACES.finditer(text):
        if token["box"]:
            open_braces.append(token.end())
        elif token[0] == "{":
            open_braces.append(None)
        elif token[0] == "}" and open_braces:
            start = open_braces.pop()
            if start is None:
                continue
            filled = _SOMETHING.match(text, start, token.start()) is not None
            if last is None or (filled, start) > last[:2]:
                last = filled, start, token.start()
    return Boxed(text[slice(*last[1:])], *last[1:]) if last else None


def is_sentence(answer: str) -> bool:
    """Whether it has so many words that no box will hold them word for word."""
    return len(_WORD.findall(answer)) >= _SENTENCE
