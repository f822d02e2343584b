"""Rows of prompt and completion as one flat batch without padding.

Consecutive rows with the same prompt share it: the prompt is computed once and every
completion attends to it. A completion's last token predicts nothing, so it is a target
but never an input.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from castctl.ragged import offsets_of

Ids = NDArray[np.integer]


Prefix = tuple[tuple[int, int], ...]
"""Pieces of earlier segments: (number of the segment, how many of its first tokens)."""


@dataclass(frozen=True)
class Segment:
    """Tokens that attend to a prefix and to one another, causally.

    Positions run on from 0 along the prefix's pieces and then the segment.
    """

    length: int
    prefix: Prefix = ()


@dataclass(frozen=True)
class PackedBatch:
    """One row of `L` input tokens, and where the `N` completion tokens are predicted.

    `predictor_N[j]` is the input position whose hidden state predicts target `j`; targets
    are the completions' tokens, row after row.
    """

    input_ids_L: NDArray[np.int64]
    position_ids_L: NDArray[np.int64]
    segments: tuple[Segment, ...]
    predictor_N: NDArray[np.int64]
    targets_N: NDArray[np.int64]


class Layout:
    """Segments laid out one after the other, to become a packed batch."""

    def __init__(self) -> None:
        self._inputs: list[Ids] = []
        self._positions: list[NDArray[np.int64]] = []
        self._segments: list[Segment] = []
        self._length = 0

    def add(self, tokens: Ids, prefix: Prefix = ()) -> tuple[int, int]:
        """Lay out a segment; its number, and the input position of its first token."""
        number, start = len(self._segments), self._length
        before = sum(count for _, count in prefix)
        self._segments.append(Segment(len(tokens), prefix))
        self._inputs.append(tokens)
        self._positions.append(before + np.arange(len(tokens)))
        self._length += len(tokens)
        return number, start

    def batch(self, predictors: Sequence[Ids], targets: Sequence[Ids]) -> PackedBatch:
        """What was laid out, with the input positions that predict the targets."""
        return PackedBatch(
            input_ids_L=_joined(self._inputs),
            position_ids_L=_joined(self._positions),
            segments=tuple(self._segments),
            predictor_N=_joined(predictors),
            targets_N=_joined(targets),
        )


def pack(prompts: Sequence[Ids], completions: Sequence[Ids]) -> PackedBatch:
    """Pack rows; raises `ValueError` where a prompt is empty: nothing predicts what follows."""
    layout = Layout()
    predictors: list[Ids] = []
    shared, prompt_end = -1, 0
    for row, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
        if len(prompt) == 0:
            raise ValueError("empty prompt")
        if row == 0 or not np.array_equal(prompt, prompts[row - 1]):
            shared, start = layout.add(prompt)
            prompt_end = start + len(prompt)
        if len(completion) == 0:
            continue
        body = completion[:-1]
        predictors.append(np.array([prompt_end - 1]))
        if len(body):
            _, start = layout.add(body, ((shared, len(prompt)),))
            predictors.append(start + np.arange(len(body)))
    return layout.batch(predictors, completions)


def microbatches(
    prompts: Sequence[Ids], completions: Sequence[Ids], budget: int
) -> Iterator[NDArray[np.int64]]:
    """Split rows, in order, into batches of at most `budget` input tokens, or a single row."""
    start, tokens = 0, 0
    for row in range(len(prompts)):
        new_prompt = row == start or not np.array_equal(prompts[row], prompts[row - 1])
        cost = len(completions[row]) + (len(prompts[row]) if new_prompt else 0)
        if row > start and tokens + cost > budget:
            yield np.arange(start, row)
            start, tokens, cost = row, 0, len(completions[row]) + len(prompts[row])
        tokens += cost
    if start < len(prompts):
        yield np.arange(start, len(prompts))


def by_prompt(prompts: Sequence[Ids]) -> NDArray[np.int64]:
    """The order of rows (R) that brings equal prompts together, which are then computed once; first
    come, first served."""
    places: dict[bytes, int] = {}
    ranks = [places.setdefault(prompt.tobytes(), len(places)) for prompt in prompts]
    return np.argsort(ranks, kind="stable").astype(np.int64)


def rows_of(flat: Ids, offsets: NDArray[np.int64]) -> list[Ids]:
    """A ragged array as a list of its rows."""
    return [flat[a:b] for a, b in pairwise(offsets)]


def flattened(rows: Sequence[Ids]) -> tuple[Ids, NDArray[np.int64]]:
    """A list of rows as one flat array and its offsets."""
    flat = np.concatenate(rows) if rows else np.zeros(0, np.int32)
    return flat.astype(np.int32, copy=False), offsets_of([len(row) for row in rows])


def _joined(arrays: Sequence[NDArray]) -> NDArray[np.int64]:
    return np.concatenate(arrays).astype(np.int64) if arrays else np.zeros(0, np.int64)
