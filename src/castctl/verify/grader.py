"""One check: does an extracted answer equal the reference? Loaded inside the workers."""

from __future__ import annotations

import logging
from functools import lru_cache
from typing import Any

from math_verify import parse, verify
from sympy import Add, Mul, Pow, S, preorder_traversal

from castctl.verify.spelling import respelled

# It warns once a process that its timeouts are off; the pool keeps the time.
logging.getLogger("math_verify").setLevel(logging.ERROR)


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
    read = _read(extracted)
    return verify(gold, read, timeout_seconds=None) and not _computes_with_infinity(read)


def _read(text: str) -> list[Any]:
    parsed: list[Any] = parse(f"\\boxed{{{respelled(text)}}}", parsing_timeout=None)
    return parsed


def _computes_with_infinity(parsed: list[Any]) -> bool:
    r"""Whether infinity is a term, factor or power; math-verify takes 3.5^{\infty^{3.5}} for 7."""
    return any(
        isinstance(node, (Add, Mul, Pow))
        and any(arg in _INFINITIES for arg in node.args)
        and node.args != (S.NegativeOne, S.Infinity)
        for node in preorder_traversal(parsed)
    )


# The completions of one prompt share its answer; reading it is half of a check.
_read_answer = lru_cache(maxsize=1024)(_read)
