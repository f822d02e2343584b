"""Small marks in text: safe and short pieces of untrusted text, bars, sparklines, sizes."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from typing import Any

from castctl.report.console import printable
from castctl.shards.part import plain

LEVELS = "▁▂▃▄▅▆▇█"
LONGEST_LINE = 200
LONGEST_BLOCK = 2000
"""Characters shown of a piece of untrusted text."""


def line(text: object, limit: int = LONGEST_LINE) -> str:
    """Untrusted text on one line: control characters as escapes, what is beyond `limit` counted."""
    whole = str(text)
    return printable(whole[:limit]) + _more(whole, limit)


def block(text: str, limit: int = LONGEST_BLOCK) -> str:
    """The same with its line breaks kept."""
    return "\n".join(map(printable, text[:limit].split("\n"))) + _more(text, limit)


def _more(text: str, limit: int) -> str:
    return f"… ({len(text) - limit:,} more characters)" if len(text) > limit else ""


def sparkline(values: Sequence[float | None], width: int = 64) -> str:
    """Values as a row of bars from the least to the greatest; neighbours share one to fit."""
    size = max(1, -(-len(values) // width))
    means = [_mean(values[at : at + size]) for at in range(0, len(values), size)]
    known = [value for value in means if value is not None]
    if not known:
        return ""
    low, span = min(known), max(known) - min(known)
    return "".join(
        " " if value is None else LEVELS[round(7 * (value - low) / span)] if span else LEVELS[0]
        for value in means
    )


def histogram(counts: Iterable[int]) -> str:
    """Counts as a row of bars from zero; a rare bin still shows, an empty one is blank."""
    counts = list(counts)
    most = max(counts, default=0)
    return "".join(LEVELS[round(7 * count / most)] if count else " " for count in counts)


def bar(share: float, width: int = 24) -> str:
    """A share of the whole as a bar."""
    return "█" * max(round(share * width), int(share > 0))


def finite(value: object) -> float | None:
    """A value where it is a finite number, else None."""
    return value if isinstance(value, int | float) and math.isfinite(value) else None


def number(value: float | None, digits: int = 3) -> str:
    """A number in a few digits; nothing where there is none."""
    if value is None or math.isnan(value):
        return ""
    return f"{value:,}" if isinstance(value, int) else f"{value:.{digits}g}"


def percent(share: float | None, sign: str = "%") -> str:
    """A share in per cent, the one way that shares are written: with one decimal, with two digits
    where it is too small for that, and nothing where there is none."""
    if share is None or math.isnan(share):
        return ""
    small = 1e-9 < abs(share) < 0.001
    return f"{number(100 * share, 2) if small else f'{100 * share:.1f}'}{sign}"


def points(change: float) -> str:
    """A change of a share, in percentage points and with its sign."""
    return f"{100 * change:+.1f} points"


def counted(step: int) -> int:
    """A step's number as the log counts, from 1; folders count from 0."""
    return step + 1


def step_name(step: int) -> str:
    """The name of a step's folder, to find a completion by: folders count from 0."""
    return f"step-{step:05d}"


def size(count: int) -> str:
    """Bytes in the unit that fits."""
    value, units = float(count), ("B", "KiB", "MiB", "GiB", "TiB")
    for unit in units:
        if value < 1024 or unit == units[-1]:
            break
        value /= 1024
    return f"{count} B" if unit == "B" else f"{value:.1f} {unit}"


def print_json(value: Any) -> None:
    """One JSON object on standard output; what JSON has no number for is null."""
    print(json.dumps(plain(value), allow_nan=False, indent=2))


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None and math.isfinite(value)]
    return sum(known) / len(known) if known else None
