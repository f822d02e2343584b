"""The part of a completion in which its answer is looked for."""

from __future__ import annotations

import re

OPENED, CLOSED = "<think>", "</think>"
_COMMENT = re.compile(r"^[ \t]*%[^\n]*", re.MULTILINE)
_BOX = re.compile(r"\\(?:boxed|fbox)\b")
MEANT = 12
"""Characters that a line of the problem has beside its box, for its copy to be a quotation."""


def visible(completion: str, problem: str) -> str:
    r"""The completion with blanks where no answer can stand, each character in its place.

    Blank are thoughts (up to the last `</think>`, and from a `<think>` that never ends), comments
    of HTML, lines that LaTeX takes for comments, and lines of the problem that hold a box, copied
    word for word. Takes time linear in the completion.
    """
    text = _without_thoughts(completion)
    text = _without_html_comments(text)
    text = _COMMENT.sub(lambda match: " " * len(match[0]), text)
    for line in _boxed_lines(problem):
        text = text.replace(line, " " * len(line))
    return text


def _without_thoughts(text: str) -> str:
    end = text.rfind(CLOSED)
    start = 0 if end < 0 else end + len(CLOSED)
    stop = text.find(OPENED, start)
    stop = len(text) if stop < 0 else stop
    return " " * start + text[start:stop] + " " * (len(text) - stop)


def _without_html_comments(text: str) -> str:
    pieces, at = [], 0
    while (start := text.find("<!--", at)) >= 0 and (end := text.find("-->", start)) >= 0:
        pieces += [text[at:start], " " * (end + 3 - start)]
        at = end + 3
    return "".join([*pieces, text[at:]])


def _boxed_lines(problem: str) -> list[str]:
    if not _BOX.search(problem):
        return []
    lines = {line.strip() for line in problem.splitlines() if _BOX.search(line)}
    return [line for line in lines if len(_BOX.sub("", line).split("{", 1)[0]) >= MEANT]
