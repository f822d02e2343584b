"""Shares as people read them: of one total each, in per cent, and their changes in points."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from castctl.cli.train import step_line
from castctl.methods.cast import CastShaping
from castctl.report.marks import percent, points
from castctl.shards.schema import SCHEMAS
from castctl.stages.measures import Measures, Slots, measure_advantages
from test_panel import course, drawn, line_of, row

CROSSED = {"flipped_share": 0.59, "flipped_down_share": 0.98, "flipped_up_share": 0.2}
"""Flips of two directions that would add up to 118 %."""


def measured(bases: list[float], flips: list[list[bool]]) -> Measures:
    """Measures of completions of one group, each with its base and its tokens' flips."""
    rows = [
        {
            "prompt_id": "a", "sample": n, "group_kind": "mixed", "kept": True, "base": base,
            "advantages": [base] * len(own), "weights": [1.0] * len(own), "flipped": own,
        }
        for n, (base, own) in enumerate(zip(bases, flips, strict=True))
    ]  # fmt: skip
    rewarded = [
        {"prompt_id": "a", "sample": n, "reward": float(b > 0)} for n, b in enumerate(bases)
    ]
    advantages = pa.Table.from_pylist(rows, SCHEMAS["advantages"])
    rewards = pa.Table.from_pylist(rewarded, SCHEMAS["rewards"])
    return measure_advantages(advantages, rewards, None, Slots(shaping=CastShaping()))


def test_flips_are_counted_over_all_tokens_and_each_direction_over_its_own() -> None:
    found = measured([1.0, -1.0, 0.0], [[True] * 9 + [False], [True, False], [False] * 8])
    assert found["flipped_share"] == pytest.approx(10 / 20)
    assert found["flipped_down_share"] == pytest.approx(9 / 10)
    assert found["flipped_up_share"] == pytest.approx(1 / 2)


def test_a_share_of_no_tokens_is_not_known() -> None:
    found = measured([1.0, 0.0], [[True, False], [False]])
    assert found["flipped_down_share"] == 0.5 and found["flipped_up_share"] is None


@pytest.mark.parametrize("seed", range(20))
def test_the_share_of_all_tokens_lies_between_none_and_those_of_the_directions(seed: int) -> None:
    rng = np.random.default_rng(seed)
    bases = rng.choice([-1.0, 1.0], size=8).tolist()
    flips = [(rng.random(rng.integers(0, 9)) < rng.random()).tolist() for _ in bases]
    found = measured(bases, flips)
    known = [found[f"flipped_{way}_share"] for way in ("down", "up")]
    shares = [share for share in known if isinstance(share, float)]
    whole = found["flipped_share"]
    assert isinstance(whole, float) and min(shares) <= whole + 1e-9 <= max(shares) + 2e-9


def log_line(**others: Any) -> str:
    return step_line(row(0, eval_mean=0.5, **others), 6)


def test_the_log_tells_each_share_with_its_total() -> None:
    said = log_line(**CROSSED)
    assert "flips 59.0% (98.0% of praised, 20.0% of blamed)" in said and "118" not in said
    assert "mixed  50.0%" in said and said.endswith("eval 50.0%")
    assert "flips 50.0% (50.0% of praised)" in log_line(
        flipped_share=0.5, flipped_down_share=0.5, flipped_up_share=None
    )
    none = {"flipped_share": 0.0, "flipped_down_share": None, "flipped_up_share": None}
    assert "flips 0.0%  grad" in log_line(**none)


def test_the_panel_tells_each_share_with_its_total() -> None:
    lines = drawn(course([row(0, **CROSSED)]))
    assert "118" not in "\n".join(lines)
    assert "59.0% of tokens" in line_of(lines, "flips")
    assert "98.0% of praised" in line_of(lines, "  down")
    assert "20.0% of blamed" in line_of(lines, "  up")


def test_the_panel_tells_changes_of_shares_in_points() -> None:
    rising = [row(n, flipped_share=0.01 * n) for n in range(20)]
    told = line_of(drawn(course(rising)), "flips")
    assert "↑ +10.0 points in 10 steps" in told and "+10.0%" not in told


def test_a_share_has_one_format() -> None:
    shares = [0.0, 0.5, 0.62499, 1.0, 0.00042, 1e-5, None, float("nan")]
    written = ["0.0%", "50.0%", "62.5%", "100.0%", "0.042%", "0.001%", "", ""]
    assert list(map(percent, shares)) == written
    assert points(-0.0312) == "-3.1 points"
