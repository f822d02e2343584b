"""The diagnostic `engine` against a plain reading of both log-probs."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from castctl.diagnosis.clusters import PromptSums
from castctl.diagnosis.corrected import told_corrected
from castctl.diagnosis.data import StepData
from castctl.diagnosis.diagnosis import Context
from castctl.diagnosis.engine import measure
from castctl.errors import UserError
from castctl.inspection.tokens import TokenTexts
from castctl.methods.correction import Mask, NoCorrection, Truncate
from random_steps import assert_told, plain_ratio, random_step

CONTEXT = Context(TokenTexts(None))

Token = dict[str, Any]


@pytest.fixture(scope="module")
def steps(tmp_path_factory: pytest.TempPathFactory) -> list[StepData]:
    """Steps whose sampler is off by half a nat, and did not report some tokens."""
    folder = tmp_path_factory.mktemp("engine")
    found = []
    for n in range(2):
        data = random_step(folder / f"step-{n:05d}", n, step=n, noise=0.5)
        sampler = data.sampler_N.copy()
        sampler[:3] = math.nan, -math.inf, math.nan
        found.append(replace(data, sampler_N=sampler))
    return found


@pytest.fixture(scope="module")
def numbers(steps: list[StepData]) -> dict[str, Any]:
    return measure(iter(steps), CONTEXT)


def tokens_of(steps: list[StepData]) -> list[Token]:
    found = []
    for data in steps:
        for row, prompt in enumerate(data.prompt_ids):
            start, end = int(data.offsets[row]), int(data.offsets[row + 1])
            for n in range(start, end):
                sampler, scorer = float(data.sampler_N[n]), float(data.signals.policy_N[n])
                if math.isfinite(sampler):
                    found.append(
                        {"prompt": prompt, "row": (data.step, row), "diff": scorer - sampler,
                         "sampler": sampler, "scorer": scorer, "step": data.step,
                         "position": int(10 * (n - start + 0.5) / (end - start))}
                    )  # fmt: skip
    return found


def completions_of(tokens: list[Token]) -> list[tuple[str, float]]:
    """Prompt and log of the weight of each completion with a token."""
    logs: dict[Any, float] = {}
    for token in tokens:
        logs[token["prompt"], token["row"]] = (
            logs.get((token["prompt"], token["row"]), 0.0) + token["diff"]
        )
    return [(prompt, log) for (prompt, _), log in logs.items()]


def over_tokens(tokens: list[Token], value: Callable[[float], float], share: bool = False) -> Any:
    return plain_ratio([(t["prompt"], value(t["diff"]), 1) for t in tokens], share)


def test_differences(steps: list[StepData], numbers: dict[str, Any]) -> None:
    tokens = tokens_of(steps)
    diff = [t["diff"] for t in tokens]
    assert numbers["tokens"] == len(diff)
    assert numbers["left_out"] == sum(len(data.ids_N) for data in steps) - len(diff) == 6
    assert_told(numbers["mean"], over_tokens(tokens, lambda d: d))
    assert_told(numbers["size"], over_tokens(tokens, abs))
    assert numbers["std"] == pytest.approx(np.std(diff))
    assert numbers["largest"] == pytest.approx(max(map(abs, diff)))
    for level, told in numbers["quantiles"].items():
        assert told == pytest.approx(np.quantile(diff, float(level)), abs=1e-6)
    for tail, told in numbers["beyond"].items():
        assert_told(told, over_tokens(tokens, lambda d, t=float(tail): abs(d) > t, True))


def test_tail(steps: list[StepData], numbers: dict[str, Any]) -> None:
    sizes = [abs(t["diff"]) for t in tokens_of(steps)]
    for size, told in zip(*numbers["tail"].values(), strict=True):
        assert told == pytest.approx(sum(s > size for s in sizes) / len(sizes), abs=1e-12)


def test_divergences_are_those_of_their_estimators(
    steps: list[StepData], numbers: dict[str, Any]
) -> None:
    tokens = tokens_of(steps)
    assert_told(numbers["k1"], over_tokens(tokens, lambda d: -d))
    assert_told(numbers["k3"], over_tokens(tokens, lambda d: math.exp(d) - 1 - d))
    assert numbers["k3"]["mean"] > 0


def test_k1_and_k3_estimate_the_divergence_of_the_sampler_from_the_scorer(tmp_path: Path) -> None:
    """Tokens in the very frequencies of a sampler over three; both give KL(sampler || scorer)."""
    sampler, scorer = np.array([0.5, 0.25, 0.25]), np.array([0.25, 0.5, 0.25])
    data = random_step(tmp_path / "step-00000", kinds=("mixed",), longest=12)
    count = len(data.ids_N) // 4 * 4
    drawn = np.resize([0, 0, 1, 2], count)
    pad = np.full(len(data.ids_N) - count, np.nan)
    told = replace(
        data,
        sampler_N=np.append(np.log(sampler[drawn]), pad),
        signals=replace(data.signals, policy_N=np.append(np.log(scorer[drawn]), pad)),
    )
    numbers = measure(iter([told]), CONTEXT)
    divergence = float((sampler * np.log(sampler / scorer)).sum())
    assert numbers["k1"]["mean"] == pytest.approx(divergence)
    assert numbers["k3"]["mean"] == pytest.approx(divergence)
    assert numbers["token_weights"]["mean"]["mean"] == pytest.approx(1)


def test_importance_weights(steps: list[StepData], numbers: dict[str, Any]) -> None:
    tokens = tokens_of(steps)
    rows = completions_of(tokens)
    assert numbers["completions"] == len(rows)
    pairs = (
        ("token_weights", [(t["prompt"], t["diff"]) for t in tokens]),
        ("completion_weights", rows),
    )
    for name, logs in pairs:
        told, weights = numbers[name], [math.exp(log) for _, log in logs]
        expected = [(p, w, 1) for (p, _), w in zip(logs, weights, strict=True)]
        assert_told(told["mean"], plain_ratio(expected))
        assert told["min"] == pytest.approx(min(weights), rel=1e-6)
        assert told["max"] == pytest.approx(max(weights), rel=1e-6)
        assert told["quantiles"]["0.5"] == pytest.approx(np.median(weights), rel=0.05)
        kish = sum(weights) ** 2 / sum(w * w for w in weights) / len(weights)
        assert told["effective"] == pytest.approx(kish)


CORRECTIONS = {
    "truncate": Truncate(high=1.5),
    "mask": Mask(low=0.6, high=2),
    "sequence": Mask(level="sequence", low=0.3, high=3),
    "geometric": Mask(level="geometric", low=0.8, high=1.3),
}


@pytest.mark.parametrize("name", CORRECTIONS)
def test_what_the_runs_own_correction_does(steps: list[StepData], name: str) -> None:
    """Over all tokens, those that the sampler did not report among them; shares of tokens, and of
    what has a ratio of its own."""
    correction = CORRECTIONS[name]
    numbers = measure(iter(steps), replace(CONTEXT, correction=correction))
    tokens, units = all_tokens(steps, correction)
    found = numbers["corrected"]
    assert (numbers["correction"]["low"], numbers["correction"]["high"]) == correction.bounds
    for key in ("masked", "capped"):
        assert_told(found[key], plain_ratio([(t["prompt"], t[key], 1) for t in tokens], True))
    touched = [(u["prompt"], u["masked"] or u["capped"], 1) for u in units]
    assert_told(found["touched"], plain_ratio(touched, True))
    assert found["units"] == len(units) and any(hit for _, hit, _ in touched)
    weights = [u["weight"] for u in units]
    kish = sum(weights) ** 2 / sum(w * w for w in weights) / len(weights)
    effective = found["effective"]
    assert effective["mean"] == pytest.approx(kish)
    assert 0 <= effective["low"] <= kish <= effective["high"] <= 1
    assert sum(step["corrected"]["units"] for step in numbers["by_step"]) == len(units)
    edges = numbers["logprobs"]
    for by, bin_of in (
        ("position", lambda t: t["position"]),
        ("logprob", lambda t: sum(t["sampler"] >= edge for edge in edges)),
    ):
        told = [t for t in tokens if by == "position" or not math.isnan(t["sampler"])]
        for place, share in enumerate(numbers[f"by_{by}"]["masked"]):
            among = [(t["prompt"], t["masked"], 1) for t in told if bin_of(t) == place]
            assert_told(share, plain_ratio(among, True))


def all_tokens(steps: list[StepData], correction: Any) -> tuple[list[Token], list[Token]]:
    """Every token, and every token or completion that has a ratio, as the correction weighs it."""
    tokens, units = [], []
    for data in steps:
        made = correction.corrected(data.signals.policy_N, data.sampler_N, data.offsets)
        for row, prompt in enumerate(data.prompt_ids):
            start, end = int(data.offsets[row]), int(data.offsets[row + 1])
            for n in range(start, end):
                tokens.append(
                    {"prompt": prompt, "sampler": float(data.sampler_N[n]),
                     "masked": bool(made.masked_N[n]), "capped": bool(made.capped_N[n]),
                     "weight": made.weights_N[n],
                     "position": int(10 * (n - start + 0.5) / (end - start))}
                )  # fmt: skip
                if n == start or correction.level == "token":
                    units.append(tokens[-1])
    return tokens, units


def test_without_a_correction_none_is_told(steps: list[StepData]) -> None:
    numbers = measure(iter(steps), replace(CONTEXT, correction=NoCorrection()))
    assert numbers["corrected"] is None and numbers["correction"] == {"kind": "none"}
    assert "masked" not in numbers["by_position"]


def test_whether_a_run_rests_on_its_correction() -> None:
    """More than a hundredth of the tokens, or of completions a tenth; or half the sample lost. One
    prompt alone has no interval, and prompts that differ too much leave it open."""

    def told(touched: list[int], of: int, level: str, weights: tuple[float, ...] = (1.0,)) -> str:
        total = PromptSums()
        prompts = total.numbers([f"p{n}" for n in range(len(touched))])
        total.add("units", prompts, np.full(len(touched), of))
        total.add("all", prompts, np.full(len(touched), of))
        total.add("units_touched", prompts, np.array(touched))
        total.add("unit_weight", prompts, np.full(len(touched), of * np.mean(weights)))
        squares = of * np.mean(np.square(weights))
        total.add("unit_weight_squared", prompts, np.full(len(touched), squares))
        found = told_corrected(total, level, 0)
        assert found is not None
        return found["carries"]

    assert told([0] * 40, 1000, "token") == "no"
    assert told([9, 11] * 20, 1000, "token") == "no"
    assert told([30, 31] * 20, 1000, "token") == "yes"
    assert told([0] * 19 + [400], 1000, "token") == "maybe"
    assert told([30, 31] * 20, 1000, "sequence") == "no"
    assert told([300, 310] * 20, 1000, "geometric") == "yes"
    assert told([0] * 40, 1000, "token", (1.0, 0.0, 0.0)) == "yes"
    assert told([0] * 40, 1000, "token", (1.0, 0.0)) == "no"


def test_by_position_logprob_and_step(steps: list[StepData], numbers: dict[str, Any]) -> None:
    tokens, edges = tokens_of(steps), numbers["logprobs"]
    bins = {
        "position": lambda t: t["position"],
        "logprob": lambda t: sum(t["sampler"] >= edge for edge in edges),
    }
    for by, bin_of in bins.items():
        told = numbers[f"by_{by}"]
        assert sum(told["share"]) == pytest.approx(1)
        for place, share in enumerate(told["share"]):
            among = [t for t in tokens if bin_of(t) == place]
            assert share == pytest.approx(len(among) / len(tokens))
            assert_told(told["mean"][place], over_tokens(among, lambda d: d))
            assert_told(told["size"][place], over_tokens(among, abs))
    for told in numbers["by_step"]:
        own = [t for t in tokens if t["step"] == told["step"]]
        assert_told(told["mean"], over_tokens(own, lambda d: d))
        assert_told(told["k3"], over_tokens(own, lambda d: math.exp(d) - 1 - d))


def test_the_worst_tokens(steps: list[StepData], numbers: dict[str, Any]) -> None:
    tokens = tokens_of(steps)
    of_prompt: dict[str, float] = {}
    for token in tokens:
        of_prompt[token["prompt"]] = max(of_prompt.get(token["prompt"], 0), abs(token["diff"]))
    largest = sorted(of_prompt.values(), reverse=True)[:20]
    told = [abs(each["scorer"] - each["sampler"]) for each in numbers["worst"]]
    assert told == pytest.approx(largest)


def test_a_huge_difference_is_told_without_a_fault(tmp_path: Path) -> None:
    data = random_step(tmp_path / "step-00000", noise=0.0)
    sampler = data.sampler_N.copy()
    sampler[5] -= 5000
    numbers = measure(iter([replace(data, sampler_N=sampler)]), CONTEXT)
    assert numbers["largest"] == pytest.approx(5000)
    assert numbers["token_weights"]["max"] == math.inf
    assert numbers["token_weights"]["mean"]["mean"] == numbers["k3"]["mean"] == math.inf
    assert numbers["corrected"]["effective"]["mean"] > 0.9
    effective = numbers["completion_weights"]["effective"]
    assert effective == pytest.approx(1 / numbers["completions"])


def test_without_sampler_log_probs_it_says_who_writes_them(tmp_path: Path) -> None:
    data = random_step(tmp_path / "step-00003", step=3, sampler=False)
    with pytest.raises(UserError, match=r"step 3 have no sampler_logprobs.*castctl rollout"):
        measure(iter([data]), CONTEXT)
