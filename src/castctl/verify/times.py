"""Times of day, 2:30 PM."""

from __future__ import annotations

import re

from castctl.verify.wrapping import SPACE, unwrapped

Time = tuple[int, int, str]
"""Hour, minute, and `a`, `p` or nothing for the half of the day."""

_TIME = re.compile(
    r"(?:(?:\\text|\\mathrm)\{ ?)?(?P<hour>[0-9]{1,2})"
    r"(?:(?:\\!)*\{?:\}?(?:\\!)*(?P<minute>[0-5][0-9]))?\}?"
    rf"(?:{SPACE}*(?:(?:\\text|\\mathrm)\{{ ?)?(?P<half>[AaPp])\.?(?:\\!)*[Mm]\.?\}}?)?"
)


def same_time(text: str, other: str) -> bool | None:
    """Whether two answers are the same time; None where one is none."""
    one, two = time_of_day(text), time_of_day(other)
    return None if one is None or two is None else _same(one, two)


def time_of_day(text: str) -> Time | None:
    """The time that an answer is, None where it is none."""
    match = _TIME.fullmatch(unwrapped(text))
    if match is None or int(match["hour"]) > 24 or not (match["minute"] or match["half"]):
        return None
    hour, half = int(match["hour"]), (match["half"] or "").lower()
    return hour, int(match["minute"] or 0), half


def _same(one: Time, other: Time) -> bool:
    """10:30 AM is not 10:30 PM; where one does not say the half of the day, it is the other's, or
    its hour is one of 24."""
    if bool(one[2]) == bool(other[2]):
        return (one[0] % 12, *one[1:]) == (other[0] % 12, *other[1:]) if one[2] else one == other
    (hour, minute, half), plain = (one, other[:2]) if one[2] else (other, one[:2])
    return plain in ((hour, minute), (hour % 12 + 12 * (half == "p"), minute))
