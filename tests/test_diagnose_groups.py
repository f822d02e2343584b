"""The diagnostic `groups` against a plain reading of the rewards."""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from castctl.diagnosis.clusters import PromptSums, ratio_over_prompts, trend
from castctl.diagnosis.data import StepData
from castctl.diagnosis.diagnosis import Context
from castctl.diagnosis.groups import measure
from castctl.inspection.tokens import TokenTexts
from random_steps import assert_told, plain_ratio, random_step

CONTEXT = Context(TokenTexts(None))


@pytest.fixture(scope="module")
def steps(tmp_path_factory: pytest.TempPathFactory) -> list[StepData]:
    folder = tmp_path_factory.mktemp("groups")
    return [random_step(folder / f"step-{n:05d}", n, step=n) for n in range(2)]


class Plain:
    """The completions of steps by prompt and step, read one by one."""

    def __init__(self, steps: list[StepData]) -> None:
        self.groups: dict[tuple[int, str], list[dict[str, Any]]] = defaultdict(list)
        for data in steps:
            for row, prompt in enumerate(data.prompt_ids):
                reward = data.groups.rewards_R[row] if data.known_R[row] else None
                tokens = int(data.offsets[row + 1] - data.offsets[row])
                self.groups[data.step, prompt].append(
                    {"reward": reward, "tokens": tokens, "verdict": data.verdict_R[row]}
                )

    @staticmethod
    def known(rows: list[dict[str, Any]]) -> list[float]:
        return [row["reward"] for row in rows if row["reward"] is not None]

    def kind(self, rows: list[dict[str, Any]]) -> str:
        known = self.known(rows)
        if len(known) < 2:
            return "single"
        if max(known) > min(known):
            return "mixed"
        return "all_correct" if known[0] > 0 else "all_wrong"

    def advantage(self, rows: list[dict[str, Any]], row: dict[str, Any], rule: str) -> float:
        known, kind = self.known(rows), self.kind(rows)
        if row["reward"] is None or kind == "single":
            return 0.0
        if kind == "mixed":
            mean = sum(known) / len(known)
            std = math.sqrt(sum((r - mean) ** 2 for r in known) / len(known))
            return (row["reward"] - mean) / (std + 1e-6)
        return 0.0 if rule == "zero" else (1.0 if kind == "all_correct" else -1.0)

    def rows(self, value: Any) -> list[tuple[str, float, float]]:
        """(prompt, above, below) of every group, as `value(rows)` gives them."""
        return [(prompt, *value(rows)) for (_, prompt), rows in self.groups.items()]


def test_kinds_verdicts_and_reward_are_those_of_a_plain_reading(steps: list[StepData]) -> None:
    plain, numbers = Plain(steps), measure(iter(steps), CONTEXT)
    kinds = [plain.kind(rows) for rows in plain.groups.values()]
    assert numbers["groups"] == len(kinds) and numbers["binary"]
    assert set(kinds) == {"mixed", "all_correct", "all_wrong", "single"}
    for kind, told in numbers["kinds"].items():
        assert_told(told, plain_ratio(plain.rows(lambda g, k=kind: (plain.kind(g) == k, 1)), True))
    for verdict, told in numbers["verdicts"].items():
        counted = plain.rows(lambda g, v=verdict: (sum(r["verdict"] == v for r in g), len(g)))
        assert_told(told, plain_ratio(counted, True))
    known = plain.rows(lambda g: (sum(plain.known(g)), len(plain.known(g))))
    assert_told(numbers["reward"], plain_ratio(known))
    rows = [row for group in plain.groups.values() for row in group]
    assert numbers["unjudged"] == sum(row["reward"] is None for row in rows) > 0
    assert numbers["tokens"] == sum(row["tokens"] for row in rows)


@pytest.mark.parametrize("rule", ["zero", "signed"])
def test_gradient_is_where_the_plain_advantage_is_not_zero(
    steps: list[StepData], rule: str
) -> None:
    plain, told = Plain(steps), measure(iter(steps), CONTEXT)["gradient"][rule]

    def taught(rows: list[dict[str, Any]], weight: str | None) -> tuple[float, float]:
        of = [1 if weight is None else row[weight] for row in rows]
        on = [plain.advantage(rows, row, rule) != 0 for row in rows]
        return sum(w for w, a in zip(of, on, strict=True) if a), sum(of)

    for name, weight in (("completions", None), ("tokens", "tokens")):
        counted = plain.rows(lambda g, w=weight: taught(g, w))
        assert_told(told[name], plain_ratio(counted, True))
    batches = defaultdict(list)
    for (step, _), rows in plain.groups.items():
        batches[step] += [abs(plain.advantage(rows, row, rule)) for row in rows]
    counts = [sum(a > 0 for a in batch) for batch in batches.values()]
    kish = [sum(batch) ** 2 / sum(a * a for a in batch) for batch in batches.values()]
    assert told["batch"] == pytest.approx(sum(counts) / len(counts))
    assert told["effective"] == pytest.approx(sum(kish) / len(kish))


def test_rounds_and_the_number_correct(steps: list[StepData]) -> None:
    plain, numbers = Plain(steps), measure(iter(steps), CONTEXT)
    mixed = numbers["kinds"]["mixed"]
    assert numbers["rounds"]["mean"] == pytest.approx(1 / mixed["mean"])
    assert numbers["rounds"]["low"] == pytest.approx(1 / mixed["high"])
    counts: dict[str, dict[int, int]] = defaultdict(lambda: defaultdict(int))
    for rows in plain.groups.values():
        known = plain.known(rows)
        counts[str(len(known))][sum(r > 0 for r in known)] += 1
    told = {
        size: {c: n for c, n in enumerate(row) if n} for size, row in numbers["correct"].items()
    }
    assert told == {size: dict(row) for size, row in counts.items() if size != "0"}


def test_smaller_groups_are_mixed_as_often_as_their_subsets(steps: list[StepData]) -> None:
    plain, numbers = Plain(steps), measure(iter(steps), CONTEXT)

    def share(rows: list[dict[str, Any]], k: int) -> tuple[float, float]:
        known = plain.known(rows)
        if len(known) < k:
            return 0.0, 0.0
        chosen = list(itertools.combinations(known, k))
        return sum(max(c) > min(c) for c in chosen) / len(chosen), 1.0

    assert list(numbers["mixed_at"]) == ["2", "3", "4"]
    for k, told in numbers["mixed_at"].items():
        assert_told(told, plain_ratio(plain.rows(lambda g, n=int(k): share(g, n)), True))


def test_steps_are_told_one_by_one(steps: list[StepData]) -> None:
    by_step = measure(iter(steps), CONTEXT)["by_step"]
    for data, told in zip(steps, by_step, strict=True):
        alone = measure(iter([data]), CONTEXT)
        assert told["step"] == data.step
        for name in ("reward", "kinds", "rounds"):
            assert told[name] == alone[name]
        assert told["gradient"] == alone["gradient"]


def test_graded_rewards_have_no_signed_base(tmp_path: Path) -> None:
    data = random_step(tmp_path / "step-00000", method={"name": "grpo"})
    graded = data.groups.with_rewards(data.groups.rewards_R * 0.5)
    numbers = measure(iter([_with_groups(data, graded)]), CONTEXT)
    assert not numbers["binary"] and numbers["gradient"]["signed"] is None
    assert numbers["gradient"]["zero"]["completions"]["mean"] > 0


def test_nothing_to_compare(tmp_path: Path) -> None:
    wrong = random_step(tmp_path / "step-00000", kinds=("all_wrong",), prompts=3, parts=1)
    numbers = measure(iter([wrong]), CONTEXT)
    assert numbers["rounds"] is None
    assert numbers["gradient"]["zero"]["completions"]["mean"] == 0
    assert numbers["gradient"]["zero"]["effective"] == 0
    assert numbers["kinds"]["all_wrong"]["mean"] == 1
    assert numbers["kinds"]["all_wrong"]["low"] < 0.5, "three prompts do not say that all are"


def test_a_prompt_of_two_steps_is_one_cluster() -> None:
    sums = PromptSums()
    for _ in range(2):
        own = sums.fresh()
        prompt = own.numbers(["a", "b", "a"])
        own.add("above", prompt, [1.0, 0.0, 1.0])
        own.add("below", prompt)
        sums.merge(own)
    assert sums.prompts == 2
    assert_told(sums.ratio("above", "below"), plain_ratio([("a", 4, 4), ("b", 0, 2)]))


def test_trend_is_the_line_of_least_squares() -> None:
    told = [{"mean": m, "low": None, "high": None} for m in (0.9, 0.7, 0.75, 0.4, 0.35)]
    found = trend([0, 1, 2, 4, 5], [*told[:3], *told[3:]])
    x, y = [0, 1, 2, 4, 5], [0.9, 0.7, 0.75, 0.4, 0.35]
    mx, my = sum(x) / 5, sum(y) / 5
    spread = sum((a - mx) ** 2 for a in x)
    slope = sum((a - mx) * (b - my) for a, b in zip(x, y, strict=True)) / spread
    left = sum((b - my - slope * (a - mx)) ** 2 for a, b in zip(x, y, strict=True))
    assert found["mean"] == pytest.approx(slope)
    half = stats.t.ppf(0.975, 3) * math.sqrt(left / 3 / spread)
    assert found["high"] - found["mean"] == pytest.approx(half)
    assert trend([0, 1, 2, 3, 4], [*told[:4], None]) is None


def estimates(numbers: Any) -> Iterator[dict[str, Any]]:
    """Every estimate anywhere in a diagnosis."""
    if isinstance(numbers, dict):
        if {"mean", "low", "high"} <= numbers.keys():
            yield numbers
        for value in numbers.values():
            yield from estimates(value)
    elif isinstance(numbers, list):
        for value in numbers:
            yield from estimates(value)


def test_every_interval_holds_its_estimate_and_none_begins_at_dust(steps: list[StepData]) -> None:
    """A kind of group that there is none of has an interval from 0, not from 3.5e-18."""
    found = [each for each in estimates(measure(iter(steps), CONTEXT)) if each["low"] is not None]
    assert len(found) > 30
    for told in found:
        assert told["high"] is None or told["low"] <= told["mean"] <= told["high"]
        assert all(value is None or value == 0 or abs(value) > 1e-9 for value in told.values())
    for prompts in range(2, 200):
        none = ratio_over_prompts(np.zeros(prompts), np.ones(prompts), share=True)
        assert none is not None and none["mean"] == none["low"] == 0 < none["high"]
        every = ratio_over_prompts(np.ones(prompts), np.ones(prompts), share=True)
        assert every is not None and every["mean"] == every["high"] == 1 > every["low"]


def test_what_cancels_leaves_nothing() -> None:
    above, below = np.array([0.1, 0.2, -0.3]), np.array([1.0, 2.0, 3.0])
    assert above.sum() != 0  # 5.6e-17
    found = ratio_over_prompts(above, below)
    assert found is not None and found["mean"] == 0 and found["low"] < 0 < found["high"]
    flat = [{"mean": m, "low": None, "high": None} for m in (0.3, 0.1 + 0.2, 0.3, 0.3, 0.3)]
    assert trend(range(5), flat) == {"mean": 0.0, "low": None, "high": None}


def test_an_interval_does_not_leave_what_its_ratio_can_be() -> None:
    """The rank correlation of four completions had an interval from -4.95 to 5.33."""
    sums = PromptSums()
    sums.add("compared", prompt := sums.numbers(["a", "b", "c"]))
    sums.add("rho", prompt, np.array([0.9, -0.8, 0.6]))
    free, bound = sums.ratio("rho", "compared"), sums.ratio("rho", "compared", -1, 1)
    assert free is not None and free["low"] < -1 and free["high"] > 1
    assert bound == {"mean": free["mean"], "low": -1, "high": 1}


def test_a_mean_reward_of_right_and_wrong_stays_within_them(tmp_path: Path) -> None:
    """28 of 30 prompts right: Student's interval would reach 1.03."""
    sums = PromptSums()
    prompt = sums.numbers([f"p{n}" for n in range(30)])
    sums.add("known", prompt)
    sums.add("reward", prompt, np.array([1.0] * 28 + [0.0] * 2))
    assert sums.ratio("reward", "known")["high"] > 1.02
    assert sums.share("reward", "known")["high"] < 1
    data = random_step(tmp_path / "step-00000", 3)
    told = measure(iter([data]), CONTEXT)
    assert told["binary"] and told["reward"]["high"] <= 1


def _with_groups(data: StepData, groups: Any) -> StepData:
    from dataclasses import replace

    return replace(data, groups=groups)
