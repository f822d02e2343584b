"""A run made longer is the run that would have been asked for so long at first."""

from __future__ import annotations

from math import cos, pi
from pathlib import Path

import pytest

from castctl.errors import UserError
from castctl.progress import Silent
from castctl.recipe.reader import load_recipe
from castctl.runs.extend import extend
from castctl.runs.run import Run, open_run
from castctl.shards.part import write_part
from castctl.stages.train.loop import train
from conftest import Cli
from runs import (
    assert_same_step,
    assert_same_weights,
    interrupted,
    metrics_without_time,
    small_recipe,
    train_small,
)


def rows(run: Run) -> list[dict[str, str]]:
    """The metrics but for the clock and the evaluations, of which a longer run has one more."""
    told = metrics_without_time(run.metrics().to_pylist())
    return [{k: v for k, v in row.items() if not k.startswith("eval_")} for row in told]


@pytest.mark.slow
@pytest.mark.parametrize("teacher", ["ema", "snapshot"])
def test_two_steps_and_two_more_are_four(teacher: str, tmp_path: Path) -> None:
    """From a finished run with `ema`, from one stopped within its second step with `snapshot`."""
    settings = (f"method.teacher.kind={teacher}", "sampling.max_tokens=24")
    whole, _ = train_small(tmp_path / "whole", small_recipe("cast", *settings, "train.steps=4"))
    short = small_recipe("cast", *settings, "train.steps=2")
    if teacher == "ema":
        run, _ = train_small(tmp_path / "run", short)
    else:
        run = interrupted(tmp_path / "run", short)
        assert run.checkpoints() == [1]
        part_done(run, whole)
    train(extend(run, 4), Silent(), lambda row: None)
    for step in range(4):
        assert_same_step(whole.step(step), run.step(step))
    assert_same_weights(whole.checkpoint(4), run.checkpoint(4))
    longer = open_run(str(run.path))
    assert longer.recipe == whole.recipe and rows(longer) == rows(whole)
    manifest = longer.manifest
    assert manifest["state"] == "finished"
    assert [(each["from"], each["to"]) for each in manifest["extended"]] == [(2, 4)]


def part_done(run: Run, whole: Run) -> None:
    """Give step 1 the first part of its rollouts, as made under the run's own total."""
    part = whole.step(1).read("rollouts", 0)
    made = {k: v for k, v in (part.metadata or {}).items() if k not in ("schema", "stage")}
    made |= {"total_steps": 2, "model": f"{run.name}@step-00001"}
    write_part(run.step(1).part_path("rollouts", 0), "rollouts", part.table, made)


@pytest.mark.slow
def test_where_a_schedule_reads_the_total_what_followed_it_is_made_again(
    castctl: Cli, tmp_path: Path
) -> None:
    settings = ("optimizer.schedule=cosine", "sampling.max_tokens=24", "train.checkpoint_every=2")
    run = interrupted(tmp_path / "run", small_recipe("grpo", *settings, "train.steps=5"), after=3)
    assert run.checkpoints() == [2, 4]
    (tmp_path / "kept").mkdir()
    run.checkpoint(4).rename(tmp_path / "kept" / "step-00004")  # as if killed before it was written
    done = castctl("train", "--resume", "--run", "run", "--steps", "6")
    assert "the course differs from one planned for 6" in done.stderr
    assert "optimizer.schedule=cosine reads the number of steps: the steps done followed 5" in (
        done.stderr
    )
    rates = [row["lr"] for row in open_run(str(run.path)).metrics().to_pylist()]
    planned = [0.003 * 0.5 * (1 + cos(pi * step / 6)) for step in range(6)]
    assert rates[2:] == pytest.approx(planned[2:]) and rates[1] != pytest.approx(planned[1])


def test_what_reads_the_total_is_told() -> None:
    assert small_recipe("cast").reads_total == []
    assert load_recipe("sdpg-qwen3-4b:scheduled").reads_total == [
        "method.distillation.decay_steps=100"
    ]
    falls = ("optimizer.schedule=linear", "optimizer.end_lr=1e-7", "optimizer.warmup_share=0.05")
    assert small_recipe("cast", *falls).reads_total == [falls[0], falls[2]]
    assert small_recipe("cast", "optimizer.warmup_steps=5").reads_total == []


def test_a_warm_up_as_long_as_the_run_is_warned_of() -> None:
    short = ("train.steps=3", "optimizer.warmup_share=0.9")
    for settings in (short, ("train.steps=3", "optimizer.warmup_steps=3")):
        assert (
            "optimizer.lr is never reached" in small_recipe("cast", *settings).check_training()[0]
        )
    assert not small_recipe("cast", "train.steps=4", "optimizer.warmup_share=0.5").check_training()


@pytest.mark.slow
def test_fewer_steps_than_are_done_are_refused(castctl: Cli, tmp_path: Path) -> None:
    run, _ = train_small(tmp_path / "run", small_recipe("grpo", "train.steps=2"))
    before = (run.path / "recipe.yaml").read_text()
    for steps in ("1", "0", "lots"):
        castctl("train", "--resume", "--run", "run", "--steps", steps, code=2)
    with pytest.raises(UserError, match="has done 2 steps; ask for more with --steps"):
        extend(run, 1)
    assert extend(run, 2) == run and "extended" not in run.manifest
    assert (run.path / "recipe.yaml").read_text() == before
