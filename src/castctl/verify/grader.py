"""One check: does an extracted answer equal the reference? Loaded inside the workers."""

from __future__ import annotations

import contextlib
import itertools
import logging
import re
from collections.abc import Iterator
from decimal import Decimal
from functools import lru_cache
from typing import Any

from math_verify import LatexExtractionConfig, parse, verify
from sympy import And, Basic, Eq, Expr, FiniteSet, Float, I, MatrixBase, S, Set, Tuple
from sympy.core.relational import Relational

from castctl.verify.approximations import APPROXIMATELY, approximated, rounds
from castctl.verify.choices import choice
from castctl.verify.claims import claims_otherwise, listed
from castctl.verify.decimals import endless
from castctl.verify.letters import told_apart
from castctl.verify.plain import same_plainly
from castctl.verify.solutions import Solutions, relates, solutions
from castctl.verify.spelling import ratio, respelled, spellings
from castctl.verify.times import same_time, time_of_day
from castctl.verify.words import same_words
from castctl.verify.wrapping import bare

# It warns once a process that its timeouts are off; the pool keeps the time.
logging.getLogger("math_verify").setLevel(logging.ERROR)

RULES = 5
"""Goes up where a rule in this room changes: verdicts by other rules are others."""

# By default, of a box that does not parse, it takes the last number or fraction that it finds.
_WHOLE_BOX = (LatexExtractionConfig(boxed_match_priority=0),)

_NUMBER = re.compile(r"-?[0-9]{1,30}(?:\.[0-9]{1,30})?")
_LETTER = re.compile("[A-Ea-e]")  # a choice, in whatever case

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
    same = same_plainly(answer, extracted)
    if same is not None:
        return same
    answer, extracted = answer.strip(), extracted.strip()
    if _NUMBER.fullmatch(answer) and _NUMBER.fullmatch(extracted):  # most are, and no rule applies
        return _equal(_read_answer(answer), _read(extracted))
    if _LETTER.fullmatch(answer) and answer.casefold() == extracted.casefold():
        return True
    ours, theirs = choice(extracted), choice(answer)
    if ours and theirs and not (ours.value and theirs.value):
        return ours.letter == theirs.letter
    if ours and theirs and ours.letter != theirs.letter:
        return False
    answer = theirs.value if theirs and theirs.value else answer
    extracted = ours.value if ours and ours.value else extracted
    for same in (same_time(answer, extracted), same_words(answer, extracted)):
        if same is not None:
            return same
    if bare(respelled(answer)) == bare(respelled(extracted)):
        return True
    terms, others = ratio(answer), ratio(extracted)
    if terms or others:
        return _same_ratio(terms, others)
    if {endless(answer), endless(extracted)} == {True, False}:  # as close as they may be
        return False
    answer, extracted = told_apart(respelled(answer), respelled(extracted))
    gold = _read_answer(answer)
    if not gold:
        raise UnparsableAnswer(f"math-verify cannot read the answer {answer[:80]!r}")
    written = respelled(answer)
    solved, found = solutions(written), solutions(respelled(extracted))
    if solved and found:
        return _same_solutions(solved, found)
    if any(claims_otherwise(spelling, written) for spelling in spellings(extracted)):
        return found is not None and _are_solutions(gold, found)  # x \neq 2 denies nothing
    read = _read(extracted)
    if solved and not _are_solutions(read, solved):
        return relates(extracted) and _equal(gold, read)
    if found and not _are_solutions(gold, found):
        return relates(written) and _equal(gold, read)
    if solved or found:
        return True
    if not _equal(gold, read) or _approximates_otherwise(respelled(extracted), written, gold):
        return False
    return _same_repeats(written, gold, respelled(extracted), read)


def self_verifies(answer: str) -> bool:
    """Whether math-verify reads the answer, and takes it for equal to itself. As dangerous as
    `grade`."""
    if time_of_day(answer) or choice(answer):
        return True
    gold = _read(answer)
    return bool(gold) and verify(gold, gold, timeout_seconds=None)


def _equal(gold: list[Any], read: list[Any]) -> bool:
    """Whether math-verify takes the two for one, without what it is too kind to."""
    if not (_believable(read) and verify(gold, read, timeout_seconds=None)):
        return False
    values = [*_values(gold), *_values(read)]
    if any(value.has(*_INFINITIES) for value in values):  # 3.5^{\tanh^{-1}(1)^{3.5}} is a joker too
        return False
    # By six decimal places, and by fifteen where there are no decimals, all small numbers are one.
    zeros = max(map(_leading_zeros, values), default=0)
    return not zeros or verify(gold, read, 6 + zeros, 15 + zeros, timeout_seconds=None)


def _approximates_otherwise(extracted: str, answer: str, gold: list[Any]) -> bool:
    r"""Whether a number is given for what the answer has as an expression of unknowns, as
    x^2 + 1 \approx 7 for x^2 + 1, or for another number that it does not round, \pi \approx 7."""
    if APPROXIMATELY.search(answer):
        return False
    for one, other in itertools.pairwise(approximated(extracted)):
        ours, theirs = _numbers(one), _numbers(other)
        if theirs and any(_has_unknowns(each) for each in gold):
            return True
        if (
            ours
            and theirs
            and not any(rounds(b, other, a) or rounds(a, one, b) for a in ours for b in theirs)
        ):
            return True
    return False


def _numbers(text: str) -> list[float]:
    """What a side is worth in each of its readings, where that is a real number."""
    values = []
    for each in _read(text):
        if isinstance(each, Expr) and not each.free_symbols:
            with contextlib.suppress(
                TypeError, ValueError, OverflowError
            ):  # not real, or too large
                values.append(float(each.doit()))
    return values


def _has_unknowns(parsed: Any) -> bool:
    parsed = parsed.rhs if isinstance(parsed, Eq) else parsed
    return isinstance(parsed, Expr) and bool(parsed.free_symbols)


def _same_ratio(one: list[str], other: list[str]) -> bool:
    """Whether each term is to the next as in the other: 1:2:3 is 2:4:6, and not 1:3:2."""
    first, second = (
        [rf"\frac{{{a}}}{{{b}}}" for a, b in itertools.pairwise(terms)] for terms in (one, other)
    )
    return len(first) == len(second) and all(map(grade, first, second))


def _same_solutions(one: Solutions, other: Solutions) -> bool:
    """Whether inequalities of one unknown have the same solutions."""
    if one.unknown and other.unknown and one.unknown != other.unknown:
        return False
    return _equal(_read(one.intervals), _read(other.intervals))


def _are_solutions(read: list[Any], told: Solutions) -> bool:
    """Whether a set is that of the solutions: of 1 < x < 3 neither the pair of 1 and 3 nor any
    one of them, which math-verify takes for (1, 3)."""
    points = r"\{" in told.intervals
    return (points or not any(isinstance(each, FiniteSet) for each in read)) and _equal(
        read, _read(told.intervals)
    )


def _same_repeats(answer: str, gold: list[Any], extracted: str, read: list[Any]) -> bool:
    """Whether lists that are one set hold each element as often: 1, 1, 2 is not 1, 2."""
    theirs, ours = listed(answer), listed(extracted)
    if not (_repeats(theirs, gold) or _repeats(ours, read)):
        return True
    if len(theirs) != len(ours):
        return False
    for item in theirs:
        same = next((each for each in ours if grade(item, each)), None)
        if same is None:
            return False
        ours.remove(same)
    return True


def _repeats(items: list[str], read: list[Any]) -> bool:
    return any(isinstance(each, FiniteSet) and len(items) > len(each) for each in read)


def _read(text: str) -> list[Any]:
    readings = (
        parse(f"\\boxed{{{each}}}", _WHOLE_BOX, extraction_mode="first_match", parsing_timeout=None)
        for each in spellings(text)
    )
    return [_with_i(expression) for reading in readings for expression in reading]


def _with_i(parsed: Any) -> Any:
    """With the imaginary unit for the symbols `i`, which 4i and 4 i have a different one of."""
    if not isinstance(parsed, Basic | MatrixBase):
        return parsed
    units = {each: I for each in parsed.free_symbols if str(each) == "i"}
    if units and isinstance(parsed, Relational):  # which is not to be decided
        return parsed.func(*(side.xreplace(units) for side in parsed.args), evaluate=False)
    try:
        return parsed.xreplace(units) if units else parsed
    except ValueError:  # an interval has no such end
        return parsed


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
