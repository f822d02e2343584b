"""RLSD and RLRT against a plain reading of their weights."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batches import NAN, REAL, Batch, advantages_of, batches, close, grpo
from castctl.methods.advantages import Advantages
from castctl.methods.schedule import Moment, linear_decay
from castctl.shards.part import Part
from castctl.shards.schema import SIGNALS
from castctl.stages.signals import read_signals

ANY = batches() | batches(REAL)
STEPS = st.sampled_from([0, 1, 10, 49, 50, 51, 400])
USUAL = {"rlsd": (0.2, 50), "rlrt": (1.0, 0)}
"""Each paper's eps_w and the steps over which its shaping fades, 0 where it does not."""

SETTINGS = st.fixed_dictionaries(
    {},
    optional={
        "eps_w": st.sampled_from([0.0, 0.2, 1.0]),
        "lam": st.floats(0, 1),
        "decay_steps": st.sampled_from([0, 1, 50]),
    },
)


def shaped(batch: Batch, name: str, step: int = 0, **shaping: Any) -> Advantages:
    return advantages_of(batch, Moment(step), name=name, shaping=shaping)


# The plain reading


def plain(
    batch: Batch,
    name: str,
    step: int = 0,
    eps_w: float | None = None,
    lam: float = 0.5,
    decay_steps: int | None = None,
) -> list[float]:
    """Advantage of every token, one at a time; what is left out is the paper's."""
    eps_w = USUAL[name][0] if eps_w is None else eps_w
    decay_steps = USUAL[name][1] if decay_steps is None else decay_steps
    if decay_steps:
        lam = lam * (1 - step / decay_steps) if step < decay_steps else 0.0
    advantages = []
    for a, gaps in zip(grpo(batch), batch.gaps, strict=True):
        for g in gaps:
            if math.isnan(g) or a == 0:
                w = 1.0
            elif name == "rlsd":
                w = math.exp(g if a > 0 else -g)
            else:
                w = math.exp(-g) if a > 0 else 1.0
            w = min(max(w, 1 - eps_w), 1 + eps_w)
            advantages.append((1 - lam) * a + lam * a * w)
    return advantages


@pytest.mark.parametrize("name", ["rlsd", "rlrt"])
@given(batch=ANY, step=STEPS, settings=SETTINGS)
def test_the_formula(name: str, batch: Batch, step: int, settings: dict[str, Any]) -> None:
    result = shaped(batch, name, step, **settings)
    close(result.base_R, grpo(batch))
    close(result.advantages_N, plain(batch, name, step, **settings))
    base_N = np.array(batch.per_token(list(result.base_R)))
    assert result.weights_N is not None
    close(result.advantages_N, list(base_N * result.weights_N))
    assert result.flipped_N is None


def test_by_hand() -> None:
    """Base +-1 (eps 1e-6), lambda 0.5 at step 0; gaps within and beyond the clip."""
    gaps = [0.1, -0.1, 9.0, -9.0, NAN]
    batch = Batch([1.0, 0.0], [0, 0], [gaps, gaps])
    up, down = math.exp(0.1), math.exp(-0.1)

    def half(weights: list[float]) -> list[float]:
        return [0.5 + 0.5 * w for w in weights]

    right, wrong = half([up, down, 1.2, 0.8, 1.0]), half([down, up, 0.8, 1.2, 1.0])
    rlsd = shaped(batch, "rlsd").advantages_N
    np.testing.assert_allclose(rlsd, right + [-w for w in wrong], rtol=3e-6)
    rlrt = half([down, up, math.exp(-9), 2.0, 1.0])
    for step in (0, 60, 10_000):  # it does not fade
        found = shaped(batch, "rlrt", step).advantages_N
        np.testing.assert_allclose(found, rlrt + [-1.0] * 5, rtol=3e-6)
    narrow = shaped(batch, "rlrt", eps_w=0.2).advantages_N
    np.testing.assert_allclose(narrow, wrong + [-1.0] * 5, rtol=3e-6)


# What follows from it


@pytest.mark.parametrize("name", ["rlsd", "rlrt"])
@given(batch=ANY)
def test_without_strength_it_is_grpo(name: str, batch: Batch) -> None:
    plain_grpo = advantages_of(batch).advantages_N
    for off in ({"lam": 0.0}, {"eps_w": 0.0}):
        assert (shaped(batch, name, **off).advantages_N == plain_grpo).all()
    decayed = shaped(batch, name, step=50, decay_steps=50)
    assert (decayed.advantages_N == plain_grpo).all()
    assert (shaped(batch.with_gap(0.0), name).advantages_N == plain_grpo).all()
    assert (shaped(batch.with_gap(NAN), name).advantages_N == plain_grpo).all()


@given(ANY)
def test_rlrt_leaves_wrong_completions_to_grpo(batch: Batch) -> None:
    base_N = np.array(batch.per_token(grpo(batch)))
    wrong = base_N <= 0
    rlrt = shaped(batch, "rlrt").advantages_N
    assert (rlrt[wrong] == advantages_of(batch).advantages_N[wrong]).all()


@given(ANY, STEPS, SETTINGS)
def test_rlrt_reads_rlsds_teacher_in_reverse(
    batch: Batch, step: int, settings: dict[str, Any]
) -> None:
    """On correct completions it is RLSD with the gap's other sign."""
    opposite = replace(batch, gaps=[[-g for g in gaps] for gaps in batch.gaps])
    right = np.array(batch.per_token(grpo(batch))) > 0
    usual = dict(zip(("eps_w", "decay_steps"), USUAL["rlrt"], strict=True))
    settings = usual | settings
    rlrt = shaped(batch, "rlrt", step, **settings).advantages_N
    rlsd = shaped(opposite, "rlsd", step, **settings).advantages_N
    assert (rlrt[right] == rlsd[right]).all()


@pytest.mark.parametrize("name", ["rlsd", "rlrt"])
@given(batch=ANY, step=STEPS, settings=SETTINGS)
def test_the_direction_is_the_verifiers(
    name: str, batch: Batch, step: int, settings: dict[str, Any]
) -> None:
    """The sign stays, and the size moves by at most lambda eps_w."""
    result = shaped(batch, name, step, **settings)
    base_N = np.array(batch.per_token(grpo(batch)))
    assert (result.advantages_N * base_N >= 0).all()
    bound = settings.get("lam", 0.5) * settings.get("eps_w", USUAL[name][0]) * np.abs(base_N)
    assert (np.abs(result.advantages_N - base_N) <= bound + 1e-12).all()


@pytest.mark.parametrize("name", ["cast", "rlsd", "rlrt"])
@pytest.mark.parametrize("skip", [0, 1, 2, 9])
def test_a_teacher_is_not_heard_at_the_first_tokens(name: str, skip: int) -> None:
    """Of each completion, as where it was not scored; of empty and one-token ones too."""
    gaps = [[0.1, -0.2, 0.1, 0.15], [], [-0.1], [0.2, 0.1]]
    rows = [
        {
            "prompt_id": "a",
            "sample": n,
            "policy_logprobs": [-1.0] * len(gap),
            "teacher_logprobs": [g - 1.0 for g in gap],
        }
        for n, gap in enumerate(gaps)
    ]
    part = Part(Path("signals"), pa.Table.from_pylist(rows, SIGNALS), None)
    read = read_signals(part, skip).tokens
    unheard = [[NAN if t < skip else g for t, g in enumerate(gap)] for gap in gaps]
    batch = Batch([1.0, 0.0, 0.0, 1.0], [0] * 4, unheard)
    np.testing.assert_allclose(read.gap_N, batch.signals.gap_N, atol=1e-6)
    base_N = np.array(batch.per_token(grpo(batch)))
    result = advantages_of(batch, Moment(), name=name)
    heard = np.array([t >= skip for gap in gaps for t in range(len(gap))])
    assert (result.advantages_N[~heard] == base_N[~heard]).all()
    assert (result.advantages_N != base_N)[heard & (base_N > 0)].all()


@given(st.integers(0, 1000), st.integers(0, 1000))
def test_decay(step: int, over: int) -> None:
    strength = linear_decay(Moment(step), over)
    if over == 0:
        assert strength == 1
    else:
        assert strength == pytest.approx(max(over - step, 0) / over, abs=1e-12)
    assert linear_decay(Moment(0), over) == 1
