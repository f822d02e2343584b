"""The diagnostic `credit` against a plain reading of both influences."""

from __future__ import annotations

import math
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import spearmanr

from castctl.diagnosis.credit import measure
from castctl.diagnosis.data import StepData
from castctl.diagnosis.diagnosis import Context
from castctl.diagnosis.ranks import (
    gini_within,
    largest_within,
    order_within,
    ranks_within,
    spearman_within,
)
from castctl.inspection.tokens import TokenTexts
from random_steps import assert_told, plain_ratio, random_step

SECONDS = {
    0: {"policy": 2.0, "perturbation": 30.0, "gradient": 5.0},
    1: {"policy": 1.0, "gradient": 2.0},
}
CONTEXT = Context(TokenTexts(None), seconds=SECONDS)
KINDS = ("perturb", "grad")

Row = dict[str, Any]


@pytest.fixture(scope="module")
def steps(tmp_path_factory: pytest.TempPathFactory) -> list[StepData]:
    folder = tmp_path_factory.mktemp("credit")
    return [random_step(folder / f"step-{n:05d}", n, step=n, longest=25) for n in range(2)]


@pytest.fixture(scope="module")
def numbers(steps: list[StepData]) -> dict[str, Any]:
    return measure(iter(steps), CONTEXT)


def completions(steps: list[StepData]) -> list[Row]:
    found = []
    for data in steps:
        for row, prompt in enumerate(data.prompt_ids):
            start, end = int(data.offsets[row]), int(data.offsets[row + 1])
            scores = {
                kind: [float(s) for s in getattr(data.signals.tokens, f"{kind}_N")[start:end]]
                for kind in KINDS
            }
            both = [
                (p, g) for p, g in zip(*scores.values(), strict=True)
                if not math.isnan(p) and not math.isnan(g)
            ]  # fmt: skip
            ids = [int(id) for id in data.ids_N[start:end]]
            found.append({"prompt": prompt, "verdict": data.verdict_R[row], "both": both,
                          "ids": ids, "length": end - start, **scores})  # fmt: skip
    return found


def correlation(row: Row) -> float:
    """Of three tokens or more, both of whose scores vary; else NaN."""
    first, second = ([pair[side] for pair in row["both"]] for side in (0, 1))
    if len(first) < 3 or len(set(first)) == 1 or len(set(second)) == 1:
        return math.nan
    return float(spearmanr(first, second).statistic)


def top_tenth(values: list[float]) -> set[int]:
    order = sorted(range(len(values)), key=lambda n: (values[n], n))
    return set(order[len(values) - math.ceil(len(values) / 10) :])


def reshaped(scores: list[float]) -> list[float]:
    """OAR's bi-level weights at threshold 0.3, gain 1, floor 0.1, of scored tokens."""
    if len(scores) < 2 or max(scores) - min(scores) < 1e-8:
        return [1.0] * len(scores)
    z = [math.log1p(score) for score in scores]
    z = [(value - min(z)) / (max(z) - min(z)) for value in z]
    place = 0.3 * (len(z) - 1)
    below = sorted(z)[math.floor(place)]
    q = below + (sorted(z)[math.ceil(place)] - below) * (place - math.floor(place))
    raw = [max(v / q, 0.1) if v < q else 1 + (v - q) / (1 - q) for v in z]
    return [weight * len(raw) / sum(raw) for weight in raw]


def gini(values: list[float]) -> float:
    """Half the relative mean difference between any two."""
    total = sum(abs(a - b) for a in values for b in values)
    return total / (2 * len(values) * sum(values))


def test_correlation_is_that_of_scipy(steps: list[StepData], numbers: dict[str, Any]) -> None:
    rows = completions(steps)
    rho = [(row["prompt"], correlation(row), row["verdict"]) for row in rows]
    known = [(prompt, value, verdict) for prompt, value, verdict in rho if not math.isnan(value)]
    assert len(known) > 10
    assert_told(numbers["rho"], plain_ratio([(p, value, 1) for p, value, _ in known]))
    for verdict, told in numbers["rho_by_verdict"].items():
        among = [(p, value, 1) for p, value, v in known if v == verdict]
        assert_told(told, plain_ratio(among))
    median = sorted(value for _, value, _ in known)
    assert numbers["rho_quantiles"]["0.5"] == pytest.approx(np.median(median))
    assert sum(numbers["rho_histogram"]["counts"]) == len(known)


def test_what_is_not_compared_is_counted(steps: list[StepData], numbers: dict[str, Any]) -> None:
    rows = completions(steps)

    def scored(row: Row, kind: str) -> int:
        return sum(not math.isnan(score) for score in row[kind])

    any_score = [row for row in rows if scored(row, "perturb") or scored(row, "grad")]
    assert numbers["completions"] == len(rows)
    assert numbers["unscored"] == len(rows) - len(any_score) > 0
    assert numbers["few"] == sum(len(row["both"]) < 3 for row in any_score) > 0
    compared = sum(not math.isnan(correlation(row)) for row in rows)
    assert numbers["flat"] == len(any_score) - numbers["few"] - compared
    for kind in KINDS:
        tokens = [(row["prompt"], scored(row, kind), row["length"]) for row in rows]
        assert_told(numbers["tokens_scored"][kind], plain_ratio(tokens, True))


def test_overlap_of_the_top_tenth(steps: list[StepData], numbers: dict[str, Any]) -> None:
    told, chance = [], []
    for row in completions(steps):
        if not math.isnan(correlation(row)):
            first, second = (top_tenth([pair[side] for pair in row["both"]]) for side in (0, 1))
            told.append((row["prompt"], len(first & second) / len(first), 1))
            chance.append((row["prompt"], len(first) / len(row["both"]), 1))
    assert_told(numbers["overlap"], plain_ratio(told, True))
    assert_told(numbers["overlap_chance"], plain_ratio(chance, True))
    excess = [(p, a - b, 1) for (p, a, _), (_, b, _) in zip(told, chance, strict=True)]
    assert_told(numbers["overlap_excess"], plain_ratio(excess))


@pytest.mark.parametrize("kind", KINDS)
def test_where_the_weight_sits(steps: list[StepData], numbers: dict[str, Any], kind: str) -> None:
    places: dict[int, list[tuple[str, float, float]]] = defaultdict(list)
    gains: dict[int, float] = defaultdict(float)
    spread: dict[str, list[tuple[str, float, float]]] = defaultdict(list)
    for row in completions(steps):
        scored = [n for n, score in enumerate(row[kind]) if not math.isnan(score)]
        raw = [row[kind][n] for n in scored]
        weights = reshaped(raw)
        for n, weight in zip(scored, weights, strict=True):
            places[int(10 * (n + 0.5) / row["length"])].append((row["prompt"], weight, 1))
            gains[row["ids"][n]] += weight - 1
        for name, values in (("", weights), ("raw_", raw)):
            if len(values) >= 3 and sum(values) > 0:
                top = sum(values[n] for n in top_tenth(values)) / sum(values)
                spread[f"{name}top_share"].append((row["prompt"], top, 1))
                spread[f"{name}gini"].append((row["prompt"], gini(values), 1))
    told = numbers[kind]
    for tenth in range(10):
        assert_told(told["by_position"][tenth], plain_ratio(places[tenth]))
    for name, rows in spread.items():
        assert_told(told[name], plain_ratio(rows, True))
    largest = sorted((gain for gain in gains.values() if gain > 0), reverse=True)
    assert [token["gain"] for token in told["tokens"]] == pytest.approx(largest[:20])
    for token in told["tokens"]:
        assert token["gain"] == pytest.approx(token["weight"] - token["count"])
        assert token["gain"] == pytest.approx(gains[token["id"]])


def test_overhead_is_over_steps_whose_seconds_are_all_known(
    steps: list[StepData], numbers: dict[str, Any]
) -> None:
    assert numbers["overhead"] == {"perturbation": 15.0, "gradient": 2.5}
    assert numbers["seconds"]["steps"] == 1
    assert measure(iter(steps), Context(TokenTexts(None)))["overhead"] is None


def test_without_scores_nothing_is_compared(tmp_path: Path) -> None:
    data = random_step(tmp_path / "step-00000", scored=False)
    numbers = measure(iter([data]), Context(TokenTexts(None)))
    assert numbers["unscored"] == numbers["completions"] > 0
    assert numbers["rho"] is None and numbers["overlap"] is None
    assert numbers["perturb"]["tokens"] == [] and numbers["rho_quantiles"] == {}


VALUES = st.lists(st.lists(st.integers(0, 4), max_size=9), min_size=1, max_size=6)


@given(VALUES, st.integers(0, 2**32 - 1))
def test_ranks_of_many_rows_are_those_of_each(rows: list[list[int]], seed: int) -> None:
    row_V = np.array([n for n, row in enumerate(rows) for _ in row], np.int64)
    first = np.array([value for row in rows for value in row], float)
    second = np.random.default_rng(seed).integers(0, 4, len(first)).astype(float)
    mixed = np.random.default_rng(seed).permutation(len(first))  # rows need not stand together
    ranks = np.empty(len(first))
    ranks[mixed] = ranks_within(first[mixed], order_within(first[mixed], row_V[mixed], len(rows)))
    orders = [order_within(values, row_V, len(rows)) for values in (first, second)]
    rho = spearman_within(first, second, row_V, *orders)
    uneven = gini_within(first, orders[0])
    top = largest_within(orders[0], 0.3)
    for n, row in enumerate(rows):
        own = row_V == n
        for value, rank in zip(row, ranks[own], strict=True):
            less, equal = sum(v < value for v in row), sum(v == value for v in row)
            assert rank == less + (equal + 1) / 2
        others = second[own].tolist()
        if len(set(row)) > 1 and len(set(others)) > 1:
            assert rho[n] == pytest.approx(spearmanr(row, others).statistic)
        else:
            assert math.isnan(rho[n])
        if sum(row):
            assert uneven[n] == pytest.approx(gini([float(v) for v in row]))
        order = sorted(range(len(row)), key=lambda k: (row[k], k))
        chosen = order[len(row) - math.ceil(round(0.3 * len(row), 9)) :] if row else []
        assert set(np.flatnonzero(top[own])) == set(chosen)
