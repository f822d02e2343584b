"""The diagnostic `flips` against a plain reading of signals and advantages."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from castctl.diagnosis.data import StepData
from castctl.diagnosis.diagnosis import Context, Diagnosis
from castctl.diagnosis.flips import TO_END, measure
from castctl.diagnosis.gaps import measure_with_life
from castctl.diagnosis.spelled import AFTER, BEFORE
from castctl.inspection.tokens import TokenTexts
from castctl.methods.cast import CastShaping
from castctl.report.diagnostics.agreement import gap_decides
from castctl.report.diagnostics.flips import section
from castctl.report.diagnostics.gaps import section as gaps_section
from castctl.report.document import Section, Sheet
from castctl.shards.part import plain
from castctl.stages.measures import Slots
from random_steps import assert_told, plain_ratio, random_step

CONTEXT = Context(TokenTexts(None))
EAGER = {"name": "cast", "shaping": {"kind": "cast", "tau_floor": 0.01, "tau_rms": 0.5}}

Token = dict[str, Any]


@pytest.fixture(scope="module")
def steps(tmp_path_factory: pytest.TempPathFactory) -> list[StepData]:
    folder = tmp_path_factory.mktemp("flips")
    return [random_step(folder / f"step-{n:05d}", n, step=n, method=EAGER) for n in range(2)]


@pytest.fixture(scope="module")
def numbers(steps: list[StepData]) -> dict[str, Any]:
    return measure(iter(steps), CONTEXT)


def tokens_of(steps: list[StepData]) -> list[Token]:
    """Every token by itself, with what CAST makes of it where it is not flipped."""
    found = []
    for data in steps:
        right: dict[str, int] = defaultdict(int)
        for row, prompt in enumerate(data.prompt_ids):
            right[prompt] += bool(data.known_R[row] and data.groups.rewards_R[row] > 0)
        deciles = np.percentile(data.entropies_N, range(10, 100, 10))
        for row, prompt in enumerate(data.prompt_ids):
            start, end = int(data.offsets[row]), int(data.offsets[row + 1])
            base = float(data.shaped.base_R[row])
            for n in range(start, end):
                gap = float(data.signals.tokens.gap_N[n])
                low, high = (0.8, 1.05) if base > 0 else (0.95, 1.2)
                weight = min(max(math.exp(math.copysign(1, base) * gap), low), high)
                found.append(
                    {
                        "step": data.step, "prompt": prompt, "row": (data.step, row), "base": base,
                        "gap": gap, "id": int(data.ids_N[n]), "place": n - start,
                        "before": min(abs(base * weight), 1.2),
                        "advantage": float(data.shaped.advantages_N[n]),
                        "correct": right[prompt],
                        "position": min(int(10 * ((n - start + 0.5) / (end - start))), 9),
                        "distance": sum(end - 1 - n >= edge for edge in TO_END) - 1,
                        "entropy": int(sum(data.entropies_N[n] >= edge for edge in deciles)),
                        "nats": float(data.entropies_N[n]),
                        "known": bool(data.known_R[row]),
                        "verdict": str(data.verdict_R[row]),
                    }
                )  # fmt: skip
    return found


def flips(token: Token, way: str) -> bool:
    return could(token, way) and token["advantage"] * token["base"] < 0


def could(token: Token, way: str) -> bool:
    return token["base"] > 0 if way == "down" else token["base"] < 0


@pytest.mark.parametrize("way", ["down", "up"])
def test_shares_are_those_of_a_plain_reading(
    steps: list[StepData], numbers: dict[str, Any], way: str
) -> None:
    tokens, told = tokens_of(steps), numbers[way]
    rows = [(t["prompt"], flips(t, way), could(t, way)) for t in tokens]
    assert told["flipped"] == sum(row[1] for row in rows) > 5
    assert told["candidates"] == sum(row[2] for row in rows)
    assert_told(told["share"], plain_ratio(rows, True))
    for by in ("correct", "position", "distance", "entropy"):
        for place, share in enumerate(told[f"by_{by}"]):
            there = [(t["prompt"], flips(t, way), could(t, way)) for t in tokens if t[by] == place]
            assert_told(share, plain_ratio(there, True))


@pytest.mark.parametrize("way", ["down", "up"])
def test_sizes_before_and_after(steps: list[StepData], numbers: dict[str, Any], way: str) -> None:
    tokens, told = tokens_of(steps), numbers[way]
    flipped = [t for t in tokens if flips(t, way)]
    before = [(t["prompt"], t["before"], 1) for t in flipped]
    after = [(t["prompt"], abs(t["advantage"]), 1) for t in flipped]
    lost = [
        (t["prompt"], flips(t, way) * (t["before"] + abs(t["advantage"])), t["before"])
        for t in tokens
        if could(t, way)
    ]
    assert_told(told["before"], plain_ratio(before))
    assert_told(told["after"], plain_ratio(after))
    assert_told(told["lost"], plain_ratio(lost))


def test_completions_with_a_flip(steps: list[StepData], numbers: dict[str, Any]) -> None:
    rows: dict[Any, list[Token]] = defaultdict(list)
    for token in tokens_of(steps):
        rows[token["row"]].append(token)
    told = [
        (row[0]["prompt"], any(flips(t, "down") or flips(t, "up") for t in row), 1)
        for row in rows.values()
        if row[0]["base"]
    ]
    assert_told(numbers["completions"], plain_ratio(told, True))


@pytest.mark.parametrize("side", ["correct", "wrong"])
def test_how_often_the_advantage_has_the_sign_of_the_gap(
    steps: list[StepData], numbers: dict[str, Any], side: str
) -> None:
    tokens = [
        t for t in tokens_of(steps)
        if t["known"] and (t["verdict"] == "correct") == (side == "correct")
    ]  # fmt: skip
    signs = [(t["prompt"], t["gap"] * t["advantage"]) for t in tokens]
    rows = [(prompt, product > 0, 1) for prompt, product in signs if product]
    told = numbers["agreement"][side]
    assert told["tokens"] == len(rows) and 0 < told["share"]["mean"] < 1
    assert_told(told["share"], plain_ratio(rows, True))


def test_of_flips_by_sign_the_report_says_that_the_verdict_decides_nothing(tmp_path: Path) -> None:
    public = {"name": "cast", "shaping": {"tau_nats": 0.0, "flip_size": "other_side"}}
    data = random_step(tmp_path / "step-00000", method=public)
    numbers = measure(iter([data]), CONTEXT)
    assert {told["share"]["mean"] for told in numbers["agreement"].values()} == {1.0}
    said = told_of("flips", numbers)
    assert "the verdict no longer decides a direction" in said.answer[0]
    assert "whoever was right" in words_of(said)
    [sheet] = [b for b in said.blocks if isinstance(b, Sheet) and "Sign of" in b.title]
    assert [row[0] for row in sheet.rows] == ["correct", "wrong"]
    assert {row[2] for row in sheet.rows} == {"100.0"}
    context = replace(CONTEXT, cast=CastShaping.model_validate(public["shaping"]))
    alive = measure_with_life(iter([data]), context)
    assert alive["agreement"] == numbers["agreement"]
    assert "the verdict no longer decides a direction" in words_of(told_of("self-gaps", alive))


def test_the_verdict_decides_where_flips_need_a_threshold(
    steps: list[StepData], numbers: dict[str, Any]
) -> None:
    said = told_of("flips", numbers)
    assert "no longer decides" not in said.answer[0] + words_of(said)
    assert "The advantage has the sign of the gap at " in words_of(said)
    context = replace(CONTEXT, cast=CastShaping.model_validate(EAGER["shaping"]))
    assert measure_with_life(iter(steps), context)["agreement"] == numbers["agreement"]
    of_one_size = {**numbers["agreement"], "wrong": {"tokens": 0, "share": None}}
    assert not gap_decides({**of_one_size, "correct": {"tokens": 3, "share": {"mean": 1.0}}})


def told_of(name: str, numbers: dict[str, Any]) -> Section:
    diagnosis = Diagnosis(name, "", {}, [], plain(numbers), [], 0)
    return {"flips": section, "self-gaps": gaps_section}[name](diagnosis)


def words_of(section: Section) -> str:
    return " ".join(block for block in section.blocks if isinstance(block, str))


@pytest.mark.parametrize("way", ["down", "up"])
def test_tokens_and_contexts(steps: list[StepData], numbers: dict[str, Any], way: str) -> None:
    tokens = tokens_of(steps)
    counts: dict[int, list[int]] = defaultdict(lambda: [0, 0])
    for token in tokens:
        counts[token["id"]][0] += flips(token, way)
        counts[token["id"]][1] += could(token, way)
    told = numbers[f"tokens_{way}"]
    assert {(t["id"], t["flipped"], t["candidates"]) for t in told} == {
        (id, flipped, candidates) for id, (flipped, candidates) in counts.items() if flipped
    }
    assert [t["flipped"] for t in told] == sorted((t["flipped"] for t in told), reverse=True)

    of_prompt: dict[str, float] = defaultdict(float)
    for token in tokens:
        if flips(token, way):
            of_prompt[token["prompt"]] = max(of_prompt[token["prompt"]], abs(token["gap"]))
    largest = sorted(of_prompt.values(), reverse=True)[:10]
    contexts = numbers[f"contexts_{way}"]
    assert [abs(each["gap"]) for each in contexts] == pytest.approx(largest)
    for each in contexts:
        data = next(d for d in steps if d.step == each["step"])
        row = next(
            r for r, p in enumerate(data.prompt_ids)
            if (p, data.samples_R[r]) == (each["prompt_id"], each["sample"])
        )  # fmt: skip
        ids = [int(id) for id in data.ids_N[data.offsets[row] : data.offsets[row + 1]]]
        at = each["position"]
        assert ids[at] == each["id"] and each["token"] is None
        assert each["before"] == " ".join(map(str, ids[max(0, at - BEFORE) : at]))
        assert each["after"] == " ".join(map(str, ids[at + 1 : at + 1 + AFTER]))


def test_threshold_entropies_and_steps(steps: list[StepData], numbers: dict[str, Any]) -> None:
    tokens = tokens_of(steps)
    assert numbers["settings"]["tau_rms"] == 0.5 and numbers["settings"]["tau_floor"] == 0.01
    for tenth, told in enumerate(numbers["entropy"]):
        assert told == pytest.approx(np.mean([t["nats"] for t in tokens if t["entropy"] == tenth]))
    for told in numbers["by_step"]:
        own = [t for t in tokens if t["step"] == told["step"]]
        turned = [abs(t["gap"]) for t in own if flips(t, "down") or flips(t, "up")]
        assert told["smallest"] == pytest.approx(min(turned))
        assert told["rms"] == pytest.approx(math.sqrt(np.mean([t["gap"] ** 2 for t in own])))
        groups = defaultdict(list)
        for t in own:
            if t["known"]:
                groups[t["prompt"]].append(t["gap"] ** 2)
        floored = [0.5 * math.sqrt(np.mean(group)) < 0.01 for group in groups.values()]
        assert told["floored"] == pytest.approx(np.mean(floored))
        rows = [(t["prompt"], flips(t, "up"), could(t, "up")) for t in own]
        assert_told(told["up"], plain_ratio(rows, True))


def test_what_the_clamp_removed_is_a_share_by_number_correct(numbers: dict[str, Any]) -> None:
    told = [share for share in numbers["clamp_removed"] if share is not None]
    assert told and all(0 <= share <= 1 for share in told)


def test_without_entropies_flips_or_metadata(tmp_path: Path) -> None:
    quiet = {"name": "cast", "shaping": {"kind": "cast", "tau_nats": 1e6}}
    data = random_step(tmp_path / "step-00000", method=quiet)
    numbers = measure(iter([replace(data, entropies_N=None, slots=Slots())]), CONTEXT)
    assert numbers["settings"] is None and numbers["clamp_removed"] == []
    assert numbers["down"]["by_entropy"] is None and numbers["entropy"] is None
    for way in ("down", "up"):
        assert numbers[way]["flipped"] == 0 and numbers[way]["share"]["mean"] == 0
        assert numbers[way]["before"] is None
        assert numbers[f"tokens_{way}"] == numbers[f"contexts_{way}"] == []
    assert numbers["by_step"][0]["smallest"] is None
