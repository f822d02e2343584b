"""Answers that name one of the offered choices."""

from __future__ import annotations

import re
from typing import NamedTuple

from castctl.verify.wrapping import FONT, SPACE, SPACES, stripped, undelimited

_LETTER = re.compile("[A-J]")
_LABEL = rf"(?:{FONT})? ?\{{? ?\(([A-J])\)(?: ?\}})?"
_GAP = rf"(?P<gap>{SPACES})"
_CHOICE = (
    re.compile(rf"{FONT} ?\{{ ?\(?([A-J])[.:)](?P<gap> )(?P<value>[^{{}}\\ ][^{{}}]*)\}}"),
    re.compile(rf"{FONT} ?\{{ ?\(?([A-J])[.:)]{SPACES}\}}{_GAP}(?P<value>.*)", re.S),
    re.compile(rf"\( ?{FONT} ?\{{ ?([A-J]) ?\}} ?\){_GAP}(?P<value>.*)", re.S),
    re.compile(
        rf"(?:{FONT} ?\{{ ?)?(?:[Oo]ption|[Cc]hoice) \(?([A-J])\)?(?: ?\}})?(?P<gap>)(?P<value>)"
    ),
    re.compile(rf"{_LABEL}(?P<gap>(?:{SPACE}|\\q?quad(?![A-Za-z]))*)(?P<value>.*)", re.S),
    re.compile(rf"(?:{FONT} ?\{{ ?)([A-J])[.:)]? ?\}}(?P<gap>)(?P<value>)"),
    re.compile(r"([A-J])(?P<gap>[.:)] )(?P<value>.+)", re.S),
    re.compile(r"([A-J])[.)]?(?P<gap>)(?P<value>)"),
)
# What hedges, denies or names another choice; a product as (A)(x+1) is none either.
_NO_VALUE = re.compile(
    r"\\(?:text|emph|mbox|math[a-z]+|lor|vee|lnot|neg|neq?|not|[a-z]*phantom|begin|vert)"
    r"|(?<!\\)%|[,;=<>|]|\([A-J]\)|(?<![A-Za-z\\])(?:or|and|not|nor|[A-J])(?![A-Za-z])"
)
_NAMED = re.compile(rf"{FONT} ?\{{([A-Z0-9][^{{}}]*)\}}")  # None of these, and not: or more
_THOUSANDS = re.compile(r"(?<=[0-9]),(?=[0-9]{3}(?![0-9]))")
_TUPLE = re.compile(r"(?:\\left)? ?[(\[][^()\[\]]*(?:\\right)? ?[)\]]")
_DOLLAR = re.compile(r"(?<!\\)\$")
_QUAD = re.compile(r"\\q?quad\Z")


class Choice(NamedTuple):
    """An answer that names one of the offered choices: its letter, and its value if told."""

    letter: str
    value: str


def choice(text: str) -> Choice | None:
    r"""The letter of a choice and what stands beside it, as in `\textbf{(E)}\ 42`."""
    if not _LETTER.search(text):
        return None
    text = _DOLLAR.sub("", undelimited(stripped(text)))
    for pattern in _CHOICE:
        if match := pattern.fullmatch(text):
            value = stripped(_QUAD.sub("", match["value"]))
            product = value and not match["gap"] and "}" not in text[: match.start("value")]
            told = _NAMED.sub(r"\1", _THOUSANDS.sub("", value))
            told = told.replace(",", " ") if _TUPLE.fullmatch(told) else told
            return None if product or _NO_VALUE.search(told) else Choice(match[1], value)
    return None
