"""The diagnostic `confidence` against a plain reading of drift and reward."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from castctl.diagnosis.confidence import measure
from castctl.diagnosis.data import StepData
from castctl.diagnosis.diagnosis import Context
from castctl.inspection.tokens import TokenTexts
from castctl.methods.baselines import RccBaseline
from random_steps import assert_told, plain_ratio, random_step

CONTEXT = Context(TokenTexts(None), seed=3)

Row = dict[str, Any]


@pytest.fixture(scope="module")
def steps(tmp_path_factory: pytest.TempPathFactory) -> list[StepData]:
    folder = tmp_path_factory.mktemp("confidence")
    return [random_step(folder / f"step-{n:05d}", n, step=n, prompts=18) for n in range(2)]


@pytest.fixture(scope="module")
def numbers(steps: list[StepData]) -> dict[str, Any]:
    return measure(iter(steps), CONTEXT)


def groups_of(steps: list[StepData]) -> list[list[Row]]:
    """The judged completions of each prompt and step."""
    groups: dict[Any, list[Row]] = defaultdict(list)
    for data in steps:
        for row, prompt in enumerate(data.prompt_ids):
            if data.known_R[row]:
                tokens = range(int(data.offsets[row]), int(data.offsets[row + 1]))
                drift = [float(data.signals.tokens.drift_N[n]) for n in tokens]
                total = math.fsum(drift)
                groups[data.step, prompt].append(
                    {
                        "prompt": prompt,
                        "r": float(data.groups.rewards_R[row]),
                        "sum": total,
                        "mean": total / len(drift) if drift else 0.0,
                    }
                )
    return list(groups.values())


def mixed_of(steps: list[StepData]) -> list[list[Row]]:
    return [rows for rows in groups_of(steps) if len({row["r"] for row in rows}) > 1]


def covariance(rows: list[Row], name: str) -> float:
    r, d = ([row[key] for row in rows] for key in ("r", name))
    count = len(rows)
    return sum(a * b for a, b in zip(r, d, strict=True)) / count - sum(r) * sum(d) / count**2


def corrected(rows: list[Row]) -> dict[str, float]:
    """The baselines of a group: its mean, RCC's before and after its bounds, the exact one."""
    mean = sum(row["r"] for row in rows) / len(rows)
    raw = mean + 2 * covariance(rows, "sum")
    weights = [math.exp(2 * row["sum"]) for row in rows]
    exact = sum(w * row["r"] for w, row in zip(weights, rows, strict=True)) / sum(weights)
    return {"mean": mean, "raw": raw, "rcc": min(max(raw, 0.0), 1.0), "exact": exact}


def risk(rows: list[Row], baseline: float) -> float:
    weights = [math.exp(2 * row["sum"]) for row in rows]
    squares = [w * (row["r"] - baseline) ** 2 for w, row in zip(weights, rows, strict=True)]
    return sum(squares) / sum(weights)


def wins(pairs: list[tuple[float, float]]) -> float:
    return sum((a > b) + (a == b) / 2 for a, b in pairs)


@pytest.mark.parametrize("name", ["sum", "mean"])
def test_drift_by_reward(steps: list[StepData], numbers: dict[str, Any], name: str) -> None:
    rows = [row for group in groups_of(steps) for row in group]
    assert numbers["completions"] == len(rows)
    for side, reward in (("correct", 1.0), ("incorrect", 0.0)):
        among = [row for row in rows if row["r"] == reward]
        told = numbers[name][side]
        assert_told(told["mean"], plain_ratio([(row["prompt"], row[name], 1) for row in among]))
        assert told["std"] == pytest.approx(np.std([row[name] for row in among]))
        assert told["quantiles"]["0.5"] == pytest.approx(np.median([row[name] for row in among]))
        assert sum(numbers[name]["histogram"][side]) == len(among)


@pytest.mark.parametrize("name", ["sum", "mean"])
def test_separation(steps: list[StepData], numbers: dict[str, Any], name: str) -> None:
    rows = [row for group in groups_of(steps) for row in group]
    right, wrong = ([row[name] for row in rows if row["r"] == r] for r in (1.0, 0.0))
    auc = numbers[name]["auc"]
    pairs = [(a, b) for a in right for b in wrong]
    assert auc["mean"] == pytest.approx(wins(pairs) / len(pairs))
    assert auc["low"] < auc["mean"] < auc["high"]
    told = []
    for group in mixed_of(steps):
        inner = [(a[name], b[name]) for a in group for b in group if a["r"] > b["r"]]
        told.append((group[0]["prompt"], wins(inner), len(inner)))
    assert_told(numbers[name]["auc_within"], plain_ratio(told, True))


def test_covariances(steps: list[StepData], numbers: dict[str, Any]) -> None:
    groups = mixed_of(steps)
    assert numbers["mixed"] == len(groups) > 10
    for name in ("sum", "mean"):
        found = [covariance(group, name) for group in groups]
        rows = [(group[0]["prompt"], c, 1) for group, c in zip(groups, found, strict=True)]
        assert_told(numbers[name]["covariance"], plain_ratio(rows))
        told = numbers[name]["covariance_quantiles"]["0.5"]
        assert told == pytest.approx(np.median(found))


def test_what_rcc_does_to_the_baseline(steps: list[StepData], numbers: dict[str, Any]) -> None:
    groups, told = mixed_of(steps), numbers["baseline"]
    found = [(group, corrected(group)) for group in groups]

    def mean(value: Any, share: bool = False) -> Any:
        return plain_ratio([(g[0]["prompt"], value(g, b), 1) for g, b in found], share)

    assert_told(told["shift"], mean(lambda g, b: b["rcc"] - b["mean"]))
    assert_told(told["shift_size"], mean(lambda g, b: abs(b["rcc"] - b["mean"])))
    assert_told(told["clipped"], mean(lambda g, b: b["rcc"] != b["raw"], True))
    assert_told(told["error_mean"], mean(lambda g, b: abs(b["mean"] - b["exact"])))
    assert_told(told["error_rcc"], mean(lambda g, b: abs(b["rcc"] - b["exact"])))
    for name, key in (("risk", "rcc"), ("risk_attainable", "exact")):
        rows = [(g[0]["prompt"], risk(g, b[key]), risk(g, b["mean"])) for g, b in found]
        assert_told(told[name], plain_ratio(rows))
    assert told["risk_attainable"]["mean"] <= min(1.0, told["risk"]["mean"])


def test_variance_of_the_advantages(steps: list[StepData], numbers: dict[str, Any]) -> None:
    advantages: dict[str, list[float]] = {"mean": [], "rcc": []}
    for group in mixed_of(steps):
        baselines = corrected(group)
        mean = baselines["mean"]
        std = math.sqrt(sum((row["r"] - mean) ** 2 for row in group) / len(group)) + 1e-6
        for name, values in advantages.items():
            values += [(row["r"] - baselines[name]) / std for row in group]
    for name, of in (("variance", np.var), ("second_moment", lambda a: np.mean(np.square(a)))):
        told = numbers["baseline"][name]
        assert told["mean"] == pytest.approx(of(advantages["rcc"]) / of(advantages["mean"]))
        assert told["low"] <= told["mean"] <= told["high"]


def test_steps_agree_with_the_methods_own_measures(
    steps: list[StepData], numbers: dict[str, Any]
) -> None:
    for data, told in zip(steps, numbers["by_step"], strict=True):
        own = RccBaseline().measures(data.groups, data.signals.tokens)
        assert told["covariance"]["mean"] == pytest.approx(own["reward_confidence_cov"])
        assert told["clipped"]["mean"] == pytest.approx(own["baseline_clipped_share"])


def test_without_drift_rcc_is_grpo(tmp_path: Path) -> None:
    data = random_step(tmp_path / "step-00000", drift=0.0)
    numbers = measure(iter([data]), CONTEXT)
    assert numbers["still"]["mean"] == 1
    assert numbers["sum"]["auc"]["mean"] == 0.5 == numbers["sum"]["auc_within"]["mean"]
    baseline = numbers["baseline"]
    assert baseline["variance"]["mean"] == baseline["risk"]["mean"] == pytest.approx(1)
    assert baseline["shift_size"]["mean"] == baseline["clipped"]["mean"] == 0


def test_a_completion_without_a_reference_is_left_out(tmp_path: Path) -> None:
    data = random_step(tmp_path / "step-00000", kinds=("mixed",))
    deaf = next(r for r in range(len(data.prompt_ids)) if data.known_R[r] and data.lengths_R[r])
    drift = data.signals.tokens.drift_N.copy()
    drift[data.offsets[deaf]] = math.nan
    tokens = replace(data.signals.tokens, drift_N=drift)
    partial = replace(data, signals=replace(data.signals, tokens=tokens))
    numbers = measure(iter([partial]), CONTEXT)
    assert numbers["completions"] == data.known_R.sum() - 1
    assert math.isfinite(numbers["baseline"]["risk"]["mean"])


def test_a_large_drift_overflows_nothing(tmp_path: Path) -> None:
    data = random_step(tmp_path / "step-00000", drift=1000.0, kinds=("mixed",))
    numbers = measure(iter([data]), CONTEXT)
    assert math.isfinite(numbers["baseline"]["risk"]["mean"])
    assert numbers["baseline"]["clipped"]["mean"] > 0.5


def test_without_mixed_groups(tmp_path: Path) -> None:
    data = random_step(tmp_path / "step-00000", kinds=("all_wrong",))
    numbers = measure(iter([data]), CONTEXT)
    assert numbers["mixed"] == 0 and numbers["sum"]["auc"] is None
    assert numbers["baseline"]["variance"] is None and numbers["sum"]["covariance"] is None
