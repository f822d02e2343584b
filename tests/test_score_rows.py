"""Completions that teacher and influence do not read: what stays the same, what is refused."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from safetensors.numpy import load_file

from castctl import diagnose
from castctl.errors import UserError
from castctl.methods import MethodSettings
from castctl.methods.advantages import based_R, compute_advantages, selective_signals
from castctl.methods.groups import group_rewards
from castctl.methods.presets import PRESETS
from castctl.methods.signals import TokenSignals
from castctl.progress import Silent
from castctl.runs.run import Run
from castctl.shards.part import write_part
from castctl.stages.one_step import score_stage
from castctl.stages.policies import policy_at
from castctl.stages.shape import shape_step
from castctl.stages.signals import lacking_R
from runs import part_hashes, small_recipe, train_small

ALL = "train.score_rows=all"
FEW = ("train.steps=2", "eval.k=1", "eval.limit=2", "seed=3")
SIGNALS = {
    "rlsd": "teacher_logprobs",
    "rlrt": "teacher_logprobs",  # told peers, which some completions do not have
    "oar-g": "importance_grad",
    "oar-p": "importance_perturb",
}


@pytest.fixture(scope="module", params=SIGNALS)
def both(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Run]:
    """A run that scores what is read, and the same that scores everything."""
    place, name = tmp_path_factory.mktemp("rows"), request.param
    recipes = {"auto": small_recipe(name, *FEW), "all": small_recipe(name, *FEW, ALL)}
    return {each: train_small(place / each, recipe)[0] for each, recipe in recipes.items()}


def test_which_methods_read_some_completions_alone() -> None:
    selective = {name for name in PRESETS if selective_signals(MethodSettings(name=name))}
    assert selective == {"rlsd", "rlrt", "oar-p", "oar-g"}
    assert small_recipe("rlsd").selective == {"teacher_logprobs"}
    assert not small_recipe("rlsd", ALL).selective
    for setting in ("zero_variance.kind=signed", "baseline.kind=rcc", "baseline.kind=batch_std"):
        assert not small_recipe("rlsd", f"method.{setting}").selective


@pytest.mark.parametrize("name", SIGNALS)
def test_shaping_reads_nothing_without_a_base_advantage(name: str) -> None:
    """Every advantage and flip is the same with NaN in the place of what is left out."""
    rng = np.random.default_rng(5)
    method = MethodSettings(name=name, zero_variance={"kind": "zero"})
    lengths_R = rng.integers(1, 9, 24)
    offsets = np.concatenate([[0], np.cumsum(lengths_R)])
    rewards_R = rng.integers(0, 2, 24) * np.repeat([1, 1, 0, 1, 1, 1], 4).astype(float)
    groups = group_rewards(rewards_R, np.repeat(np.arange(6), 4), rewards_R == 1)
    read_R = based_R(method, groups, offsets)
    assert 0 < read_R.sum() < 24
    tokens_N = int(offsets[-1])
    told = {
        each: rng.normal(size=tokens_N) for each in ("gap_N", "perturb_N", "grad_N", "logprobs_N")
    }
    whole = compute_advantages(method, groups, TokenSignals(offsets, **told))
    read_N = np.repeat(read_R, lengths_R)
    told |= {
        each: np.where(read_N, told[each], np.nan) for each in ("gap_N", "perturb_N", "grad_N")
    }
    some = compute_advantages(method, groups, TokenSignals(offsets, **told))
    np.testing.assert_array_equal(some.advantages_N, whole.advantages_N)
    assert some.advantages_N[read_N].all() and not some.advantages_N[~read_N].any()


def test_a_run_learns_the_same(both: dict[str, Run]) -> None:
    name = SIGNALS[both["auto"].recipe.method.name]
    some, whole = (run.step(0).table("signals")[name] for run in both.values())
    base = both["all"].step(0).table("advantages")["base"].to_numpy()
    assert 0 < (base == 0).sum() < len(base)
    silent = whole.is_null().to_numpy()
    assert silent.any() == both["all"].recipe.method.told_by_peers
    assert np.array_equal(some.is_null().to_numpy(), silent | (base == 0))
    advantages = [run.step(0).table("advantages") for run in both.values()]
    for column in ("base", "kept", "group_kind", "flipped"):
        assert advantages[0][column].equals(advantages[1][column])
    shaped = [np.concatenate(table["advantages"].to_pylist()) for table in advantages]
    np.testing.assert_allclose(*shaped, rtol=1e-4, atol=1e-5)
    moved, *weights = (
        load_file(run.checkpoint(step) / "model.safetensors")
        for run, step in ((both["all"], 1), (both["auto"], 2), (both["all"], 2))
    )
    for name, tensor in weights[0].items():
        np.testing.assert_allclose(tensor, weights[1][name], rtol=0, atol=3e-5)
    assert max(np.abs(weights[0][name] - moved[name]).max() for name in moved) > 1e-3


def test_metrics_tell_of_what_was_read(both: dict[str, Run]) -> None:
    some, whole = (run.metrics().to_pylist()[0] for run in both.values())
    name = both["auto"].recipe.method.name
    if name == "rlsd":
        signals = both["all"].step(0).table("signals")
        base = both["all"].step(0).table("advantages")["base"].to_numpy()
        rows = zip(*(signals[each].to_pylist() for each in ("teacher_logprobs", "policy_logprobs")),
                   base, strict=True)  # fmt: skip
        gaps = [np.subtract(teacher, policy) for teacher, policy, each in rows if each]
        assert some["gap_mean"] == pytest.approx(np.concatenate(gaps).mean(), abs=1e-5)
        assert some["gap_mean"] != pytest.approx(whole["gap_mean"], abs=1e-4)
    elif name.startswith("oar"):
        assert some["uniform_share"] == whole["uniform_share"] < 1
        share = f"{SIGNALS[name]}_scored_share"
        assert 0 < some[share] <= 1


def test_a_diagnosis_reads_the_rest(both: dict[str, Run]) -> None:
    if both["auto"].recipe.method.name != "rlsd":
        pytest.skip("no diagnosis reads influence, or a teacher told peers")
    some, whole = (diagnose("opsd-gaps", run, steps=[0], quiet=True) for run in both.values())
    assert some.steps[0]["computed"] == ["signals"] and whole.steps[0]["computed"] == []
    without_step = diagnose("opsd-gaps", both["auto"], quiet=True)  # the parts that need no more
    assert [each["parts"] for each in without_step.steps] == [2] * len(without_step.steps)
    assert some.numbers["all"]["completions"] == whole.numbers["all"]["completions"] == 16
    means = (found.numbers["all"]["cells"]["positive_correct"]["mean"] for found in (some, whole))
    assert next(means)["mean"] == pytest.approx(next(means)["mean"], abs=1e-5)


def test_stages_score_what_the_loop_scores(both: dict[str, Run]) -> None:
    run = both["auto"]
    before, parts = run.step(0).table("signals"), part_hashes(run.path)
    score_stage(run, 0, policy_at(run, 0), None, progress=Silent())
    assert part_hashes(run.path) == parts
    score_stage(run, 0, policy_at(run, 0), None, progress=Silent(), overwrite=True)
    name = SIGNALS[run.recipe.method.name]
    after = run.step(0).table("signals")
    assert after[name].is_null().equals(before[name].is_null())
    shape_step(run.step(0), run.recipe.method, progress=Silent())
    if run.recipe.method.told_by_peers:
        return  # none of those left out has a peer, so nothing is missing
    with pytest.raises(UserError, match=f"{name} is there without .* of the completions"):
        score_stage(run, 0, policy_at(run, 0), [name], progress=Silent())


def test_another_method_is_not_shaped_by_half_of_the_signals(both: dict[str, Run]) -> None:
    run = both["auto"]
    name = run.recipe.method.name
    if run.recipe.method.told_by_peers:
        pytest.skip("none of those left out has a peer, so nothing is missing")
    reads_all = small_recipe(name, "method.zero_variance.kind=signed").method
    with pytest.raises(
        UserError, match=r"completions are missing that .* reads; run `castctl score"
    ):
        shape_step(run.step(0), reads_all, progress=Silent(), overwrite=True)
    shape_step(both["all"].step(0), reads_all, progress=Silent(), overwrite=True)
    shape_step(both["all"].step(0), run.recipe.method, progress=Silent(), overwrite=True)


def test_verdicts_that_change_are_noticed(both: dict[str, Run], tmp_path: Path) -> None:
    """A group that was all right and no longer is has something to shape."""
    run = both["auto"]
    if run.recipe.method.told_by_peers:
        pytest.skip("no completion had a peer where every one was wrong")
    shutil.copytree(run.path, tmp_path / "run")
    folder = Run(tmp_path / "run", run.recipe).step(0)
    number, row, kinds = next(
        (number, kinds.index(kind), kinds)
        for number in folder.parts("rewards")
        for kinds in [folder.read("advantages", number).table["group_kind"].to_pylist()]
        for kind in ("all_correct", "all_wrong")
        if kind in kinds
    )
    part = folder.read("rewards", number)
    right = kinds[row] == "all_wrong"
    columns = {"reward": float(right), "verdict": "correct" if right else "wrong"}
    table = part.table
    for name, value in columns.items():
        values = table[name].to_pylist()
        values[row] = value
        place = table.column_names.index(name)
        table = table.set_column(place, name, pa.array(values, table.schema.field(name).type))
    write_part(folder.part_path("rewards", number), "rewards", table, part.metadata)
    with pytest.raises(UserError, match="completions are missing that"):
        shape_step(folder, run.recipe.method, progress=Silent(), overwrite=True)


def test_a_part_without_a_base_advantage_has_no_pass(both: dict[str, Run], tmp_path: Path) -> None:
    run = both["auto"]
    shutil.copytree(run.path, tmp_path / "run")
    copied = Run(tmp_path / "run", run.recipe)
    folder = copied.step(0)
    for number in folder.parts("rewards"):
        part = folder.read("rewards", number)
        table = part.table
        for name, value in {"reward": 0.0, "verdict": "wrong"}.items():
            place = table.column_names.index(name)
            values = pa.array([value] * len(table), table.schema.field(name).type)
            table = table.set_column(place, name, values)
        write_part(folder.part_path("rewards", number), "rewards", table, part.metadata)
        folder.part_path("signals", number).unlink()
        folder.part_path("advantages", number).unlink()
    score_stage(copied, 0, policy_at(copied, 0), None, progress=Silent())
    name = SIGNALS[run.recipe.method.name]
    assert folder.table("signals")[name].null_count == folder.table("signals").num_rows
    shape_step(folder, run.recipe.method, progress=Silent())
    assert not np.concatenate(folder.table("advantages")["advantages"].to_pylist()).any()


def test_what_has_no_peer_is_not_missed() -> None:
    """Of rows without a log-prob, those that the teacher had a prompt for and that are read."""
    asked, told = pa.list_(pa.int32()), pa.list_(pa.float32())
    signals = pa.table({
        "teacher_prompt_token_ids": pa.array([[1], [1], None, [1]], asked),
        "teacher_logprobs": pa.array([[-0.5], None, None, None], told),
    })  # fmt: skip
    read_R = np.array([True, True, True, False])
    found = {
        peers: lacking_R(signals, "teacher_logprobs", read_R, peers) for peers in (True, False)
    }
    assert found[True].tolist() == [False, True, False, False]
    assert found[False].tolist() == [False, True, True, False]
