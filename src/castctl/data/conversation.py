"""The messages of a conversation that stand before the problem."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple


class Message(NamedTuple):
    role: str
    """`system`, `user` or `assistant`."""
    content: str


Earlier = tuple[Message, ...]
"""What was said before the problem, in order; nothing where the problem stands alone."""


def earlier_in(cell: Iterable[Mapping[str, str]] | None) -> Earlier:
    """A cell of the column `earlier`."""
    return tuple(Message(turn["role"], turn["content"]) for turn in cell or ())
