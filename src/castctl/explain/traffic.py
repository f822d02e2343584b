"""Bytes that ranks move, counted for rings: what a rank sends, and receives as much.

Counted at the longest, with every completion in the update. Float32 numbers are summed and
gathered. Statistics, the checks that ranks are alike, and parts that ranks read of one another from
disk are not counted.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

from castctl.explain.footprint import FLOAT32
from castctl.explain.model_shape import ModelShape


@dataclass(frozen=True)
class Passes:
    """Optimizer steps of an update, and the micro-batches of each, on all ranks together."""

    optimizer_steps: int
    microbatches: int


def moved_bytes(
    shape: ModelShape, trained: int, passes: Passes, ranks: int, whole: int | None, teaches: bool
) -> dict[str, int]:
    """Bytes that each of `ranks` sends in a step, by part; `whole` are those of a whole copy at
    rest where weights lie in shares.

    A ring that gathers shares, or that sums and leaves each rank its share, moves (N - 1) / N of
    the bytes; a sum for all is both, one after the other. Whole weights: a sum of the `trained`
    gradients an optimizer step. In shares: every rank walks through as many micro-batches as the
    one with most, gathers blocks forward and backward and the rest once in each, and sums its
    gradients into shares. After each optimizer step the copy that samples is gathered, rounded as
    it rests, and once a step, at most, that of a teacher that follows the policy (`teaches`).
    """
    if ranks == 1:
        return {}
    steps = passes.optimizer_steps

    def ring(size: int) -> int:
        return size * (ranks - 1) // ranks

    if whole is None:
        return {"sums of gradients": 2 * ring(steps * trained * FLOAT32)}
    walks = FLOAT32 * steps * ceil(passes.microbatches / ranks)
    return {
        "weights for each micro-batch": ring(walks * (shape.parameters + shape.blocks)),
        "gradients of each micro-batch": ring(walks * shape.parameters),
        "weights of whole copies": ring((steps + teaches) * whole),
    }
