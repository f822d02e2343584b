"""Boxed texts that claim something else than the value that math-verify takes from them.

It drops what it does not understand: of `\\neq 3`, of `7=3`, of `3 \\text{ or 4}` and of `10_2` it
reads the number. Each rule here applies to what cannot be meant as that number, and to nothing
that the answer itself says too. All take time linear in the text.
"""

from __future__ import annotations

import itertools
import re
from fractions import Fraction

from castctl.verify.units import no_unit

_DIGITS = "[0-9]{1,30}"
_DENIAL = re.compile(
    r"\s*(?:[A-Za-z](?:\([A-Za-z]\))?\s*)?(?:\\(?:neq?|neg|lnot|not|notin)(?![A-Za-z])|≠|¬)"
)
_EQUALS = re.compile(r"(?<![<>!\\:])=")
_FRACTION = re.compile(
    rf"(-?)\\[dt]?frac *(?:\{{({_DIGITS})\}}|([0-9])) *(?:\{{({_DIGITS})\}}|([0-9]))"
)
_RATIO = re.compile(rf"-?{_DIGITS}(?:\.{_DIGITS}|/{_DIGITS})?")
_COMMENTED = re.compile(r"(?<!\\)%[^,;=%]*=")
_TEXT = r"\\(?:text|textbf|textit|textrm|emph|mathrm|mbox)\s*"
_TRAILING = re.compile(rf"{_TEXT}\{{((?:[^{{}}]|\{{(?:[^{{}}]|\{{[^{{}}]*\}})*\}})*)\}}[\s.]*\Z")
_UNIT = re.compile(rf"{_TEXT}\{{[^{{}}]*\}}(?:\^\{{?[0-9]\}}?)?\Z")
_WIDE = re.compile(rf"[^\s,;&\\]\s*\\q?quad(?![A-Za-z])(?!\s*(?:{_TEXT}\{{)?\s*[(\[])\s*\S")
_SECOND = re.compile(
    rf"[0-9]\s*{_TEXT}\{{(?! *(?:and|or) *\}})[^{{}}]*[A-Za-z][^{{}}]*\}}\s*[0-9]"
)  # 5 feet 6 inches
_HEDGES = {
    "or", "nor", "not", "either", "maybe", "perhaps", "wrong", "incorrect", "dozen", "hundred",
    "thousand", "million", "billion", "trillion",
}  # fmt: skip
# Not 17 more apples, and not 3 cm squared.
_HEDGED = re.compile(
    r"\b(?:more|less|fewer)\s+than\b|\bat\s+(?:least|most)\b"
    r"|\A[\s~]*(?:squared|cubed|halves|tenths|hundredths)\b"
)
_RATE = re.compile(r"\bper\s+[0-9]+\s+[a-z]")  # 3 per 100 people
_NUMBERS = re.compile(r"[0-9]+(?:\.[0-9]+)?")
_DIGIT = re.compile("[0-9]")
_LOOSE_NUMBER = re.compile(r"(?<![A-Za-z0-9^])[0-9]")  # of cm2 it is no number
_NAME = re.compile(
    r"(?:m ?)?(?:\\(?:m?angle|triangle|overline|text|mathrm)(?![A-Za-z]) ?\{? ?)?([A-Z]{2,9}) ?\}?"
)
_SEPARATOR = re.compile(
    r"(?P<open>[({\[])|(?P<close>[)}\]])|\\text\{ *(?:and|or) *\}|\\(?:lor|vee)(?![a-z])|[,;]"
    r"|(?<![A-Za-z])(?:and|or)(?![A-Za-z])"
)
_JOINED = re.compile(r"\\text\{ *(and|or) *\}")
_INEQUALITY = re.compile(r"[<>≤≥]|\\(?:le|ge|lt|gt)")
_TEXTS = re.compile(rf"{_TEXT}\{{[^{{}}]*\}}")
_PRIME = re.compile(r"(?<![0-9])'|'(?![0-9])|\\prime(?![A-Za-z])")
_BASED = re.compile(rf"(-?{_DIGITS})_(?:\{{([0-9]{{1,2}})\}}|([0-9]))")

NEAR = Fraction(1, 100)
"""Sides of an equation that differ by a smaller share may be rounded: 1/3 = 0.333."""


def claims_otherwise(extracted: str, answer: str) -> bool:
    """Whether the extracted text denies its value, contradicts itself, hides an equation in a
    comment, hedges, goes on in code or a sentence, adds a value or leaves one out, is in a base
    other than the answer's, or names other points or in other order."""
    return (
        (_denies(extracted) and not _denies(answer))
        or _contradicts(extracted)
        or bool(_COMMENTED.search(extracted) and not _COMMENTED.search(answer))
        or bool(_hedges(extracted) - _hedges(answer))
        or (no_unit(extracted) and not no_unit(answer))
        or _adds_a_value(extracted, answer)
        or _adds_a_value(answer, extracted)
        or _measures_otherwise(extracted, answer)
        or _says_otherwise(extracted, answer)
        or _joins_otherwise(extracted, answer)
        or _marks(extracted) != _marks(answer)
        or _in_another_base(extracted, answer)
        or _of_another_name(extracted, answer)
    )


def listed(text: str) -> list[str]:
    """What a list enumerates, repeats among it; one item where the text is no list.

    A set in braces is no list: its repeats mean nothing.
    """
    text = text.replace(r"\left", "").replace(r"\right", "")
    items, depth, start = [], 0, 0
    for match in _SEPARATOR.finditer(text):
        if match["open"] or match["close"]:
            depth += 1 if match["open"] else -1
        elif depth == 0:
            items.append(text[start : match.start()])
            start = match.end()
    return [item.strip() for item in [*items, text[start:]] if item.strip()]


def _denies(text: str) -> bool:
    return _DENIAL.match(text) is not None


def _contradicts(text: str) -> bool:
    """An equation of numbers that are not equal, as 7 = 3, or that says nothing, as 3 = 3."""
    sides = (side.strip() for side in _EQUALS.split(text))
    values = ((side, value) for side in sides if (value := _value(side)) is not None)
    for (one, first), (other, second) in itertools.pairwise(values):
        if one == other or abs(first - second) > NEAR * max(abs(first), abs(second)):
            return True
    return False


def _value(text: str) -> Fraction | None:
    if match := _FRACTION.fullmatch(text):
        text = f"{match[1]}{match[2] or match[3]}/{match[4] or match[5]}"
    if not _RATIO.fullmatch(text):
        return None
    try:
        return Fraction(text)
    except ZeroDivisionError:
        return None


def _hedges(text: str) -> set[str]:
    """Words and loose numbers in text at the end, where a unit would stand."""
    match = _TRAILING.search(text, max(len(text) - 200, 0))
    if not match or not text[: match.start()].strip():
        return set()
    words = match[1].lower()
    found = set(re.findall("[a-z]+", words)) & _HEDGES
    found |= {each.strip(" ~") for each in _HEDGED.findall(words)}
    return found | set(_LOOSE_NUMBER.findall(_RATE.sub("", words)))


def _adds_a_value(text: str, other: str) -> bool:
    return _goes_on(text) and not _goes_on(other) and len(listed(other)) == 1


def _goes_on(text: str) -> bool:
    r"""Whether another value follows a unit or a wide space, where all that follows is taken for
    the unit: 5 \text{ cm} \lor 6."""
    return bool(_WIDE.search(text) or _SECOND.search(text)) or any(
        map(_UNIT.search, listed(text)[:-1])
    )


def _measures_otherwise(extracted: str, answer: str) -> bool:
    """Two values in text of which any differs: 5 feet 6 inches, 5 feet 7 inches, 1 to 2."""
    if not (_SECOND.search(extracted) and _SECOND.search(answer)):
        return False
    return _NUMBERS.findall(extracted) != _NUMBERS.findall(answer)


def _says_otherwise(extracted: str, answer: str) -> bool:
    """Text after what is no number, so no unit: n is even, n is odd."""
    ours, theirs = _TRAILING.search(extracted), _TRAILING.search(answer)
    if ours is None or theirs is None or _DIGIT.search(extracted + answer):
        return False
    said, asked = ([w for w in each[1].split() if w != "is"] for each in (ours, theirs))
    return said != asked


def _joins_otherwise(extracted: str, answer: str) -> bool:
    """Inequalities of which both shall hold where the answer has either, or the other way round."""
    ours, theirs = (
        {word for word in _JOINED.findall(text) if _INEQUALITY.search(text)}
        for text in (extracted, answer)
    )
    return len(ours) == len(theirs) == 1 and ours != theirs


def _marks(text: str) -> int:
    """Primes: f' is not f, nor 60' 60 degrees."""
    return len(_PRIME.findall(_TEXTS.sub("", text)))


def _in_another_base(extracted: str, answer: str) -> bool:
    """Numbers written in a base: 52_9 is neither 52_8 nor 52."""
    ours, theirs = _BASED.fullmatch(extracted), _BASED.fullmatch(answer)
    if ours is None:
        return False
    base = ours[2] or ours[3]
    if theirs is not None:
        return base != (theirs[2] or theirs[3])
    return base != "10"


def _of_another_name(extracted: str, answer: str) -> bool:
    """Capitals that name points: the angle BAC is not ABC. Read backwards, they name the same."""
    ours, theirs = _NAME.fullmatch(extracted), _NAME.fullmatch(answer)
    if ours and theirs and r"\triangle" in extracted + answer:  # one however it is named
        return sorted(ours[1]) != sorted(theirs[1])
    return bool(ours and theirs and theirs[1] not in (ours[1], ours[1][::-1]))
