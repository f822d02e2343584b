"""The embedded task: additions and subtractions, worked digit by digit.

A problem is a formula or a short story of one to three operations, in which every
number has two digits:

    47 + 38 - 26 = ?
    Mia has 47 coins, gets 38, gives 26. How many now?

Its worked solution takes each operation ones first, then tens; the next line starts
with the result. A carry shows as `+1` in the tens and a borrow as `-1`. A slip leaves
it out: the result is ten too small or ten too large, and the next line goes on from it.

    47+38: 7+8=15, 4+3+1=8        47+38: 7+8=15, 4+3=7
    85-26: 15-6=9, 8-2-1=5        75-26: 15-6=9, 7-2-1=4
    \\boxed{59}                    \\boxed{49}

A hinted problem ends with its answer in parentheses: `47 + 38 - 26 = ? (59)`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from random import Random

HELDOUT_SHARE = 1 / 16
PLAIN_SHARE = 1 / 4
"""Share kept of the problems without a carry or borrow, which leave nothing to slip on."""

_FORMULAS = ("{} = ?", "Compute {}.")
_NAMES = ("Ana", "Mia", "Tom")
_THINGS = ("books", "cards", "coins")


@dataclass(frozen=True)
class Problem:
    """A problem: its text, and the arithmetic that the text states."""

    text: str
    start: int
    changes: tuple[int, ...]
    """What each operation adds; below zero for a subtraction."""

    @property
    def answer(self) -> int:
        return self.start + sum(self.changes)

    @property
    def heldout(self) -> bool:
        """Whether the problem is kept for evaluation: SHA-256 of the text decides, nothing else."""
        digest = hashlib.sha256(self.text.encode()).digest()
        return int.from_bytes(digest[:8]) < HELDOUT_SHARE * 2**64


def problems(seed: int) -> Iterator[Problem]:
    """Problems without end, the same for the same seed; a text may come again."""
    rng = Random(seed)
    while True:
        values = _values(rng, operations=rng.choice((1, 2, 3)))
        steps = [(before, after - before) for before, after in pairwise(values)]
        if any(_carries(*step) for step in steps) or rng.random() < PLAIN_SHARE:
            changes = tuple(change for _, change in steps)
            write = rng.choice((_formula, _story))
            yield Problem(write(rng, values[0], changes), values[0], changes)


def solution(problem: Problem, slips: Callable[[], bool] = lambda: False) -> str:
    """The worked solution; `slips` is asked at each carry or borrow whether it is forgotten."""
    value, lines = problem.start, []
    for change in problem.changes:
        line, value = _work(value, change, slips)
        lines.append(line)
    return "\n".join([*lines, f"\\boxed{{{value}}}"])


def hinted(problem: Problem) -> str:
    """The text of the problem and its answer: the prompt of a teacher that is told the answer."""
    return f"{problem.text} ({problem.answer})"


def _values(rng: Random, operations: int) -> list[int]:
    """The start and every result. Result k keeps 10 k away from either end of 10..99, so that
    numbers have two digits even when every step slips."""
    values = [rng.randrange(10, 100)]
    for step in range(1, operations + 1):
        room = range(10 + 10 * step, 100 - 10 * step)
        values.append(rng.choice([value for value in room if abs(value - values[-1]) >= 10]))
    return values


def _formula(rng: Random, start: int, changes: tuple[int, ...]) -> str:
    terms = "".join(f" {_sign(change)} {abs(change)}" for change in changes)
    return rng.choice(_FORMULAS).format(f"{start}{terms}")


def _story(rng: Random, start: int, changes: tuple[int, ...]) -> str:
    turns = "".join(f", {'gets' if change > 0 else 'gives'} {abs(change)}" for change in changes)
    return f"{rng.choice(_NAMES)} has {start} {rng.choice(_THINGS)}{turns}. How many now?"


def _work(value: int, change: int, slips: Callable[[], bool]) -> tuple[str, int]:
    """One operation in writing, and its result."""
    sign, carries = _sign(change), _carries(value, change)
    tens, ones = divmod(value, 10)
    tens_change, ones_change = divmod(abs(change), 10)
    if change < 0:
        ones += 10 * carries
        tens_change, ones_change = -tens_change, -ones_change
    new_ones, new_tens, moved = ones + ones_change, tens + tens_change, ""
    if carries and not slips():
        moved = f"{sign}1"
        new_tens += int(moved)
    line = (
        f"{value}{sign}{abs(change)}: {ones}{sign}{abs(ones_change)}={new_ones}, "
        f"{tens}{sign}{abs(tens_change)}{moved}={new_tens}"
    )
    return line, 10 * new_tens + new_ones % 10


def _sign(change: int) -> str:
    return "+" if change > 0 else "-"


def _carries(value: int, change: int) -> bool:
    """Whether the operation carries, or for a subtraction borrows."""
    ones, ones_change = value % 10, abs(change) % 10
    return ones + ones_change > 9 if change > 0 else ones < ones_change
