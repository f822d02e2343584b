"""Which problems of a data set are kept for evaluation, and never trained on."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from castctl.data.conversation import earlier_in
from castctl.data.prompts import prompt_id

SHARE = 1 / 4
"""Largest share of the problems, nearly: those whose hash lies below it may be held out."""


def held_out(prompts: pa.Table, number: int) -> NDArray[np.bool_]:
    """Which prompts are held out: the `number` problems of the lowest hashes, of those whose hash
    lies in the lowest quarter, or the one of the lowest hash where none does.

    The hash depends on the problem alone, so that among more problems one that was trained on is
    never held out, since its rank only grows; one held out may become one to train on.
    """
    hash_P = problem_hashes(prompts)
    lowest = np.unique(hash_P)
    candidates = lowest[lowest < int(SHARE * 2**64)]
    return np.isin(hash_P, candidates[:number] if len(candidates) else lowest[:1])


def problem_hashes(prompts: pa.Table) -> NDArray[np.uint64]:
    """A hash of each prompt's problem and the messages before it, whatever the answer: rows of one
    problem have one hash, and stay together."""
    asked = zip(prompts["problem"].to_pylist(), prompts["earlier"].to_pylist(), strict=True)
    ids = (prompt_id(problem, None, earlier_in(cell)) for problem, cell in asked)
    return np.array([int(each, 16) for each in ids], np.uint64)
