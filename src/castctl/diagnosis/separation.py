"""How well a number of a completion tells correct from incorrect ones."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from castctl.diagnosis.bootstrap import REPLICATES, Floats, auc_interval
from castctl.diagnosis.pool import Pool
from castctl.ragged import sums
from castctl.stages.evaluate.statistics import Estimate, problem_share

HISTOGRAM_BINS = 40
HISTOGRAM_REACH = 0.995
"""A histogram spans this share of its values, symmetric about 0; the rest is in its end bins."""


def completion_scores(pool: Pool) -> dict[str, Floats]:
    """Numbers a completion (R): its mean gap, its mean over teacher-positive and over
    teacher-negative tokens (0 without one), and two that no teacher is needed for, its length and
    its mean log-prob under the policy. NaN for a completion without a token that has a gap."""
    count = len(pool.correct_R)
    heard = ~np.isnan(pool.gap_N)
    gap = pool.gap_N[heard].astype(np.float64)
    row = pool.row_N[heard]

    def mean_of(values: Floats, among: NDArray[np.bool_], empty: float) -> Floats:
        size = sums(among, row, count)
        total = sums(np.where(among, values, 0.0), row, count)
        return np.divide(total, size, out=np.full(count, empty), where=size > 0)

    scored = sums(np.ones(len(gap)), row, count) > 0
    scores = {
        "mean_gap": mean_of(gap, np.ones(len(gap), np.bool_), 0.0),
        "mean_positive_gap": mean_of(gap, gap > 0, 0.0),
        "mean_negative_gap": mean_of(gap, gap < 0, 0.0),
        "length": np.diff(pool.offsets).astype(np.float64),
        "mean_logprob": mean_of(
            pool.policy_N[heard].astype(np.float64), np.ones(len(gap), np.bool_), 0.0
        ),
    }
    return {name: np.where(scored, values, np.nan) for name, values in scores.items()}


def describe_separation(
    pool: Pool,
    scores: dict[str, Floats],
    keep_R: NDArray[np.bool_],
    seed: int,
    replicates: int = REPLICATES,
) -> dict[str, Estimate | None]:
    """For each score the AUC of correct against incorrect among the kept completions (R), with an
    interval bootstrapped over prompts; see `auc_interval`."""
    return {
        name: auc_interval(
            values[keep_R], pool.correct_R[keep_R], pool.prompt_R[keep_R], seed, replicates
        )
        for name, values in scores.items()
    }


def within_prompt(pool: Pool, values_R: Floats) -> dict[str, Any]:
    """The AUC inside each mixed group, then the mean over prompts with its interval: what is left
    when no prompt is compared with another. None without a mixed group."""
    group = pool.prompt_R * (int(pool.step_R.max(initial=0)) + 1) + pool.step_R
    kept = pool.mixed_R & np.isfinite(values_R)
    order = np.flatnonzero(kept)[np.argsort(group[kept], kind="stable")]
    starts = np.flatnonzero(np.diff(group[order], prepend=-1))
    found: dict[int, list[float]] = {}
    for rows in np.split(order, starts[1:]) if len(order) else []:
        correct = pool.correct_R[rows]
        right, wrong = values_R[rows][correct], values_R[rows][~correct]
        if len(right) and len(wrong):
            wins = (right[:, None] > wrong).mean() + (right[:, None] == wrong).mean() / 2
            found.setdefault(int(pool.prompt_R[rows[0]]), []).append(float(wins))
    values = np.array([np.mean(each) for each in found.values()])
    return {"prompts": len(values), "auc": problem_share(values) if len(values) else None}


def histograms(values: NDArray[np.floating], correct: NDArray[np.bool_]) -> dict[str, Any]:
    """Counts of values in correct and in incorrect completions over common bins about 0."""
    finite = np.isfinite(values)
    values, correct = values[finite].astype(np.float64), correct[finite]
    reach = float(np.quantile(np.abs(values), HISTOGRAM_REACH)) if len(values) else 1.0
    edges = np.linspace(-1, 1, HISTOGRAM_BINS + 1) * (reach or 1.0)
    inside = np.clip(values, edges[0], edges[-1])
    return {
        "edges": edges,
        "correct": np.histogram(inside[correct], edges)[0],
        "incorrect": np.histogram(inside[~correct], edges)[0],
    }
