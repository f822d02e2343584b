"""The part of a completion in which its answer is looked for."""

from __future__ import annotations

import re

OPENED, CLOSED = "<think>", "</think>"
_TAG = re.compile(f"{OPENED}|{CLOSED}")
_AT_THE_END = re.compile(rf"{OPENED}\s*\Z")
_COMMENT = re.compile(r"^[ \t]*%[^\n]*", re.MULTILINE)
_BOX = re.compile(r"\\(?:boxed|fbox)\b")
MEANT = 12
"""Characters that a line of the problem has beside its box, for its copy to be a quotation."""


def opens_thoughts(prompt: str) -> bool:
    """Whether a completion of the prompt begins inside thoughts: `<think>` ends it.

    A `<think>` that other words follow is the problem's or an instruction's.
    """
    return _AT_THE_END.search(prompt) is not None


def visible(completion: str, problem: str, thinking: bool = False) -> str:
    r"""The completion with blanks where no answer can stand, each character in its place.

    Blank are thoughts (up to the last `</think>`, and from a `<think>` that never ends), comments
    of HTML, lines that LaTeX takes for comments, and lines of the problem that hold a box, copied
    word for word. A `</think>` too many after whole thoughts ends none; without any `<think>` it
    ends those before it. Where the prompt opened thoughts, `thinking`, the completion reads as if
    its `<think>` stood before it. Takes time linear in the completion.
    """
    opened = OPENED if thinking else ""
    text = _without_thoughts(opened + completion)[len(opened) :]
    text = _without_html_comments(text)
    text = _COMMENT.sub(lambda match: " " * len(match[0]), text)
    for line in _boxed_lines(problem):
        text = text.replace(line, " " * len(line))
    return text


def _without_thoughts(text: str) -> str:
    start, depth, whole = 0, 0, False
    for tag in _TAG.finditer(text):
        if tag[0] == OPENED:
            depth += 1
        elif depth or not whole:
            start, whole = tag.end(), whole or depth > 0
            depth = max(depth - 1, 0)
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
