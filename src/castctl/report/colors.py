"""The colours that mean something: the same on a terminal, in plots and on pages."""

from __future__ import annotations

COLORS = ("#000000", "#E69F00", "#56B4E9", "#009E73", "#0072B2", "#D55E00", "#CC79A7", "#882255")
"""Okabe and Ito's colours for all eyes; Tol's wine in the place of yellow, which white swallows."""

BLACK, ORANGE, SKY, GREEN, BLUE, RED, PINK, WINE = COLORS
GREY = "#8A919C"

POSITIVE, NEGATIVE = BLUE, RED
"""Of a number's sign: an advantage, a gap, a weight above 1."""

CORRECT, INCORRECT = GREEN, PINK
"""Of a completion's verdict."""

GROUPS = {"mixed": SKY, "all_correct": CORRECT, "all_wrong": INCORRECT, "single": ORANGE}
"""Of a group's kind."""

FULL = 0.62
"""Opacity behind a token at full colour: its text stays readable."""


def rgb(color: str) -> tuple[int, int, int]:
    """Red, green and blue, 0 to 255, of a colour as `#RRGGBB`."""
    red, green, blue = bytes.fromhex(color.removeprefix("#"))
    return red, green, blue
