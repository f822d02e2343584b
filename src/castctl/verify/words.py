"""Answers in words."""

from __future__ import annotations

import re

from castctl.verify.wrapping import FONT, stripped, undelimited

_PHRASE = re.compile(
    rf"(?:{FONT} ?\{{ ?)?(?P<words>[A-Za-z][A-Za-z',& -]{{0,200}}[A-Za-z])[ .!]*(?:\}}[ .!]*)?"
)
# A product of as many letters is rarely written unsorted.
_IS_WORDS = re.compile(r"[A-Za-z]{4}|\b(?i:yes|no)\b")
_LISTS = re.compile(r"[,&]|\b(?:and|or)\b")


def same_words(text: str, other: str) -> bool | None:
    r"""Whether two answers in words, `\text{True}` and `true`, are one; None where one is no words,
    or both are of so few letters that they may be products."""
    one, two = (
        _PHRASE.fullmatch(undelimited(stripped(each)).strip('"“”')) for each in (text, other)
    )
    if one is None or two is None:
        return None
    first, second = (" ".join(each["words"].split()) for each in (one, two))
    if first == second:
        return True
    if not (_IS_WORDS.search(first) or _IS_WORDS.search(second)):
        return None
    if first.casefold() == second.casefold():
        return True
    return None if _LISTS.search(first) and _LISTS.search(second) else False
