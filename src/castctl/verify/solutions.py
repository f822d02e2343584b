r"""Inequalities of one unknown as the sets that solve them: `0 < x \le 5` is `(0, 5]`."""

from __future__ import annotations

import re
from typing import NamedTuple

_RELATIONS = {
    r"\leqslant": "≤", r"\leq": "≤", r"\le": "≤", "<=": "≤",
    r"\geqslant": "≥", r"\geq": "≥", r"\ge": "≥", ">=": "≥",
    r"\lt": "<", r"\gt": ">", r"\neq": "≠", r"\ne": "≠",
}  # fmt: skip
_WRITTEN = re.compile(r"\\(?:leqslant|geqslant|leq|geq|le|ge|lt|gt|neq|ne)(?![A-Za-z])|<=|>=")
_INEQUALITY = re.compile("[<>≤≥≠]")
_RELATION = re.compile("([<>≤≥])")
_POINT = re.compile(r"(?P<unknown>[^=≠]+)(?P<relation>[=≠])(?P<value>[^=≠]+)")
_OR = re.compile(r"\\text\{ *or *\}|\\(?:lor|vee)(?![A-Za-z])|(?<![A-Za-z\\])or(?![A-Za-z])")
_AND = re.compile(r"\\text\{ *and *\}|\\(?:land|wedge)(?![A-Za-z])|(?<![A-Za-z\\])and(?![A-Za-z])")
_UNKNOWN = re.compile(r"[A-Za-z]|\\(?:alpha|beta|theta|lambda|mu|phi|omega|varphi)")
_BUILT = re.compile(
    r"\\\{ *(?P<unknown>[A-Za-z]) *(?:\\in *(?:\\mathbb *\{?R\}?|\\R) *)?"
    r"(?:\\mid(?![A-Za-z])|:|\||\\vert(?![A-Za-z]))(?P<condition>.*)\\\}"
)
_MEMBER = re.compile(
    r"(?P<unknown>[^\\]|\\[a-z]+) *\\in *(?P<set>(?:\\left *)?[(\[](?!.*\\(?:text|mbox|emph)).*)",
    re.S,
)
_NOT_REAL = re.compile(r"\\(?:in|mathbb|not|cup|cap|pm|mp)(?![A-Za-z])|[,;|:]|\\[{}]")
_SPACE = re.compile(r"\\[ ,;:!]|~")
_LONE = re.compile(r"(?<![A-Za-z0-9}^_\]])\{([A-Za-z])\}")
_SIZE = re.compile(r"\\(?:left|middle|right)(?![A-Za-z])")
_COMMAND = re.compile(r"\\[A-Za-z]+")
_LONGEST = 500
"""Characters beyond which a text is no inequality that a reader would write."""


class Solutions(NamedTuple):
    """The unknown of an inequality and the real numbers that solve it, as intervals in LaTeX.

    The letter in a set's description is nobody's: its unknown is empty.
    """

    unknown: str
    intervals: str


def solutions(text: str) -> Solutions | None:
    """Who solves an inequality, or several that `or` joins, or is in an interval; None for any
    other text.

    Bounds are numbers: an inequality of two unknowns has no intervals.
    """
    if len(text) > _LONGEST:
        return None
    text = _LONE.sub(r"\1", _SPACE.sub(" ", text)).strip()
    if r"\{" in text:
        text = _SIZE.sub("", text)
    if (member := _MEMBER.fullmatch(text)) and _unknown(member["unknown"]):
        return Solutions(member["unknown"], member["set"])
    built = _BUILT.fullmatch(text)
    if built:
        text = built["condition"]
    text = _WRITTEN.sub(lambda match: _RELATIONS[match[0]], text)
    if not _INEQUALITY.search(text) or _NOT_REAL.search(text):
        return None
    pieces = [_one_piece(piece) for piece in _OR.split(text)]
    unknowns = {piece.unknown for piece in pieces if piece}
    if None in pieces or len(unknowns) != 1 or (built and unknowns != {built["unknown"]}):
        return None
    unknown = unknowns.pop() if not built else ""
    return Solutions(unknown, r"\cup ".join(piece.intervals for piece in pieces if piece))


def relates(text: str) -> bool:
    """Whether a text holds an inequality, of whatever kind."""
    return _INEQUALITY.search(_WRITTEN.sub(lambda match: _RELATIONS[match[0]], text)) is not None


def _one_piece(text: str) -> Solutions | None:
    """`a < x < b`, `x < b`, `x = b`, `x ≠ b`, or several that `and` joins."""
    texts = [part.strip() for part in _AND.split(text)]
    match [_interval(each) for each in texts]:
        case [(unknown, low, None), (other, None, high)] if unknown == other:
            return Solutions(unknown, _written(low, high))
        case [(unknown, None, high), (other, low, None)] if unknown == other:
            return Solutions(unknown, _written(low, high))
    parts = [_one_part(each) for each in texts]
    unknowns = {part.unknown for part in parts if part}
    if None in parts or len(unknowns) != 1:
        return None
    return Solutions(unknowns.pop(), r"\cap ".join(part.intervals for part in parts if part))


def _one_part(text: str) -> Solutions | None:
    if point := _POINT.fullmatch(text):
        unknown, value = point["unknown"].strip(), point["value"].strip()
        if not (_unknown(unknown) and _number(value)):
            return None
        others = rf"((-\infty,{value})\cup ({value},\infty))"
        return Solutions(unknown, others if point["relation"] == "≠" else rf"\{{{value}\}}")
    if found := _interval(text):
        return Solutions(found[0], _written(*found[1:]))
    return None


End = tuple[str, str] | None
"""A bound and the relation to it, `<` or `≤`; None for infinity."""


def _interval(text: str) -> tuple[str, End, End] | None:
    """The unknown and the two ends that one chain of relations sets it."""
    parts = [part.strip() for part in _RELATION.split(text)]
    if not all(parts):
        return None
    if {">", "≥"} & set(parts[1::2]):
        if {"<", "≤"} & set(parts[1::2]):
            return None
        parts = [{">": "<", "≥": "≤"}.get(part, part) for part in reversed(parts)]
    match parts:
        case [low, first, unknown, second, high] if _unknown(unknown):
            ends: tuple[str, End, End] = unknown, (low, first), (high, second)
        case [unknown, relation, high] if _unknown(unknown) and _number(high):
            ends = unknown, None, (high, relation)
        case [low, relation, unknown] if _unknown(unknown):
            ends = unknown, (low, relation), None
        case _:
            return None
    return ends if all(end is None or _number(end[0]) for end in ends[1:]) else None


def _unknown(text: str) -> bool:
    return _UNKNOWN.fullmatch(text) is not None and text != "e"


def _number(text: str) -> bool:
    """No letter in it is an unknown."""
    letters = set(re.findall("[A-Za-z]", _COMMAND.sub("", text)))
    return letters <= {"e"} and not any(
        _UNKNOWN.fullmatch(command) for command in _COMMAND.findall(text)
    )


def _written(lower: End, upper: End) -> str:
    low, opening = (lower[0], "[" if lower[1] == "≤" else "(") if lower else (r"-\infty", "(")
    high, closing = (upper[0], "]" if upper[1] == "≤" else ")") if upper else (r"\infty", ")")
    return f"{opening}{low},{high}{closing}"
