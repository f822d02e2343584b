r"""Letters of two answers that math-verify would merge or drop, written so that it does neither.

It reads every letter as a small one, so that R - r is 0, and takes one after a number for a unit,
so that 4s is 4.
"""

from __future__ import annotations

import re

_TOKEN = re.compile(
    r"\\(?:text[a-z]*|mbox|math[a-z]+|operatorname|emph)\s*\{[^{}]*\}|\\.(?<![A-Za-z])"
    r"|(?P<letter>\\[A-Za-z]+|[A-Za-z])",
    re.S,
)
_SPARE = "zyqwvujhgbcklmnoprstxafd"  # e and i are numbers
_QUANTITY = re.compile(r"(?P<name>[A-Za-z]\s*=\s*)?(?P<number>-?[0-9.]{1,30})\s*(?P<unit>[A-Za-z])")


def told_apart(answer: str, extracted: str) -> tuple[str, str]:
    """Both answers with another letter for each capital whose small one is there too, in either,
    and with the letter after a number as a factor where the other has that letter too, or another
    in the same place."""
    letters = _letters(answer) | _letters(extracted)
    if not letters:
        return answer, extracted
    spare = (letter for letter in _SPARE if not {letter, letter.upper()} & letters)
    merged = sorted(each for each in letters if each != each.lower() and each.lower() in letters)
    renamed = dict(zip(merged, spare, strict=False))
    if renamed:
        answer, extracted = (_renamed(text, renamed) for text in (answer, extracted))
    return _kept(answer, extracted), _kept(extracted, answer)


def _letters(text: str) -> set[str]:
    return {match["letter"] for match in _TOKEN.finditer(text) if match["letter"]}


def _renamed(text: str, renamed: dict[str, str]) -> str:
    def other(match: re.Match[str]) -> str:
        found = renamed.get(match["letter"])
        return match[0] if found is None else f"{found} " if match[0][0] == "\\" else found

    return _TOKEN.sub(other, text)


def _kept(text: str, other: str) -> str:
    match = _QUANTITY.fullmatch(text)
    if match is None or not (match["unit"] in _letters(other) or _QUANTITY.fullmatch(other)):
        return text
    return rf"{match['name'] or ''}{match['number']} {{{match['unit']}}}"
