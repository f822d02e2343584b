"""Texts that are too long whatever the tokenizer: told by their characters, and never tokenised."""

from __future__ import annotations

from typing import Any

CHARACTERS_A_TOKEN = 1000
"""More than any vocabulary's token stands for; the longest known are runs of 128 spaces."""
LONG_ROW = 10**6
"""Characters that a row of data may always have."""


def surely_longer(text: str, tokens: int) -> bool:
    """Whether a text has more than so many tokens in any vocabulary."""
    return len(text) > CHARACTERS_A_TOKEN * tokens


def row_too_long(row: dict[str, Any], columns: list[str], tokens: int) -> bool:
    """Whether what is read of a row is too much for a prompt of so many tokens; a message or an
    item of a list counts as a token."""
    read = {name if name in row else name.partition(".")[0] for name in columns}
    return _size([row.get(name) for name in read]) > max(LONG_ROW, CHARACTERS_A_TOKEN * tokens)


def _size(value: Any) -> int:
    """Characters of a cell."""
    size, cells = 0, [value]
    while cells:
        cell = cells.pop()
        if isinstance(cell, str):
            size += len(cell)
        elif isinstance(cell, list | dict):
            cells += cell.values() if isinstance(cell, dict) else cell
            size += CHARACTERS_A_TOKEN * len(cell)
    return size
