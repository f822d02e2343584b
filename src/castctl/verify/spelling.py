"""Spellings of a final answer that math-verify misreads, brought into one that it reads.

Nothing here may turn a wrong answer into a right one: each rule keeps the value that a reader
takes from the text, and applies to nothing that could be meant otherwise. All take time linear
in the text.
"""

from __future__ import annotations

import re
from decimal import Decimal

_DIGITS = "[0-9]{1,30}"
_UNSIGNED = rf"(?:{_DIGITS}(?:\.{_DIGITS})?|\.{_DIGITS})"
_NUMBER = rf"-?{_UNSIGNED}"
_NO_MORE_DIGITS = r"(?!(?:[., ~]|\{,\}|\\[ ,;:!]){0,9}[0-9])"  # √4 000 is perhaps √4000

_LEADING = re.compile(r"(?:\s|~|\\[ ,;:!])*")
_GNILIART = re.compile(r"(?:[ ,;:!]\\(?!\\)|\s|~)*")  # trailing ones, of the text turned round
_SYMBOLS = str.maketrans({"°": r"^\circ ", "∞": r"\infty "})

_RULES = [
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"\A(?:\\approx(?![a-z])|≈|=) *(?=-?[0-9.]|\\)", ""),
        (r"\A\\therefore(?![A-Za-z])[ ~]*", ""),
        (r"(?<!\\right)\.\Z", ""),  # a full stop; `\right.` ends in none
        (rf"√({_UNSIGNED}){_NO_MORE_DIGITS}", r"\\sqrt{\1}"),
        (r"\\[bB]igg?[lrm]?(?= ?[][()|/\\])", ""),  # of brackets: \big( is (
        (rf"\A\\(?:text|textbf|mathrm|mathbf)\{{ ?({_NUMBER}) ?\}}\Z", r"\1"),
        (rf"\A({_NUMBER}) dollars?\Z", r"\1"),
    )
]
_PERCENT = re.compile(rf"({_NUMBER}) ?\\?%")
_MIXED = re.compile(rf"(-?{_DIGITS}) ([1-9][0-9]?)/({_DIGITS})")  # 1 234/5 is perhaps 1234/5
_GROUPED = re.compile(r"-?[0-9]{1,3}(?:(?: |\\,|\\;|\\ )[0-9]{3}){1,10}")
_SCALED = re.compile(
    rf"({_NUMBER})(?: ?\\text\{{)? ?(hundred|thousand|million|billion|trillion)(?: dollars?)?\}}?"
)
_SCALES = {"hundred": 2, "thousand": 3, "million": 6, "billion": 9, "trillion": 12}
_SCIENTIFIC = re.compile(
    rf"({_NUMBER}) ?\\(?:times|cdot) ?10 ?\^ ?(?:\{{ ?(-?[0-9]{{1,2}}) ?\}}|([0-9]))"
)


def spellings(text: str) -> list[str]:
    """The answer in spellings that math-verify reads as it is meant; any of them may be meant.

    math-verify takes 50\\% for 50 and for 0.5, but -50\\% for -0.5 and 12.5\\% for 0.125 alone.
    """
    text = _respelled(text)
    match = _PERCENT.fullmatch(text)
    return [text, match[1]] if match else [text]


def _respelled(text: str) -> str:
    text = _stripped(_stripped(text).removesuffix(r"\checkmark")).translate(_SYMBOLS)
    for pattern, replacement in _RULES:
        text = pattern.sub(replacement, text)
    if _GROUPED.fullmatch(text):
        return re.sub("[^-0-9]", "", text)
    if match := _SCIENTIFIC.fullmatch(text):
        return _exact(Decimal(f"{match[1]}e{match[2] or match[3]}"))
    if match := _SCALED.fullmatch(text):
        return _exact(Decimal(f"{match[1]}e{_SCALES[match[2]]}"))
    if (match := _MIXED.fullmatch(text)) and int(match[2]) < int(match[3]):
        return rf"{match[1]}\frac{{{match[2]}}}{{{match[3]}}}"
    return text


def _exact(number: Decimal) -> str:
    """As an integer or a fraction: math-verify rounds decimals, 2 millionths to none."""
    top, bottom = number.as_integer_ratio()
    return str(top) if bottom == 1 else rf"\frac{{{top}}}{{{bottom}}}"


def _stripped(text: str) -> str:
    """Without the spaces around it, LaTeX's among them."""
    text = _LEADING.sub("", text, count=1)
    return _GNILIART.sub("", text[::-1], count=1)[::-1]
