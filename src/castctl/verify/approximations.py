r"""Approximations, 2\pi \approx 6.28: their sides, and whether one number rounds another."""

from __future__ import annotations

import re
from fractions import Fraction

APPROXIMATELY = re.compile(r"\\approx(?![A-Za-z])")
_EQUALS = re.compile(r"(?<![<>!\\:])=")
_DECIMAL = re.compile(
    r"-?(?P<whole>[0-9]{0,30})(?:\.(?P<places>[0-9]{1,30}))?\s*(?:\\?%|\\(?:text|mathrm|mbox).*)?",
    re.S,
)
_DEGREES = re.compile(r"\\circ(?![A-Za-z])|°")
_LOOSE = Fraction(1, 10)
"""Sides that are no decimals round each other where they differ by less than this share."""


def approximated(text: str) -> list[str]:
    r"""The sides of an approximation, of A = 2\pi \approx 6.28 the last two; none of other text,
    and none of one in degrees, which may be of an angle in radians."""
    if _DEGREES.search(text):
        return []
    sides = [side.strip() for side in APPROXIMATELY.split(text)]
    sides = [_EQUALS.split(side)[-1].strip() for side in sides]
    return sides if len(sides) > 1 and all(sides) else []


def rounds(value: float, written: str, other: float) -> bool:
    """Whether `written`, which is `value`, may round `other`: by at most one in its last place,
    half of one in the last that is not 0, or, where it is no decimal, by a tenth."""
    difference = abs(value - other)
    match = _DECIMAL.fullmatch(written.replace("{,}", "").replace(",", ""))
    if match is None or not (match["whole"] or match["places"]):
        return difference <= _LOOSE * max(abs(value), abs(other))
    digits, places = f"{match['whole']}{match['places'] or ''}", len(match["places"] or "")
    zeros = len(digits) - len(digits.rstrip("0")) if digits.strip("0") else 0
    return difference <= max(1.0, 10.0**zeros / 2) * 10.0**-places * (1 + 1e-9)
