"""Several rewards: what each is worth, their sum, and both ways to one advantage."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from castctl.diagnosis.data import read_step
from castctl.errors import UserError
from castctl.methods import MethodSettings
from castctl.methods.advantages import Advantages, compute_advantages
from castctl.methods.groups import Groups
from castctl.methods.signals import TokenSignals
from castctl.progress import Silent
from castctl.ragged import offsets_of
from castctl.recipe.reader import load_recipe
from castctl.recipe.recipe import Recipe
from castctl.recipe.verifier import VerifierSettings
from castctl.runs.run import Run
from castctl.shards.columns import correctness
from castctl.shards.metadata import parse_metadata
from castctl.shards.part import content_hash, read_part, write_part
from castctl.shards.schema import reward_field, reward_weights
from castctl.shards.stage import Shard, StepFolder
from castctl.stages.groups import reward_groups
from castctl.stages.measures import measure_rewards
from castctl.stages.score.rewards import score_rewards
from castctl.stages.shape import shape_step
from castctl.stages.train.zero_signals import warn_of_zero_rewards
from castctl.verify.judge import Row, judge, judging_pool, made_by
from castctl.verify.pool import CheckPool
from castctl.verify.rewards import Rewarded, of_scripts, reward
from conftest import Cli
from random_steps import write_step
from runs import small_recipe, train_small

ALONE = VerifierSettings(workers=1, timeout=20)


def verifier(*rewards: dict[str, Any], **settings: Any) -> VerifierSettings:
    """Correctness at weight 1 and these beside it."""
    listed = rewards if any(r["kind"] == "correct" for r in rewards) else (CORRECT, *rewards)
    return VerifierSettings.model_validate(
        {"workers": 1, "timeout": 20, "rewards": listed, **settings}
    )


CORRECT = {"kind": "correct"}


@pytest.fixture(scope="module")
def pool() -> Iterator[CheckPool]:
    with judging_pool(ALONE) as pool:
        yield pool


def rewarded(pool: CheckPool, settings: VerifierSettings, *rows: Row) -> list[Rewarded]:
    return reward(pool, settings, rows, judge(pool, settings, rows))


# What each is worth


def test_boxed_is_one_where_a_box_holds_an_answer(pool: CheckPool) -> None:
    settings = verifier({"kind": "boxed", "weight": 0.5})
    texts = (r"\boxed{7}", r"\boxed{8}", "7", r"\boxed{ }", r"<think>\boxed{7}")
    told = rewarded(pool, settings, *(Row("p", text, "7", "stop") for text in texts))
    assert [each.parts["boxed"] for each in told] == [1, 1, 0, 0, 0]
    assert [each.judgement.reward for each in told] == [1.5, 0.5, 0, 0, 0]
    assert told[1].judgement.verdict == "wrong"
    late = verifier({"kind": "boxed", "within_last": 0.5})
    rows = (Row("p", r"ab\boxed{8}", "7", "stop", boxed_from=at) for at in (2, 3, None))
    assert [each.parts["boxed"] for each in rewarded(pool, late, *rows)] == [1, 0, 1]


def test_length_falls_from_its_target(pool: CheckPool) -> None:
    rows = [Row("p", r"\boxed{7}", "7", "stop", tokens=n) for n in (0, 10, 11, 14, 15, 99)]
    at_once = rewarded(pool, verifier({"kind": "length", "target": 10}), *rows)
    assert [each.parts["length"] for each in at_once] == [1, 1, 0, 0, 0, 0]
    slowly = rewarded(pool, verifier({"kind": "length", "target": 10, "fall": 5}), *rows)
    assert [each.parts["length"] for each in slowly] == pytest.approx([1, 1, 0.8, 0.2, 0, 0])
    short = Row("p", r"\boxed{8}", "7", "stop", tokens=1)
    for only, expected in ((False, 1.0), (True, 0.0)):
        settings = verifier({"kind": "length", "target": 10, "only_correct": only})
        assert rewarded(pool, settings, short)[0].parts["length"] == expected
    with pytest.raises(UserError, match="nobody counted"):
        rewarded(pool, verifier({"kind": "length", "target": 10}), short._replace(tokens=None))


@pytest.mark.parametrize(
    ("text", "scripts", "share"),
    [
        ("so x = 7", ("latin",), 1.0),
        ("so x = 7", ("cjk",), 0.0),
        ("so 答案 x", ("latin",), 0.6),
        ("答案 is", ("cjk",), 0.5),
        ("\\pi π \u211d \uff12 \uff41 é", ("latin",), 1.0),
        ("ab αβ", ("greek",), 0.5),
        ("да no", ("latin", "cyrillic"), 1.0),
        ("12 + 3 = 15", ("thai",), 1.0),
        ("", ("latin",), 1.0),
    ],
)
def test_language_is_the_share_of_letters(
    text: str, scripts: tuple[str, ...], share: float
) -> None:
    assert of_scripts(text, frozenset(scripts)) == pytest.approx(share)


@pytest.fixture
def own(tmp_path: Path) -> Callable[[str], dict[str, Any]]:
    """A reward `brief` by a function with this body."""

    def write(body: str) -> dict[str, Any]:
        file = tmp_path / "own.py"
        file.write_text(f"import time\ndef brief(problem, completion, answer):\n    {body}\n")
        return {"kind": "custom", "function": f"{file}:brief", "name": "brief", "weight": -2}

    return write


def test_a_function_of_the_users_is_added(
    pool: CheckPool, own: Callable[[str], dict[str, Any]]
) -> None:
    settings = verifier(own("return len(completion) / 4"))
    [told] = rewarded(pool, settings, Row("p", r"\boxed{7}", "7", "stop"))
    assert told.parts == {"correct": 1, "brief": 2.25}
    assert told.judgement.reward == -3.5 and told.judgement.verdict == "correct"
    made = made_by(settings)["verifier"]["rewards"]
    assert made[1]["version"].startswith("own.py:brief ")
    own("return 0")
    assert made_by(settings)["verifier"]["rewards"] != made


@pytest.mark.parametrize(
    ("body", "why"),
    [
        ("return 1 / 0", "ZeroDivisionError"),
        ("return float('nan')", "no reward"),
        ("return 3e38", "add up to"),
        ("time.sleep(9)", "reward brief"),
    ],
)
def test_a_row_whose_function_fails_has_no_reward(
    own: Callable[[str], dict[str, Any]], body: str, why: str
) -> None:
    settings = verifier(own(body), timeout=0.5)
    with judging_pool(settings) as pool:
        [told] = rewarded(pool, settings, Row("p", r"\boxed{7}", "7", "stop"))
    assert told.parts == {} and told.judgement.reward is None
    assert told.judgement.verdict == "error" and why in str(told.judgement.message)


def test_what_was_not_judged_has_no_rewards(pool: CheckPool) -> None:
    failed, fine = Row("p", "", "7", "error"), Row("p", r"\boxed{7}", "7", "stop")
    told = rewarded(pool, verifier({"kind": "boxed"}), failed, fine)
    assert told[0].parts == {} and told[0].judgement.reward is None
    assert told[1].judgement.reward == 2


@given(st.lists(st.tuples(st.floats(-5, 5), st.booleans(), st.booleans()), min_size=1, max_size=6))
def test_the_sum_is_of_weights_and_rewards(rows: list[tuple[float, bool, bool]]) -> None:
    for weight, right, boxed in rows:
        settings = verifier(
            {"kind": "correct", "weight": 0.25}, {"kind": "boxed", "weight": weight}
        )
        text = (r"\boxed{7}" if right else r"\boxed{8}") if boxed else "7"
        with CheckPool(ALONE) as pool:  # whole numbers start no worker
            [told] = rewarded(pool, settings, Row("p", text, "7", "stop"))
        assert told.judgement.reward == pytest.approx(0.25 * (right and boxed) + weight * boxed)


# From rewards to advantages

Parts = list[tuple[str, float, list[float]]]
"""Of each reward its name, its weight, and what completions got (R)."""

EIGHTHS = st.integers(-16, 16).map(lambda number: number / 8)


@st.composite
def drawn(draw: st.DrawFn) -> tuple[list[int], Parts]:
    """Groups of one to five completions, and one to three rewards with exact sums; correctness is
    0 or 1, or not known, and then nothing is."""
    group = [g for g in range(draw(st.integers(1, 4))) for _ in range(draw(st.integers(1, 5)))]
    right = draw(
        st.lists(st.sampled_from([0.0, 1.0, 1.0, math.nan]), min_size=len(group),
                 max_size=len(group))
    )  # fmt: skip
    parts: Parts = [("correct", draw(EIGHTHS), right)]
    for name in ("boxed", "length")[: draw(st.integers(0, 2))]:
        values = draw(st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=len(group),
                               max_size=len(group)))  # fmt: skip
        values = [math.nan if math.isnan(r) else v for r, v in zip(right, values, strict=True)]
        parts.append((name, draw(EIGHTHS), values))
    return group, parts


def rewards_table(group: Sequence[Any], parts: Parts, several: bool = True) -> pa.Table:
    """A table of `rewards/`, with a column for each where there are `several`."""
    total = [
        math.fsum(weight * values[row] for _, weight, values in parts) for row in range(len(group))
    ]
    columns: dict[str, Any] = {
        "prompt_id": [str(number) for number in group],
        "sample": pa.array(range(len(group)), pa.int32()),
        "reward": pa.array([_null(value) for value in total], pa.float32()),
        "verdict": ["error" if math.isnan(r) else "correct" if r else "wrong" for r in parts[0][2]],
        "seconds": pa.array([0.0] * len(group), pa.float32()),
    }
    table = pa.table(columns)
    for name, weight, values in parts if several else ():
        column = pa.array([_null(value) for value in values], pa.float32())
        table = table.append_column(reward_field(name, weight), column)
    return table


def _null(value: float) -> float | None:
    return None if math.isnan(value) else value


def advantages(method: MethodSettings, groups: Groups) -> Advantages:
    """Of completions of two tokens."""
    signals = TokenSignals(offsets_of([2] * len(groups.of_row)))
    return compute_advantages(method, groups, signals)


def bases(method: MethodSettings, groups: Groups) -> list[float]:
    return advantages(method, groups).base_R.tolist()


def grpo(aggregation: str = "sum_then_normalize", **slots: Any) -> MethodSettings:
    baseline = {"kind": "mean_std", "multi_objective_aggregation": aggregation}
    return MethodSettings.model_validate({"name": "grpo", "baseline": baseline, **slots})


def plain_advantages(group: Sequence[int], values: Sequence[float]) -> list[float]:
    """GRPO's advantage of each completion, by the formula."""
    told = []
    for row, value in enumerate(values):
        known = [values[i] for i, g in enumerate(group) if g == group[row]]
        known = [v for v in known if not math.isnan(v)]
        if math.isnan(value) or len(known) < 2 or min(known) == max(known):
            told.append(0.0)
            continue
        mean = math.fsum(known) / len(known)
        variance = math.fsum((v - mean) ** 2 for v in known) / len(known)
        told.append((value - mean) / (math.sqrt(variance) + 1e-6))
    return told


def plain_gdpo(group: Sequence[int], parts: Sequence[tuple[float, list[float]]]) -> list[float]:
    """GDPO's advantage of each completion, in its three steps (arXiv 2601.05242)."""
    each = [(weight, plain_advantages(group, values)) for weight, values in parts]
    sums = [math.fsum(weight * own[row] for weight, own in each) for row in range(len(group))]
    known = [s for s, value in zip(sums, parts[0][1], strict=True) if not math.isnan(value)]
    mean = math.fsum(known) / max(len(known), 1)
    deviation = math.sqrt(math.fsum((s - mean) ** 2 for s in known) / max(len(known), 1))
    return [
        0.0 if math.isnan(value) else (s - mean) / (deviation + 1e-6)
        for s, value in zip(sums, parts[0][1], strict=True)
    ]


@given(drawn())
def test_both_ways_by_the_plain_reading(case: tuple[list[int], Parts]) -> None:
    group, parts = case
    groups = reward_groups(rewards_table(group, parts))
    rows = range(len(group))
    total = [math.fsum(weight * values[row] for _, weight, values in parts) for row in rows]
    assert bases(grpo(), groups) == pytest.approx(plain_advantages(group, total), abs=1e-12)
    expected = plain_gdpo(group, [(weight, values) for _, weight, values in parts])
    actual = bases(grpo("normalize_then_sum"), groups)
    assert actual == pytest.approx(expected, abs=1e-9)


@given(drawn(), st.sampled_from(["sum_then_normalize", "normalize_then_sum"]))
def test_weights_of_one_and_zero_are_the_single_reward(
    case: tuple[list[int], Parts], aggregation: str
) -> None:
    """Of CAST and DAPO too, which read right and wrong."""
    group, drawn_parts = case
    parts = [(name, float(name == "correct"), values) for name, _, values in drawn_parts]
    several = reward_groups(rewards_table(group, parts))
    single = reward_groups(rewards_table(group, parts[:1], several=False))
    for method in (
        grpo(aggregation),
        grpo(zero_variance={"kind": "resample"}),
        grpo(aggregation, zero_variance={"kind": "signed"}),
    ):
        one, other = (advantages(method, groups) for groups in (several, single))
        for stream in ("kept_R", "base_R", "advantages_N"):
            assert np.array_equal(getattr(one, stream), getattr(other, stream))


def test_what_the_sum_makes_equal_gdpo_tells_apart() -> None:
    """Two groups of two completions: (0, 1) of one reward, (0, 2) of the sum (arXiv 2601.05242,
    figure 2)."""
    parts: Parts = [("correct", 1.0, [0, 1, 0, 1]), ("boxed", 1.0, [0, 0, 0, 1])]
    groups = reward_groups(rewards_table([0, 0, 1, 1], parts))
    assert bases(grpo(), groups) == pytest.approx([-1, 1, -1, 1], abs=1e-5)
    apart = np.array([-1, 1, -2, 2]) / math.sqrt(2.5)
    assert bases(grpo("normalize_then_sum"), groups) == pytest.approx(apart.tolist(), abs=1e-5)


def test_resampling_reads_correctness_alone() -> None:
    parts: Parts = [("correct", 1.0, [1, 1, 0, 1]), ("length", 0.5, [0, 1, 1, 1])]
    groups = reward_groups(rewards_table([0, 0, 1, 1], parts))
    assert groups.kind_G.tolist() == ["mixed", "mixed"]
    dapo = advantages(grpo(zero_variance={"kind": "resample"}), groups)
    assert dapo.kept_R.tolist() == [False, False, True, True]


@pytest.mark.parametrize("parts", [
    [("correct", 1.0, [0.0, 1.0]), ("boxed", 0.5, [1.0, 1.0])],
    [("correct", 0.0, [0.0, 1.0]), ("boxed", 1.0, [1.0, 0.0])],  # of 0 and 1, and not correctness
])  # fmt: skip
def test_methods_of_right_and_wrong_refuse_sums(parts: Parts) -> None:
    groups = reward_groups(rewards_table([0, 0], parts))
    with pytest.raises(UserError, match="rewards must be 0 or 1"):
        bases(grpo(zero_variance={"kind": "signed"}), groups)


# The columns


def test_columns_come_back_with_their_weights(tmp_path: Path) -> None:
    parts: Parts = [("correct", 1.0, [0, 1, math.nan]), ("brief", -0.1, [0.5, 0.25, math.nan])]
    table = rewards_table([0, 0, 0], parts)
    write_part(tmp_path / "part.parquet", "rewards", table, {})
    back = read_part(tmp_path / "part.parquet", "rewards").table
    assert reward_weights(back.schema) == {"correct": 1.0, "brief": -0.1}
    assert back["reward_brief"].to_pylist() == [0.5, 0.25, None]
    assert correctness(back)[:2].tolist() == [0, 1]
    measured = measure_rewards(back)
    assert measured["reward_correct_mean"] == 0.5 and measured["reward_brief_mean"] == 0.375
    assert measured["reward_mean"] == pytest.approx(0.4625)


def _written(path: Path, change: Callable[[pa.Table], pa.Table]) -> Path:
    """A part of two rewards, changed by another program."""
    parts: Parts = [("correct", 1.0, [0, 1]), ("boxed", 0.5, [1, 1])]
    write_part(path, "rewards", rewards_table([0, 0], parts), {})
    table = read_part(path, "rewards").table
    pq.write_table(change(table.replace_schema_metadata(None)), path)
    return path


def _with(table: pa.Table, name: str, values: list[float | None], weight: bytes) -> pa.Table:
    field = pa.field(name, pa.float32(), metadata={b"weight": weight})
    place = table.column_names.index(name)
    return table.set_column(place, field, pa.array(values, pa.float32()))


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda t: _with(t, "reward_boxed", [1, 0], b"0.5"), "not the weighted sum"),
        (lambda t: _with(t, "reward_boxed", [1, 1], b"0.4"), "not the weighted sum"),
        (lambda t: _with(t, "reward_boxed", [1, 1], b"nan"), "weight of reward_boxed is nan"),
        (lambda t: _with(t, "reward_boxed", [1, 1], b"much"), "could not convert"),
        (lambda t: _with(t, "reward_boxed", [1, None], b"0.5"), "is null where their sum is not"),
        (lambda t: t.drop_columns(["reward_correct"]), "no reward_correct among them"),
    ],
)
def test_a_sum_that_is_none_is_refused(
    tmp_path: Path, change: Callable[[pa.Table], pa.Table], why: str
) -> None:
    with pytest.raises(UserError, match=why):
        read_part(_written(tmp_path / "part.parquet", change), "rewards")


def test_columns_without_weights_are_beyond_the_contract(tmp_path: Path) -> None:
    plain = _written(
        tmp_path / "part.parquet", lambda t: pa.table({name: t[name] for name in t.column_names})
    )
    assert not reward_weights(read_part(plain, "rewards").table.schema)


def rollouts_in(folder: StepFolder, texts: Sequence[str], part: int = 0) -> None:
    """Completions of the answer 7 without tokens, two of a prompt."""
    rows = len(texts)
    none = pa.array([[]] * rows, pa.list_(pa.int32()))
    table = pa.table({
        "prompt_id": [f"{part}-{row // 2}" for row in range(rows)],
        "sample": pa.array([row % 2 for row in range(rows)], pa.int32()),
        "problem": ["3 + 4"] * rows, "answer": ["7"] * rows, "prompt_token_ids": none,
        "completion_token_ids": none, "completion": list(texts), "finish_reason": ["stop"] * rows,
    })  # fmt: skip
    write_part(folder.part_path("rollouts", part), "rollouts", table, {"part": part})


TEXTS = [r"\boxed{7}", r"so \boxed{8}", "7", r"\boxed{\frac{14}{2}}"]


def scored(folder: StepFolder, settings: VerifierSettings, pool: CheckPool, **options: Any) -> None:
    score_rewards(folder, settings, pool, None, progress=Silent(), **options)


def test_correctness_alone_writes_what_it_always_did(tmp_path: Path, pool: CheckPool) -> None:
    folder = StepFolder(tmp_path)
    rollouts_in(folder, TEXTS)
    scored(folder, ALONE, pool)
    part = folder.read("rewards", 0)
    assert part.table.column_names == [
        "prompt_id", "sample", "reward", "verdict", "extracted", "answer_start", "answer_end",
        "seconds",
    ]  # fmt: skip
    assert content_hash(part.table) == "3c9438f9c1461f74"  # as before there were several
    assert part.metadata is not None and part.metadata["verifier"] == {
        "function": None, "timeout": 20.0, "memory_gb": 2.0, "correct_from": 1.0,
        "box_within_last": None,
    }  # fmt: skip
    listed = verifier(CORRECT)
    assert listed == ALONE and not listed.adds_up
    scored(folder, listed, pool)  # made alike: nothing is refused


def test_each_has_its_column_and_a_step_is_of_one_sum(tmp_path: Path, pool: CheckPool) -> None:
    folder = StepFolder(tmp_path)
    rollouts_in(folder, TEXTS)
    rollouts_in(folder, TEXTS[::-1], 1)
    settings = verifier({"kind": "boxed", "weight": 0.25})
    scored(folder, settings, pool)
    table = folder.table("rewards")
    assert table["reward"].to_pylist()[:4] == [1.25, 0.25, 0, 1.25]
    assert table["reward_correct"].to_pylist()[:4] == [1, 0, 0, 1]
    assert table["reward_boxed"].to_pylist()[:4] == [1, 1, 0, 1]
    other = verifier({"kind": "boxed", "weight": 0.5})
    with pytest.raises(UserError, match="another verifier"):
        scored(folder, other, pool)
    scored(folder, other, pool, shard=Shard(1, 2), overwrite=True)  # and never part 0
    with pytest.raises(UserError, match="other rewards or other weights"):
        folder.table("rewards")
    with pytest.raises(UserError, match="mixes rewards"):
        folder.refuse_mixed("rewards")


def summed_step(path: Path, seed: int) -> StepFolder:
    """A random step whose reward is correctness and, by a weight, a number of its own."""
    rng = np.random.default_rng(seed)
    kinds = ("mixed", "all_correct", "mixed", "all_wrong")
    folder = write_step(path, rng, parts=1, method={"name": "grpo"}, kinds=kinds)
    table = folder.table("rewards")
    right = [math.nan if r is None else r for r in table["reward"].to_pylist()]
    own = [math.nan if math.isnan(r) else float(rng.integers(0, 4)) / 4 for r in right]
    prompts = table["prompt_id"].to_pylist()
    parts: Parts = [("correct", 1.0, right), ("length", -0.5, own)]
    summed = rewards_table(prompts, parts).drop_columns(["prompt_id", "sample", "verdict"])
    for name in ("prompt_id", "sample", "verdict"):
        summed = summed.append_column(name, table[name])
    write_part(folder.part_path("rewards", 0), "rewards", summed, {})
    return folder


@pytest.mark.parametrize("aggregation", ["sum_then_normalize", "normalize_then_sum"])
def test_shape_ignores_part_size(tmp_path: Path, aggregation: str) -> None:
    whole = summed_step(tmp_path / "whole", 3)
    method = grpo(aggregation)
    shape_step(whole, method, progress=Silent(), overwrite=True)
    expected = whole.table("advantages")
    assert np.unique(expected["base"].to_numpy()).size > 10
    tables = {stage: whole.table(stage) for stage in ("rollouts", "rewards", "signals")}
    prompts = tables["rewards"]["prompt_id"].to_pylist()
    ids = list(dict.fromkeys(prompts))
    for size in (1, 5):
        folder = StepFolder(tmp_path / str(size))
        for part, start in enumerate(range(0, len(ids), size)):
            own = pa.array(
                [row for row, id in enumerate(prompts) if id in ids[start : start + size]]
            )
            for stage, table in tables.items():
                write_part(folder.part_path(stage, part), stage, table.take(own), {})
        shape_step(folder, method, progress=Silent())
        assert folder.table("advantages").equals(expected)


def test_diagnoses_read_correctness_alone(tmp_path: Path) -> None:
    folder = summed_step(tmp_path, 4)
    groups = read_step(folder, ("rollouts", "rewards"), folder.parts("rollouts")).groups
    assert groups.binary and not reward_groups(folder.table("rewards")).binary
    assert np.array_equal(groups.rewards_R, np.nan_to_num(correctness(folder.table("rewards"))))


# Recipes


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("verifier.rewards=[{kind: boxed}]", "{kind: correct} must be among them"),
        ("verifier.rewards={kind: correct}", "write a list"),
        ("verifier.rewards=[correct]", "as a mapping, such as {kind: 'correct'}"),
        ("verifier.rewards=[{kind: correct}, {kind: correct}]", "correct is there 2 times"),
        ("verifier.rewards=[{kind: correct}, {kind: lenght}]", "correct, boxed, length, language"),
        ("verifier.rewards=[{kind: correct}, {kind: length}]", "rewards.1.target: field required"),
        ("verifier.rewards=[{kind: correct, weight: .nan}]", "weight: input should be a finite"),
        ("verifier.rewards=[{kind: correct, target: 3}]", "does not belong to the kind chosen"),
        ("verifier.rewards=[{kind: correct}, {kind: language, scripts: []}]", "name a script"),
        ("verifier.reward_weights=[1, 2]", "write verifier.rewards (each with its weight)"),
        ("verifier.function=3", "verifier.function: input should be a valid string"),
    ],
)  # fmt: skip
def test_a_wrong_list_says_what_to_write(override: str, words: str) -> None:
    with pytest.raises(UserError) as caught:
        load_recipe(None, [override])
    assert words in str(caught.value)


BOXED_TOO = "verifier.rewards=[{kind: correct}, {kind: boxed, weight: 0.1}]"
FIRST = "method.baseline.multi_objective_aggregation=normalize_then_sum"


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ((BOXED_TOO, "method.zero_variance.kind=signed"), "verifier.rewards add up to others"),
        ((BOXED_TOO, "method.conditioning.kind=bilateral"), "verifier.rewards add up to others"),
        ((BOXED_TOO, FIRST, "method.overlong.kind=penalty"), "each is compared by itself"),
        ((BOXED_TOO, FIRST, "method.zero_variance.kind=resample"), "that of the whole step"),
        ((BOXED_TOO, FIRST, "method.baseline.kind=mean"), "divides by no deviation"),
        ((BOXED_TOO, FIRST, "method.baseline.kind=rcc"), "does not belong to the kind chosen"),
    ],
)
def test_what_makes_no_sense_together_is_refused(overrides: tuple[str, ...], words: str) -> None:
    with pytest.raises(UserError) as caught:
        load_recipe(None, overrides)
    assert words in str(caught.value)


def test_what_only_records_is_allowed_beside_right_and_wrong() -> None:
    recorded = BOXED_TOO.replace("0.1", "0")
    recipe = load_recipe(None, [recorded], method={"name": "cast"})
    assert recipe.verifier.adds_up and not recipe.verifier.mixes
    assert recipe.verifier.weights == {"correct": 1, "boxed": 0}
    warned = load_recipe(None, [FIRST, "data.path=embedded"]).check_training()
    assert any("only divides a single reward's" in each for each in warned)


def test_recipes_that_come_along_reward_correctness_alone() -> None:
    assert Recipe().verifier == VerifierSettings() and not Recipe().verifier.adds_up
    assert MethodSettings().baseline.normalizes_first is False


def test_settings_of_before_are_those_of_adding_first() -> None:
    old = {"settings": {"baseline": {"kind": "mean_std", "std": "population", "eps": 1e-6}}}
    said = parse_metadata(json.dumps(old).encode())["settings"]["baseline"]
    assert said == MethodSettings().baseline.model_dump(mode="json")
    for odd in ("mean_std", {"kind": "rcc"}, None):
        kept = parse_metadata(json.dumps({"settings": {"baseline": odd}}).encode())
        assert kept["settings"]["baseline"] == odd


# A run


def test_warnings_read_correctness(caplog: pytest.LogCaptureFixture) -> None:
    recipe = load_recipe(None, ["train.warn_after_zero_rewards=2"])
    row = {"reward_mean": 0.5, "reward_correct_mean": 0.0}
    warn_of_zero_rewards(recipe, [row], 1, row)
    assert "no completion of the last 2 steps" in caplog.text


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Two steps with every kind of reward, each normalised by itself."""
    folder = tmp_path_factory.mktemp("rewards")
    (folder / "own.py").write_text("def brief(problem, completion, answer): return len(completion)")
    rewards = (
        "verifier.rewards=[{kind: correct}, {kind: boxed, weight: 0.1}, {kind: length, target: 24, "
        "weight: 0.2, only_correct: true}, {kind: language, weight: 0.1}, "
        f"{{kind: custom, name: brief, function: '{folder}/own.py:brief', weight: -0.01}}]"
    )
    recipe = small_recipe("grpo", "train.steps=2", "eval.limit=2", "eval.every=1", rewards, FIRST)
    return train_small(folder / "run", recipe)[0]


NAMES = ["correct", "boxed", "length", "language", "brief"]


def test_a_run_has_each_reward_in_its_shards_and_its_metrics(run: Run) -> None:
    table = run.step(1).table("rewards")
    assert list(reward_weights(table.schema)) == NAMES
    metrics = run.metrics()
    for name in NAMES:
        mean = np.mean(table[f"reward_{name}"].to_numpy())
        assert metrics[f"reward_{name}_mean"][1].as_py() == pytest.approx(mean)
    [task] = {path.parent for path in run.path.glob("eval/*/step-*")}
    for step in ("step-00000", "step-00002"):
        assert not reward_weights(StepFolder(task / step).table("rewards").schema)
    groups = reward_groups(table)
    each = [(weight, own.rewards_R.tolist()) for weight, own in groups.parts.values()]
    expected = plain_gdpo(groups.of_row.tolist(), each)
    base = run.step(1).table("advantages")["base"].to_numpy()
    assert base == pytest.approx(expected, abs=1e-6)


def test_a_run_tells_of_each_reward(run: Run, castctl: Cli) -> None:
    step = run.step(1)
    [row] = step.table("rewards").slice(0, 1).to_pylist()
    sample = f"{row['prompt_id']}/{row['sample']}"
    said = castctl("inspect", str(step.path), "--sample", sample).stdout
    assert f"correct {row['reward_correct']:g}, boxed {row['reward_boxed']:g}, length" in said
    shown = castctl("inspect", str(step.path)).stdout
    assert "reward language mean" in shown
    part = castctl("inspect", str(step.part_path("rewards", 0))).stdout
    assert "reward_brief" in part and "beyond the contract" not in part
    castctl("report", str(run.path))
    page = (run.path / "report.html").read_text()
    assert "Reward in training, brief over 2 steps" in page
    castctl("inspect", str(run.path), "--verify")


def test_a_strangers_function_runs_only_where_it_is_trusted(run: Run, castctl: Cli) -> None:
    score = ("score", "--run", str(run.path), "--step", "1")
    refused = castctl(*score, code=2).stderr
    assert "own.py:brief (verifier.rewards); read it, then add --trust-verifier" in refused
    castctl(*score, "--trust-verifier")  # made alike
    # Who names a verifier of his own has not read the rewards of the file.
    mine = ("--set", f"verifier.function={run.path.parent}/own.py:brief")
    assert "read it" in castctl(*score, *mine, code=2).stderr
    without = ("--set", "verifier.rewards=[{kind: correct}]")
    assert "another verifier" in castctl(*score, *without, code=2).stderr


def test_judging_again_compares_correctness_and_writes_every_reward(run: Run, castctl: Cli) -> None:
    step, before = run.step(0), run.step(0).table("rewards")
    again = ("eval", "--rescore", str(step.path), "--trust-verifier")
    assert "0 of 16 completions are worth something else" in castctl(*again).stdout
    alone = ("--set", "verifier.rewards=[{kind: correct}]", "--overwrite")
    assert "other rewards or other weights" in castctl(*again, *alone, code=2).stderr
    castctl(*again, "--overwrite")
    assert (
        run.step(0)
        .table("rewards")
        .drop_columns(["seconds"])
        .equals(before.drop_columns(["seconds"]))
    )
