"""What a run promises: stages equal the loop, shaping ignores parts, resuming changes nothing."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from castctl.progress import Silent
from castctl.runs.run import Run, adopt_run, create_run
from castctl.shards.part import write_part
from castctl.shards.stage import Shard, StepFolder
from castctl.stages.one_step import rollout_stage, score_stage, train_stage
from castctl.stages.policies import policy_at
from castctl.stages.shape import shape_step
from castctl.stages.train.loop import _Loop, train
from castctl.stages.train.metrics import Metrics
from castctl.verify.judge import judging_pool
from runs import (
    assert_same_step,
    assert_same_weights,
    interrupted,
    metrics_without_time,
    small_recipe,
    steps_by_hand,
    train_small,
)

TEACHERS = ("snapshot", "ema", "initial", "current")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """One uninterrupted run of three steps."""
    run, _ = train_small(tmp_path_factory.mktemp("loop") / "run")
    return run


@pytest.mark.slow
def test_stages_run_one_by_one_give_the_tables_of_the_loop(finished: Run, tmp_path: Path) -> None:
    alone = adopt_run(tmp_path / "run", finished.recipe)
    for step in (1, 2):
        shutil.copytree(finished.checkpoint(step), alone.checkpoint(step))
    steps_by_hand(alone, (0, 1, 2), finished)
    train_stage(alone, 2, policy_at(alone, 2), overwrite=False)
    assert_same_weights(finished.checkpoint(3), alone.checkpoint(3))


@pytest.mark.slow
def test_a_run_repeats_itself_bit_for_bit(finished: Run, tmp_path: Path) -> None:
    again, _ = train_small(tmp_path / "again")
    for step in range(3):
        assert_same_step(finished.step(step), again.step(step))
    assert_same_weights(finished.checkpoint(3), again.checkpoint(3))


def test_shape_ignores_part_size_order_and_process(finished: Run, tmp_path: Path) -> None:
    step = finished.step(1)
    expected = {
        (row["prompt_id"], row["sample"]): row for row in step.table("advantages").to_pylist()
    }
    tables = {stage: step.table(stage) for stage in ("rollouts", "rewards", "signals")}
    prompts = list(dict.fromkeys(tables["rollouts"]["prompt_id"].to_pylist()))
    owner = np.array([prompts.index(p) for p in tables["rollouts"]["prompt_id"].to_pylist()])
    rng = np.random.default_rng(0)
    for trial, size in enumerate((1, 3, 4)):
        folder = StepFolder(tmp_path / str(trial))
        order = rng.permutation(len(prompts))
        for part, start in enumerate(range(0, len(prompts), size)):
            rows = np.concatenate([np.flatnonzero(owner == p) for p in order[start : start + size]])
            for stage, table in tables.items():
                write_part(folder.part_path(stage, part), stage, table.take(pa.array(rows)), {})
        for index in (1, 0):
            shape_step(folder, finished.recipe.method, progress=Silent(), shard=Shard(index, 2))
        shaped = folder.table("advantages").to_pylist()
        assert len(shaped) == len(expected)
        assert all(row == expected[row["prompt_id"], row["sample"]] for row in shaped)


@pytest.mark.slow
def test_the_loop_goes_on_from_stages_run_one_by_one(tmp_path: Path) -> None:
    """Also where the next step was rolled out already, from a checkpoint of `train --from`."""
    run = create_run(small_recipe("grpo", "train.steps=2"), str(tmp_path / "run"), "test")
    rollout_stage(run, 0, policy_at(run, 0), progress=Silent())
    score_stage(run, 0, policy_at(run, 0), None, progress=Silent())
    shape_step(run.step(0), run.recipe.method, progress=Silent())
    train_stage(run, 0, policy_at(run, 0), overwrite=False)
    rollout_stage(run, 1, policy_at(run, 1), progress=Silent())
    before = run.step(1).table("rollouts")
    with judging_pool(run.recipe.verifier) as pool:
        row = _Loop(run, 1, pool, Silent()).step(1)
    assert row["step"] == 1 and run.step(1).table("rollouts").equals(before)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "teacher"),
    [
        *(("cast", teacher) for teacher in TEACHERS),
        ("cast-public", "snapshot"),
        ("cast-public", "initial"),
        ("cast-port", "snapshot"),
        ("cast-port", "ema"),
    ],
)
def test_resuming_with_every_teacher_equals_not_stopping(
    method: str, teacher: str, tmp_path: Path
) -> None:
    """With a schedule of rates and a shaping that fades, which the step decides too."""
    fading = [
        "optimizer.schedule=linear", "optimizer.end_lr=1e-3", "optimizer.warmup_share=0.3",
        "method.shaping.decay_steps=4", "method.zero_variance.decay_steps=4",
    ]  # fmt: skip
    few = "sampling.max_tokens=24"  # CAST learns from groups that are all wrong too
    recipe = small_recipe(
        method, few, f"method.teacher.kind={teacher}", *(fading if method != "cast" else [])
    )
    whole, _ = train_small(tmp_path / "whole", recipe)
    stopped = interrupted(tmp_path / "stopped", recipe, after=1)
    assert stopped.manifest["state"] == "interrupted"
    assert stopped.checkpoints() == [1, 2]
    train(stopped, Silent(), lambda row: None)
    assert stopped.manifest["state"] == "finished"
    assert_same_step(whole.step(2), stopped.step(2))
    assert_same_weights(whole.checkpoint(3), stopped.checkpoint(3))
    rows = [Metrics(run.path / "metrics.parquet").rows for run in (whole, stopped)]
    assert metrics_without_time(rows[0]) == metrics_without_time(rows[1])


@pytest.mark.slow
def test_training_takes_each_prompt_once_an_epoch_across_a_resume(tmp_path: Path) -> None:
    recipe = small_recipe("grpo", "data.limit=6", "train.checkpoint_every=2")
    run = interrupted(tmp_path / "run", recipe, after=1)
    train(run, Silent(), lambda row: None)
    taken = [
        prompt
        for step in range(3)
        for prompt in dict.fromkeys(run.step(step).table("rollouts")["prompt_id"].to_pylist())
    ]
    assert len(set(taken[:6])) == 6 and sorted(taken[:6]) == sorted(taken[6:])
