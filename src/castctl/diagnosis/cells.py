"""The four cells of the gap: how much of it there is, how it is spread, and how noisy it is."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from castctl.diagnosis.bootstrap import Floats, estimate, interval_of_sums
from castctl.diagnosis.pool import CELLS, MISLEADING, Pool
from castctl.ragged import sums
from castctl.stages.evaluate.statistics import difference

QUANTILES = (0.01, 0.05, 0.5, 0.95, 0.99)
TAIL = 0.01
"""The share of the tokens with a gap, those of the largest, that are called the tail."""

PLACES = np.linspace(0, 1, 11)
"""Edges of the places in a completion."""
ENTROPIES = np.array([0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, np.inf])
"""Edges of the entropies, in nats: most tokens are near 0, and tell little."""
ENOUGH = 30
"""Tokens of a cell that a bin must hold to enter a rate of decay."""

MOMENTS = 5
"""What is summed of a cell's tokens: their number, g, g^2, and those that agree and disagree with
the completion's advantage."""


def describe_cells(pool: Pool, seed: int) -> dict[str, Any]:
    """The four cells of a pool's tokens, and what they say together.

    For each cell: `tokens`, `share` of the tokens whose gap is not 0 (with interval), `mass_share`
    of their sum of |g|; `mean` (with interval), `std` and `quantiles` of g in nats; `tail_share`,
    the share of its tokens among the 1 % of tokens with the largest |g|, and `tail_mass`, the share
    of its sum of |g| that those carry; `snr` = |mean| / std (with interval); `agrees`, `disagrees`
    and `undirected`, the shares of its tokens whose sign is that of the completion's group-relative
    advantage, the other one, or whose completion has none; `misleads`, whether following its sign
    would go against correctness. All intervals are over prompts.
    """
    cell_N = pool.cell_N()
    sums_PCM = _moments(pool, cell_N)
    there = sums_PCM[:, :, 0].any(1)
    flat = sums_PCM[there].reshape(int(there.sum()), len(CELLS) * MOMENTS)
    values, lows, highs = interval_of_sums(flat, _statistics, seed)
    size_N = np.abs(pool.gap_N)
    in_cells = cell_N >= 0
    edge = float(np.quantile(size_N[in_cells], 1 - TAIL)) if in_cells.any() else float("nan")
    cells = {}
    for number, name in enumerate(CELLS):
        gap = pool.gap_N[cell_N == number].astype(np.float64)
        bounds = [estimate(v, lo, hi) for v, lo, hi in
                  zip(values[number], lows[number], highs[number], strict=True)]  # fmt: skip
        directed = np.array(bounds[4].mean + bounds[5].mean)
        cells[name] = {
            "tokens": len(gap),
            "share": bounds[0],
            "mass_share": bounds[1],
            "mean": bounds[2],
            "snr": bounds[3],
            "agrees": bounds[4].mean,
            "disagrees": bounds[5].mean,
            "undirected": float(difference(directed, np.ones(()))),
            "misleads": bool(MISLEADING[number]),
            **_spread(gap, edge),
        }
    together = [estimate(v, lo, hi) for v, lo, hi in
                zip(values[4], lows[4], highs[4], strict=True)]  # fmt: skip
    heard = ~np.isnan(pool.gap_N)
    return {
        "completions": len(np.unique(pool.row_N[heard])),
        "prompts": len(np.unique(pool.prompt_R[np.unique(pool.row_N[heard])])),
        "tokens": int(heard.sum()),
        "zero_share": float((pool.gap_N[heard] == 0).mean()) if heard.any() else None,
        "tail_edge": edge,
        "cells": cells,
        "misleading_share": together[0],
        "misleading_mass": together[1],
        "agreement": together[2],
        "agreement_by_chance": together[3],
        "agreement_excess": together[4],
        "rms": together[5],
    }


def _moments(pool: Pool, cell_N: NDArray[np.int8]) -> Floats:
    """Sums over the tokens of each prompt and cell (P, 4, MOMENTS)."""
    kept = cell_N >= 0
    row_N = pool.row_N[kept]
    gap = pool.gap_N[kept].astype(np.float64)
    key = pool.prompt_R[row_N] * len(CELLS) + cell_N[kept]
    agreement = np.sign(gap) * pool.direction_R[row_N]
    columns = (np.ones(len(gap)), gap, gap**2, agreement > 0, agreement < 0)
    size = pool.prompts * len(CELLS)
    return np.stack([sums(c, key, size) for c in columns], -1).reshape(-1, len(CELLS), MOMENTS)


def _statistics(sums_BK: Floats) -> Floats:
    """From sums (B, 4 * MOMENTS): a row of six numbers a cell, and one for all (B, 5, 6)."""
    sums_BCM = sums_BK.reshape(len(sums_BK), len(CELLS), MOMENTS)
    n, g, g2, agree, disagree = np.moveaxis(sums_BCM, -1, 0)
    mass = np.abs(g)  # a cell's gaps have one sign
    cells = np.stack(
        [
            _ratio(n, n.sum(1, keepdims=True)),
            _ratio(mass, mass.sum(1, keepdims=True)),
            _ratio(g, n),
            signal_to_noise(n, g, g2),
            _ratio(agree, n),
            _ratio(disagree, n),
        ],
        -1,
    )
    directed = agree + disagree
    positive = directed[:, [0, 2]].sum(1)
    upward = directed[:, [0, 1]].sum(1)  # a correct completion of a mixed group is pushed up
    all_directed = directed.sum(1)
    agreement = _ratio(agree.sum(1), all_directed)
    p, q = _ratio(positive, all_directed), _ratio(upward, all_directed)
    chance = p * q + (1 - p) * (1 - q)
    together = np.stack(
        [
            _ratio(n[:, MISLEADING].sum(1), n.sum(1)),
            _ratio(mass[:, MISLEADING].sum(1), mass.sum(1)),
            agreement,
            chance,
            difference(chance, agreement),
            np.sqrt(_ratio(g2.sum(1), n.sum(1))),
        ],
        -1,
    )
    return np.concatenate([cells, together[:, None]], 1)


def signal_to_noise(n: Floats, g: Floats, g2: Floats) -> Floats:
    """|mean| / std (population) from the number of values, their sum and their sum of squares; NaN
    without two different values."""
    mean = _ratio(g, n)
    variance = np.maximum(_ratio(g2, n) - mean**2, 0.0)
    # What rounding leaves of equal values is no spread.
    deviation = np.sqrt(np.where(variance > 1e-12 * mean**2, variance, np.nan))
    return np.abs(mean) / deviation


def _ratio(above: Floats, below: Floats) -> Floats:
    below = np.broadcast_to(below, above.shape)
    return np.divide(above, below, out=np.full(above.shape, np.nan), where=below > 0)


def _spread(gap: Floats, edge: float) -> dict[str, Any]:
    if not len(gap):
        return {"std": None, "quantiles": {}, "tail_share": None, "tail_mass": None}
    size = np.abs(gap)
    tail = size > edge
    quantiles = np.quantile(gap, QUANTILES)
    return {
        "std": float(gap.std()),
        "quantiles": {f"{q:g}": float(v) for q, v in zip(QUANTILES, quantiles, strict=True)},
        "tail_share": float(tail.mean()),
        "tail_mass": float(size[tail].sum() / size.sum()),
    }


def describe_decay(
    pool: Pool, value_N: NDArray[np.float32], edges: Floats, seed: int
) -> dict[str, Any]:
    """How each cell's signal-to-noise changes with a value of the token, cut at `edges` (B + 1).

    `centers` are the bins' mean values; for each cell `tokens`, `mean_size` = mean |g| and `snr`
    (None below `ENOUGH` tokens) by bin, and `rate`, with an interval over prompts: minus the slope
    of ln(snr) over the centers by least squares over bins of `ENOUGH` tokens, so that snr falls by
    the factor e over 1 / rate.
    """
    cell_N = pool.cell_N()
    bins = len(edges) - 1
    kept = (cell_N >= 0) & np.isfinite(value_N)
    bin_n = np.clip(np.searchsorted(edges, value_N[kept], side="right") - 1, 0, bins - 1)
    gap = pool.gap_N[kept].astype(np.float64)
    centers = _ratio(sums(value_N[kept], bin_n, bins), sums(np.ones(len(gap)), bin_n, bins))
    key = (pool.prompt_R[pool.row_N[kept]] * len(CELLS) + cell_N[kept]) * bins + bin_n
    size = pool.prompts * len(CELLS) * bins
    columns = (np.ones(len(gap)), gap, gap**2)
    sums_PK = np.stack([sums(c, key, size) for c in columns], -1).reshape(-1, len(CELLS) * bins * 3)
    sums_PK = sums_PK[sums_PK.any(1)]

    def rates(sums_BK: Floats) -> Floats:
        n, g, g2 = np.moveaxis(sums_BK.reshape(len(sums_BK), len(CELLS), bins, 3), -1, 0)
        return _decay_rate(signal_to_noise(n, g, g2), n, centers)

    values, lows, highs = interval_of_sums(sums_PK, rates, seed)
    n, g, g2 = np.moveaxis(sums_PK.sum(0).reshape(len(CELLS), bins, 3), -1, 0)
    snr = np.where(n >= ENOUGH, signal_to_noise(n, g, g2), np.nan)
    mean_size = _ratio(np.abs(g), n)
    return {
        "centers": centers,
        "cells": {
            name: {
                "tokens": n[c].astype(np.int64),
                "mean_size": mean_size[c],
                "snr": snr[c],
                "rate": estimate(values[c], lows[c], highs[c]),
            }
            for c, name in enumerate(CELLS)
        },
    }


def _decay_rate(snr_BCX: Floats, n_BCX: Floats, centers_X: Floats) -> Floats:
    """Minus the least-squares slope of ln(snr) over the centers (B, C); NaN with fewer than three
    bins of `ENOUGH` tokens."""
    usable = (snr_BCX > 0) & (n_BCX >= ENOUGH)
    weight = usable.astype(np.float64)
    height = np.log(np.where(usable, snr_BCX, 1.0))
    total = weight.sum(-1)
    x = np.where(usable, centers_X, 0.0)
    mean_x, mean_y = _ratio((weight * x).sum(-1), total), _ratio((weight * height).sum(-1), total)
    dx, dy = x - mean_x[..., None], height - mean_y[..., None]
    slope = _ratio((weight * dx * dy).sum(-1), (weight * dx**2).sum(-1))
    return np.where(usable.sum(-1) >= 3, -slope, np.nan)
