"""The gap of a teacher, privileged or answer-free, on correct and on incorrect completions.

After the diagnosis that CAST begins with (arXiv 2606.00172): the positive and the negative part of
the gap behave differently on correct and on incorrect rollouts. The measures themselves are ours.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from castctl.diagnosis.agreement import add_agreement, agreement
from castctl.diagnosis.bootstrap import Floats
from castctl.diagnosis.carriers import carrying_contexts, carrying_tokens
from castctl.diagnosis.cells import ENTROPIES, PLACES, describe_cells, describe_decay
from castctl.diagnosis.clusters import PromptSums
from castctl.diagnosis.data import StepData
from castctl.diagnosis.diagnosis import Context, Numbers
from castctl.diagnosis.pool import Pool, pool_steps
from castctl.diagnosis.separation import (
    completion_scores,
    describe_separation,
    histograms,
    within_prompt,
)
from castctl.methods.baselines import GroupBaseline
from castctl.methods.cast import CastShaping
from castctl.methods.schedule import Moment

OF_A_STEP = 200
"""Replicates of an interval that is told of every step."""


def measure(steps: Iterator[StepData], context: Context) -> Numbers:
    """All that is told of a gap, over all completions whose reward is known.

    `all` and `mixed` (groups with correct and incorrect completions alone): see `describe_cells`.
    `decay`: by `entropy` (nats) and `position` (0 to 1 of the completion), see `describe_decay`.
    `separation`: AUC by score, among `all` and `mixed` completions and `within_prompt`.
    `tokens` and `contexts` that carry the most; `histograms` of tokens' and of completions' mean
    gaps; `by_step`. Gaps in nats; intervals over prompts.
    """
    pool = pool_steps(steps)
    return _numbers(pool, context)


def measure_with_life(steps: Iterator[StepData], context: Context) -> Numbers:
    """The same, and of CAST by the run's settings or its own: `alive`, by step, how much of the gap
    there is, and the teacher's age; `agreement` of the advantages it makes with the gap."""
    alive: list[dict[str, Any]] = []
    agreeing = PromptSums()

    def watched() -> Iterator[StepData]:
        for data in steps:
            alive.append(_life(data, context.cast))
            if data.groups.binary:  # CAST reads no others
                add_agreement(agreeing, data, _shaped_N(data, context))
            yield data

    pool = pool_steps(watched())
    return {**_numbers(pool, context), "alive": alive, "agreement": agreement(agreeing)}


def _shaped_N(data: StepData, context: Context) -> Floats:
    """The advantages (N) that CAST makes of a step's gap."""
    assert data.signals is not None
    tokens, moment = data.signals.tokens, Moment(data.step)
    base_R = GroupBaseline().advantages_R(data.groups, tokens)
    base_R = context.zero_variance.fill_R(base_R, data.groups, moment)
    return context.cast.shape(base_R, tokens, data.groups, moment).advantages_N


def _numbers(pool: Pool, context: Context) -> Numbers:
    seed = context.seed
    scores = completion_scores(pool)
    every_R = np.ones(len(pool.correct_R), np.bool_)
    return {
        "correct": int(pool.correct_R.sum()),
        "incorrect": int((~pool.correct_R).sum()),
        "all": describe_cells(pool, seed),
        "mixed": describe_cells(pool.completions(pool.mixed_R), seed),
        "decay": {
            "position": describe_decay(pool, pool.position_N, PLACES, seed),
            "entropy": None
            if not np.isfinite(pool.entropy_N).any()
            else describe_decay(pool, pool.entropy_N, ENTROPIES, seed),
        },
        "separation": {
            "all": describe_separation(pool, scores, every_R, seed),
            "mixed": describe_separation(pool, scores, pool.mixed_R, seed),
            "within_prompt": {name: within_prompt(pool, values) for name, values in scores.items()},
        },
        "tokens": carrying_tokens(pool, context.texts),
        "contexts": carrying_contexts(pool, context.texts),
        "histograms": {
            "token": histograms(pool.gap_N, np.repeat(pool.correct_R, np.diff(pool.offsets))),
            "completion": histograms(scores["mean_gap"], pool.correct_R),
        },
        "by_step": _by_step(pool, scores, seed),
    }


def _by_step(pool: Pool, scores: dict[str, Floats], seed: int) -> list[dict[str, Any]]:
    """The cells' tokens, shares and means, and the AUC of the mean gap, of each of several
    steps."""
    rows: list[dict[str, Any]] = []
    if len(np.unique(pool.step_R)) < 2:
        return rows
    gap_score = {"mean_gap": scores["mean_gap"]}
    for step in np.unique(pool.step_R):
        here_R = pool.step_R == step
        cells = describe_cells(pool.completions(here_R), seed)
        rows.append(
            {
                "step": int(step),
                "completions": cells["completions"],
                "tokens": cells["tokens"],
                "rms": cells["rms"].mean,
                "misleading_share": cells["misleading_share"].mean,
                "cells": {
                    name: {key: cell[key] for key in ("tokens", "share", "mean")}
                    for name, cell in cells["cells"].items()
                },
                "auc": describe_separation(pool, gap_score, here_R, seed, OF_A_STEP)["mean_gap"],
            }
        )
    return rows


def _life(data: StepData, shaping: CastShaping) -> dict[str, Any]:
    """How much of a step's gap is alive: its `rms` and mean size in nats, the `beyond_*` shares of
    tokens past CAST's threshold and past 0.1 nats, and the teacher's `age` in steps, None where it
    has none."""
    assert data.signals is not None and data.signals.tokens.gap_N is not None
    gap = data.signals.tokens.gap_N
    heard = gap[~np.isnan(gap)]
    size = np.abs(heard)
    tau_N = shaping.thresholds(gap, data.signals.tokens.offsets, data.groups)
    return {
        "step": data.step,
        "age": _age(data),
        "rms": float(np.sqrt(np.mean(heard**2))) if len(heard) else None,
        "mean_size": float(size.mean()) if len(heard) else None,
        "beyond_tau": float((np.abs(gap) > tau_N)[~np.isnan(gap)].mean()) if len(heard) else None,
        "beyond_tenth": float((size > 0.1).mean()) if len(heard) else None,
    }


def _age(data: StepData) -> int | None:
    made = data.made.get("signals", {}).get("signals", {}).get("teacher_logprobs")
    teacher = made.get("teacher", {}) if isinstance(made, dict) else {}
    if teacher.get("kind") == "snapshot" and "every" in teacher:
        return data.step % teacher["every"]
    return data.step if teacher.get("kind") == "initial" else None
