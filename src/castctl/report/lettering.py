"""How the words of a plot are set."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def plain_text(**style: Any) -> Iterator[None]:
    """Inside, plots have matplotlib's settings `style` (axes_grid is `axes.grid`), and a name in
    them is text, not mathematics, whatever signs it has; some have no glyph.

    LaTeX is a program that a `matplotlibrc` of the current folder may ask for, and the folder may
    be a stranger's.
    """
    from matplotlib import rc_context

    settings: Any = {name.replace("_", ".", 1): value for name, value in style.items()}
    settings |= {"text.parse_math": False, "text.usetex": False}
    with rc_context(settings), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
