"""Decimals that go on for ever, and numbers that must stay exact."""

from __future__ import annotations

import re
from fractions import Fraction

from castctl.verify.characters import in_latex

_REPEATING = re.compile(
    r"(?<![0-9.])([0-9]{0,15})\.([0-9]{0,15})"
    r"\\(?:overline|bar|dot)\{?([0-9])(?:([0-9]{0,15}))\}?(?:([0-9]{0,9})\\dot\{?([0-9])\}?)?(?![0-9])(?:\.{3}|\\[lc]?dots(?![A-Za-z]))?"
)
_IN_BRACKETS = re.compile(r"(?<![0-9.])([0-9]{0,15}\.[0-9]{0,15})\(([0-9]{1,15})\)(?![0-9])")
_DOTS = re.compile(
    r"(?<![0-9.])([0-9]{0,15}\.[0-9]{0,15}?)([0-9])\2{2,15}(?:\\[lc]?dots(?![A-Za-z])|\.{3}|…)"
)
_ENDS = re.compile(r"\A[^0-9]*[0-9]*\.[0-9]+[^0-9.(\\]*\Z")


def as_fractions(text: str) -> str:
    r"""The text with each 0.\overline{3}, 0.(3) and 0.333\ldots as a fraction."""
    return _REPEATING.sub(_fraction, _overlined(text))


def _overlined(text: str) -> str:
    text = _IN_BRACKETS.sub(r"\1\\overline{\2}", text)
    return _DOTS.sub(r"\1\\overline{\2}", text)


def endless(text: str) -> bool | None:
    """Whether a text is of a decimal that goes on for ever, or ends; None where it is of none."""
    text = in_latex(text)
    if _REPEATING.search(_overlined(text)):
        return True
    return False if _ENDS.search(text) else None


def _fraction(match: re.Match[str]) -> str:
    r"""0.1\overline{6} and 0.\dot{1}4\dot{2} as fractions."""
    whole, before, first, more, between, last = (part or "" for part in match.groups())
    period = first + more + between + last
    unit = 10 ** len(before)
    value = Fraction(int(f"0{whole}{before}"), unit)
    return exact(value + Fraction(int(period), unit * (10 ** len(period) - 1)))


def exact(number: Fraction) -> str:
    """As an integer or a fraction: math-verify rounds decimals, 2 millionths to none."""
    top, bottom = number.numerator, number.denominator
    if bottom == 1:
        return str(top)
    return rf"{'-' * (top < 0)}\frac{{{abs(top)}}}{{{bottom}}}"
