"""Answers that need no mathematics: one text twice, and two whole numbers."""

from __future__ import annotations

import re

_WHOLE = re.compile(r"-?[1-9][0-9]*|0")


def same_plainly(answer: str, extracted: str) -> bool | None:
    """Whether an extracted text is the answer, where both are one text, or whole numbers, which
    each have one spelling; None elsewhere. Takes time linear in the text, whatever it is, so that
    it needs no worker."""
    answer, extracted = answer.strip(), extracted.strip()
    if answer == extracted:
        return True
    return False if _WHOLE.fullmatch(answer) and _WHOLE.fullmatch(extracted) else None
