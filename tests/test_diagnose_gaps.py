"""The gap's numbers against plain loops over the same shards."""

from __future__ import annotations

import math
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from castctl.diagnosis.cells import ENOUGH, ENTROPIES, describe_cells, describe_decay
from castctl.diagnosis.data import StepData, read_step
from castctl.diagnosis.diagnosis import Context, Diagnosis
from castctl.diagnosis.gaps import measure, measure_with_life
from castctl.diagnosis.pool import CELLS, Pool, pool_steps
from castctl.inspection.tokens import TokenTexts
from castctl.methods import MethodSettings
from castctl.report.diagnostics.gaps import section
from castctl.report.document import Picture, Section, Sheet
from castctl.shards.part import plain
from random_steps import random_step, write_step


@pytest.fixture(scope="module")
def steps(tmp_path_factory: pytest.TempPathFactory) -> list[StepData]:
    """Two steps of the same prompts: every kind of group, empty completions, null rewards."""
    folder = tmp_path_factory.mktemp("steps")
    return [
        random_step(folder / f"step-{n:05d}", n, step=n, prompts=30, samples=5, longest=40)
        for n in range(2)
    ]  # fmt: skip


@pytest.fixture(scope="module")
def pool(steps: list[StepData]) -> Pool:
    return pool_steps(steps)


@pytest.fixture(scope="module")
def tokens(steps: list[StepData]) -> list[dict[str, Any]]:
    """Every token of a completion with a reward, by plain loops."""
    found = []
    for data in steps:
        assert data.signals is not None and data.signals.tokens.gap_N is not None
        rewards = defaultdict(list)
        rows = len(data.prompt_ids)
        for row in range(rows):
            if data.groups.known_R[row]:
                rewards[data.prompt_ids[row]].append(data.groups.rewards_R[row])
        for row in range(rows):
            if not data.groups.known_R[row]:
                continue
            own = rewards[data.prompt_ids[row]]
            mixed = len(own) > 1 and min(own) != max(own)
            reward = data.groups.rewards_R[row]
            start, stop = data.offsets[row], data.offsets[row + 1]
            for n in range(start, stop):
                gap = float(np.float32(data.signals.tokens.gap_N[n]))
                found.append({
                    "row": (data.step, row), "prompt": data.prompt_ids[row], "gap": gap,
                    "correct": reward > 0, "mixed": mixed, "id": int(data.ids_N[n]),
                    "advantage": reward - sum(own) / len(own) if mixed else 0.0,
                    "entropy": float(np.float32(data.entropies_N[n])), "place": n - start,
                    "cell": ("positive" if gap > 0 else "negative")
                    + ("_correct" if reward > 0 else "_incorrect"),
                })  # fmt: skip
    return found


@pytest.mark.parametrize("alone", [False, True], ids=["all", "mixed"])
def test_the_cells_are_what_their_tokens_say(
    pool: Pool, tokens: list[dict[str, Any]], alone: bool
) -> None:
    kept = [t for t in tokens if t["mixed"] or not alone]
    found = describe_cells(pool.completions(pool.mixed_R) if alone else pool, 0)
    mass = sum(abs(t["gap"]) for t in kept)
    edge = float(np.quantile([abs(t["gap"]) for t in kept], 0.99))
    assert found["tokens"] == len(kept)
    for name in CELLS:
        own = [t for t in kept if t["cell"] == name]
        gaps = np.array([t["gap"] for t in own])
        cell = found["cells"][name]
        assert cell["tokens"] == len(own)
        assert cell["share"].mean == pytest.approx(len(own) / len(kept))
        assert cell["mass_share"].mean == pytest.approx(np.abs(gaps).sum() / mass, rel=1e-5)
        assert cell["mean"].mean == pytest.approx(gaps.mean(), rel=1e-5)
        assert cell["std"] == pytest.approx(gaps.std(), rel=1e-5)
        assert cell["snr"].mean == pytest.approx(abs(gaps.mean()) / gaps.std(), rel=1e-4)
        quantiles = np.quantile(gaps, [0.01, 0.05, 0.5, 0.95, 0.99])
        assert list(cell["quantiles"].values()) == pytest.approx(quantiles.tolist(), rel=1e-5)
        far = [abs(g) for g in gaps if abs(g) > edge]
        assert cell["tail_share"] == pytest.approx(len(far) / len(own), abs=1e-3)
        assert cell["tail_mass"] == pytest.approx(sum(far) / np.abs(gaps).sum(), abs=0.02)
        agrees = sum(t["gap"] * t["advantage"] > 0 for t in own) / len(own)
        against = sum(t["gap"] * t["advantage"] < 0 for t in own) / len(own)
        assert (cell["agrees"], cell["disagrees"]) == pytest.approx((agrees, against))
        assert cell["undirected"] == pytest.approx(1 - agrees - against)
        assert cell["misleads"] == (name in ("negative_correct", "positive_incorrect"))


def test_what_misleads_and_what_agrees(pool: Pool, tokens: list[dict[str, Any]]) -> None:
    found = describe_cells(pool, 0)
    wrong_way = [t for t in tokens if (t["gap"] > 0) != t["correct"]]
    assert found["misleading_share"].mean == pytest.approx(len(wrong_way) / len(tokens))
    mass = [sum(abs(t["gap"]) for t in some) for some in (wrong_way, tokens)]
    assert found["misleading_mass"].mean == pytest.approx(mass[0] / mass[1], rel=1e-5)
    directed = [t for t in tokens if t["advantage"]]
    same = sum((t["gap"] > 0) == (t["advantage"] > 0) for t in directed) / len(directed)
    up = sum(t["advantage"] > 0 for t in directed) / len(directed)
    positive = sum(t["gap"] > 0 for t in directed) / len(directed)
    chance = up * positive + (1 - up) * (1 - positive)
    assert found["agreement"].mean == pytest.approx(same)
    assert found["agreement_by_chance"].mean == pytest.approx(chance)
    assert found["agreement_excess"].mean == pytest.approx(same - chance)
    rms = math.sqrt(sum(t["gap"] ** 2 for t in tokens) / len(tokens))
    assert found["rms"].mean == pytest.approx(rms, rel=1e-5)


def test_the_decay_is_the_slope_of_the_bins(pool: Pool, tokens: list[dict[str, Any]]) -> None:
    assert pool.entropy_N is not None
    found = describe_decay(pool, pool.entropy_N, ENTROPIES, 0)
    edges = ENTROPIES.tolist()
    bins: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for token in tokens:
        bins[sum(token["entropy"] >= edge for edge in edges) - 1].append(token)
    for name in CELLS:
        x, y = [], []
        for number, here in bins.items():
            gaps = np.array([t["gap"] for t in here if t["cell"] == name])
            center = float(np.mean([t["entropy"] for t in here]))
            assert found["centers"][number] == pytest.approx(center, rel=1e-5)
            assert found["cells"][name]["tokens"][number] == len(gaps)
            if len(gaps) >= ENOUGH:
                x.append(center)
                y.append(math.log(abs(gaps.mean()) / gaps.std()))
        assert len(x) >= 3
        slope = np.polyfit(x, y, 1)[0]
        assert found["cells"][name]["rate"].mean == pytest.approx(-slope, rel=1e-3)


def test_scores_separate_as_pairs_say(steps: list[StepData], tokens: list[dict[str, Any]]) -> None:
    numbers = measure(iter(steps), Context(TokenTexts(None)))
    rows: dict[Any, list[dict[str, Any]]] = defaultdict(list)
    for token in tokens:
        rows[token["row"]].append(token)

    def mean(values: list[float]) -> float:
        return sum(values) / len(values) if values else 0.0

    scores = {
        "mean_gap": lambda gaps: mean(gaps),
        "mean_positive_gap": lambda gaps: mean([g for g in gaps if g > 0]),
        "mean_negative_gap": lambda gaps: mean([g for g in gaps if g < 0]),
        "length": lambda gaps: float(len(gaps)),
    }
    for name, score in scores.items():
        for kind in ("all", "mixed"):
            chosen = [r for r in rows.values() if r[0]["mixed"] or kind == "all"]
            told = [(score([t["gap"] for t in r]), r[0]["correct"]) for r in chosen]
            wins = [
                (a > b) + (a == b) / 2
                for a, right in told if right for b, other in told if not other
            ]  # fmt: skip
            found = numbers["separation"][kind][name]
            assert found.mean == pytest.approx(sum(wins) / len(wins), abs=1e-3)
            assert found.low < found.mean < found.high


def test_the_tokens_and_places_that_carry_most(
    steps: list[StepData], tokens: list[dict[str, Any]]
) -> None:
    numbers = measure(iter(steps), Context(TokenTexts(None)))
    for name in CELLS:
        own = [t for t in tokens if t["cell"] == name]
        mass: dict[int, float] = defaultdict(float)
        for token in own:
            mass[token["id"]] += abs(token["gap"])
        first = numbers["tokens"][name][0]
        assert first["id"] == max(mass, key=lambda id: mass[id])
        assert first["mass_share"] == pytest.approx(
            max(mass.values()) / sum(mass.values()), rel=1e-4
        )
        assert first["text"] is None
        places = numbers["contexts"][name]
        prompts = [place["prompt_id"] for place in places]
        assert len(set(prompts)) == len(prompts) > 3
        assert abs(places[0]["gap"]) == pytest.approx(max(abs(t["gap"]) for t in own))
        sizes = [abs(place["gap"]) for place in places]
        assert sizes == sorted(sizes, reverse=True)


def test_every_step_is_told_and_repeats_to_the_last_bit(steps: list[StepData]) -> None:
    first, second = (
        plain(measure_with_life(iter(steps), Context(TokenTexts(None), seed=3))) for _ in range(2)
    )
    assert first == second
    assert [row["step"] for row in first["by_step"]] == [0, 1]
    assert sum(row["tokens"] for row in first["by_step"]) == first["all"]["tokens"]
    life = first["alive"][1]
    assert life["age"] is None and 0 < life["beyond_tau"] < life["beyond_tenth"] < 1


def test_the_age_of_a_snapshot_is_counted_from_its_renewal(tmp_path: Path) -> None:
    teacher = MethodSettings(name="cast").teacher
    made = {"model": "m", "teacher": teacher.identity}
    data = random_step(
        tmp_path / "step-00003",
        0,
        step=23,
        signals_metadata={"signals": {"teacher_logprobs": made}},
    )
    numbers = measure_with_life(iter([data]), Context(TokenTexts(None)))
    assert [life["age"] for life in numbers["alive"]] == [23 % teacher.every]


def test_a_dead_gap_is_said_to_be_dead(tmp_path: Path) -> None:
    data = random_step(tmp_path / "step-00000", 0, gap=0.0)
    numbers = plain(measure(iter([data]), Context(TokenTexts(None))))
    assert numbers["all"]["zero_share"] == 1.0
    assert "gap is zero everywhere" in " ".join(_words(_section("opsd-gaps", numbers)))


def test_nothing_that_is_known_is_no_number(tmp_path: Path) -> None:
    data = random_step(tmp_path / "step-00000", 0, kinds=("unknown",))
    numbers = plain(measure(iter([data]), Context(TokenTexts(None))))
    assert numbers["all"]["tokens"] == 0
    assert "no correct completion" in " ".join(_words(_section("self-gaps", numbers)))


def test_first_tokens_that_are_not_heard_are_in_no_cell(tmp_path: Path) -> None:
    folder = write_step(tmp_path / "step-00000", np.random.default_rng(0))
    parts = folder.parts("rollouts")
    heard = [
        int((~np.isnan(pool_steps([read_step(folder, ["signals"], parts, skip)]).gap_N)).sum())
        for skip in (0, 2)
    ]
    data = read_step(folder, ["signals"], parts)
    assert heard[0] - heard[1] == np.minimum(data.lengths_R[data.known_R], 2).sum()


def test_completions_of_one_kind_are_not_compared(tmp_path: Path) -> None:
    data = random_step(tmp_path / "step-00000", 0, kinds=("all_wrong",))
    numbers = plain(measure(iter([data]), Context(TokenTexts(None))))
    assert numbers["separation"]["all"]["mean_gap"] is None
    assert "no correct completion" in " ".join(_words(_section("opsd-gaps", numbers)))


@pytest.mark.parametrize("name", ["opsd-gaps", "self-gaps"])
def test_a_section_has_tables_words_and_plots(steps: list[StepData], name: str) -> None:
    measured = measure if name == "opsd-gaps" else measure_with_life
    found = _section(name, plain(measured(iter(steps), Context(TokenTexts(None)))))
    sheets = [block for block in found.blocks if isinstance(block, Sheet)]
    assert all(len(row) == len(sheet.headings) for sheet in sheets for row in sheet.rows)
    assert all(isinstance(cell, str) for sheet in sheets for row in sheet.rows for cell in row)
    drawn = [block.draw() for block in found.blocks if isinstance(block, Picture)]
    assert len(drawn) >= 4 and all(figure.axes for figure in drawn)
    assert "does not show" in " ".join(_words(found))


def _section(name: str, numbers: dict[str, Any]) -> Section:
    steps = [{"step": 0, "teacher_settings": {"kind": "current"}, "teacher_context": "solution"}]
    return section(Diagnosis(name, "?", {}, steps, numbers, [], 0))


def _words(found: Section) -> list[str]:
    return [block for block in found.blocks if isinstance(block, str)]
