"""Small runs on the embedded default, and comparisons of what they left on disk."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from safetensors.numpy import load_file

from castctl.progress import Silent
from castctl.recipe.files import default_recipe_path
from castctl.recipe.reader import load_recipe
from castctl.recipe.recipe import Recipe
from castctl.runs.run import Run, create_run, open_run
from castctl.shards.part import content_hash
from castctl.shards.stage import StepFolder
from castctl.stages.one_step import rollout_stage, score_stage
from castctl.stages.policies import policy_at
from castctl.stages.shape import shape_step
from castctl.stages.train.loop import Trained, train

SMALL = (
    "data.limit=128",
    "train.steps=3",
    "train.prompts_per_step=4",
    "train.part_size=2",
    "train.checkpoint_every=1",
    "train.keep=all",
    "sampling.n=4",
    "sampling.max_tokens=48",
    "eval.k=2",
    "eval.limit=4",
    "eval.every=0",
    "method.teacher.every=2",
    "optimizer.lr=0.003",
    "verifier.workers=1",
)
"""Three quick steps whose snapshot is renewed at step 2; rendering all 4,096 prompts would be half
of them, a second worker another quarter."""

STAGES = ("rollouts", "rewards", "signals", "advantages")


def small_recipe(method: str = "cast", *overrides: str) -> Recipe:
    """The embedded default made small."""
    fitting = [line for line in SMALL if method.startswith("cast") or "teacher" not in line]
    fitting += ["method.teacher.path=embedded"] if method == "opd" else []
    return load_recipe(
        default_recipe_path(), method={"name": method}, overrides=[*fitting, *overrides]
    )


def train_small(path: Path, recipe: Recipe | None = None) -> tuple[Run, Trained]:
    """A finished small run at `path`."""
    run = create_run(recipe or small_recipe(), str(path), "test")
    return run, train(run, Silent(), lambda row: None)


def interrupted(path: Path, recipe: Recipe, after: int = 0) -> Run:
    """A run whose training was stopped when step `after` was told."""
    run = create_run(recipe, str(path), "test")

    def stop(row: dict[str, Any]) -> None:
        if row["step"] == after:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(run, Silent(), stop)
    return run


def stage_tables(folder: StepFolder, stages: Iterable[str]) -> dict[str, pa.Table]:
    """These stages of a step, without the columns and metadata that may differ between reruns."""
    tables = {}
    for stage in stages:
        table = folder.table(stage)
        tables[stage] = table.drop_columns([c for c in table.column_names if c == "seconds"])
    return tables


def assert_same_step(first: StepFolder, second: StepFolder, stages: Iterable[str] = STAGES) -> None:
    """Tables of two steps are equal to the last bit."""
    for (stage, one), two in zip(
        stage_tables(first, stages).items(), stage_tables(second, stages).values(), strict=True
    ):
        assert first.parts(stage) == second.parts(stage)
        # Unlike equality, the hash takes NaN for what it is: a token that was not scored.
        assert content_hash(one) == content_hash(two), (
            f"{stage} of {first.path} and {second.path} differ"
        )


def steps_by_hand(run: Run, steps: Iterable[int], finished: Run) -> None:
    """Roll out, score and shape steps of a run one stage after the other, as a loop had them."""
    for step in steps:
        source = policy_at(run, step)
        rollout_stage(run, step, source, progress=Silent())
        score_stage(run, step, source, None, progress=Silent())
        shape_step(run.step(step), run.recipe.method, progress=Silent())
        assert_same_step(finished.step(step), run.step(step))


def assert_goes_on(older: Run, recipe: Recipe, whole: Path) -> tuple[Run, Run]:
    """An older run's training goes on, keeps what was shaped, and ends as one of today does that is
    made at `whole`; both runs."""
    made = older.step(0).part_path("advantages", 0).stat().st_mtime_ns
    opened = open_run(str(older.path))
    assert opened.recipe == recipe
    train(opened, Silent(), lambda row: None)
    assert older.step(0).part_path("advantages", 0).stat().st_mtime_ns == made, "kept as it was"
    today, _ = train_small(whole, recipe)
    assert_same_step(older.step(1), today.step(1))
    assert_same_weights(older.checkpoint(2), today.checkpoint(2))
    return opened, today


def part_hashes(run: Path) -> dict[str, str]:
    """The content of every part of a run's steps, by its path there."""
    return {
        str(path.relative_to(run)): content_hash(
            StepFolder(path.parent.parent).read(path.parent.name, int(path.stem[-5:])).table
        )
        for path in sorted(run.glob("step-*/*/part-*.parquet"))
    }


def assert_same_weights(first: Path, second: Path) -> None:
    """All tensors below two checkpoints are equal to the last bit: policy, teacher, optimizer."""
    files = sorted(path.relative_to(first) for path in first.rglob("*.safetensors"))
    assert files == sorted(path.relative_to(second) for path in second.rglob("*.safetensors"))
    assert files
    for file in files:
        one, two = load_file(first / file), load_file(second / file)
        assert one.keys() == two.keys()
        for name in one:
            assert np.array_equal(one[name], two[name]), f"{file}: {name}"


def metrics_without_time(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Metrics rows without what the clock and the machine put into them."""
    return [
        {
            k: repr(v)
            for k, v in row.items()
            if not k.startswith("seconds")
            and k not in ("peak_memory_gb", "sampled_tokens_per_second")
        }
        for row in rows
    ]
