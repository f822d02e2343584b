"""math-verify without castctl around it, in a module that a worker can import by name."""

from __future__ import annotations

from math_verify import parse, verify


def alone(answer: str, completion: str) -> bool:
    """What math-verify says of a completion as it is."""
    gold = parse(rf"\boxed{{{answer}}}", parsing_timeout=None)
    return verify(gold, parse(completion, parsing_timeout=None), timeout_seconds=None)
