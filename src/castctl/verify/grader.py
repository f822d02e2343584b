"""One check: does an extracted answer equal the reference? Loaded inside the workers."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from decimal import Decimal
from functools import lru_cache
from typing import Any

from math_verify import LatexExtractionConfig, parse, verify
from sympy import And, Basic, Eq, Expr, Float, MatrixBase, S, Set, Tuple
from sympy.core.relational import Relational

from castctl.verify.claims import claims_otherwise
from castctl.verify.spelling import spellings

# It warns once a process that its timeouts are off; the pool keeps the time.
logging.getLogger("math_verify").setLevel(logging.ERROR)

RULES = 3
"""Goes up where a rule here, in `spelling`, `claims` or `visible` changes: verdicts by other rules
are others."""

# By default, of a box that does not parse, it takes the last number or fraction that it finds.
_WHOLE_BOX = (LatexExtractionConfig(boxed_match_priority=0),)

_INFINITIES = (S.Infinity, S.NegativeInfinity, S.ComplexInfinity, S.NaN)


class UnparsableAnswer(ValueError):
    """The reference answer is nothing that math-verify can read."""


def grade(answer: str, extracted: str) -> bool:
    """Whether the extracted text is the answer, as text or mathematically (math-verify).

    Both are read as the content of a box, so that they get the same treatment. May run
    for ever or exhaust memory on hostile text: call it through a `CheckPool`.

    Raises:
        UnparsableAnswer: math-verify reads nothing at all in `answer`.
    """
    answer, extracted = answer.strip(), extracted.strip()
    if answer == extracted:
        return True
    gold = _read_answer(answer)
    if not gold:
        raise UnparsableAnswer(f"math-verify cannot read the answer {answer[:80]!r}")
    if any(claims_otherwise(spelling, answer) for spelling in spellings(extracted)):
        return False
    read = _read(extracted)
    if not (_believable(read) and verify(gold, read, timeout_seconds=None)):
        return False
    values = [*_values(gold), *_values(read)]
    if any(value.has(*_INFINITIES) for value in values):  # 3.5^{\tanh^{-1}(1)^{3.5}} is a joker too
        return False
    # By six decimal places, and by fifteen where there are no decimals, all small numbers are one.
    zeros = max(map(_leading_zeros, values), default=0)
    return not zeros or verify(gold, read, 6 + zeros, 15 + zeros, timeout_seconds=None)


def _read(text: str) -> list[Any]:
    readings = (
        parse(f"\\boxed{{{each}}}", _WHOLE_BOX, extraction_mode="first_match", parsing_timeout=None)
        for each in spellings(text)
    )
    return [expression for reading in readings for expression in reading]


def _believable(parsed: Any) -> bool:
    r"""Whether infinity stands only by itself or as an end or element of a set or matrix, or
    as what a variable is said to be.

    math-verify takes 3.5^{\infty^{3.5}} for 7, and for most other numbers.
    """
    if isinstance(parsed, list | MatrixBase):
        return all(_believable(each) for each in parsed)
    if not isinstance(parsed, Basic) or not parsed.has(*_INFINITIES):
        return True
    if _is_infinity(parsed):
        return True
    return isinstance(parsed, Set | Tuple | Eq) and all(_believable(each) for each in parsed.args)


def _is_infinity(parsed: Basic) -> bool:
    return parsed in (S.Infinity, S.NegativeInfinity) or parsed.args == (S.NegativeOne, S.Infinity)


def _values(parsed: Any) -> Iterator[Any]:
    """What the expressions in lists, sets, matrices and relations are worth, to two digits;
    infinity itself is none."""
    if isinstance(parsed, Expr):
        if not _is_infinity(parsed):
            yield parsed.evalf(2)
    elif isinstance(parsed, list | MatrixBase):
        for each in parsed:
            yield from _values(each)
    elif isinstance(parsed, Set | Tuple | Relational | And):
        for each in parsed.args:
            yield from _values(each)


def _leading_zeros(value: Expr) -> int:
    """How many zeros follow the point in the smallest number of an evaluated expression."""
    numbers = (Decimal(str(number)) for number in value.atoms(Float) if number)
    return max((-1 - number.adjusted() for number in numbers), default=0)


# The completions of one prompt share its answer; reading it is half of a check.
_read_answer = lru_cache(maxsize=1024)(_read)
