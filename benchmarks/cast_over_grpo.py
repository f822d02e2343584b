"""What CAST's step costs over GRPO's, on the same rollouts and rewards.

Timed are score, shape and update; the rollouts, which both share, are timed once.
"""

from __future__ import annotations

import shutil
import time
from collections import defaultdict
from typing import Any

import measure
import numpy as np
import pyarrow as pa
import steps

import castctl.stages.one_step
from castctl.models.policy import Policy
from castctl.progress import Silent
from castctl.runs.run import Run
from castctl.shards.part import write_part
from castctl.shards.stage import StepFolder
from castctl.stages.groups import group_numbers, reward_groups
from castctl.stages.policies import budget_of, make_scorers, policy_at
from castctl.stages.score.selection import Selection
from castctl.stages.score.signals import score_signals
from castctl.stages.shape import shape_step
from castctl.stages.train.batch import read_batch
from castctl.stages.train.state import new_state
from castctl.stages.train.update import update

PARTS = ("policy_pass", "teacher_pass", "score_tables", "shape", "update")


def main() -> None:
    parser = measure.options(__doc__, repeats=7)
    steps.add_options(parser)
    steps.add_mixed(parser)
    options = measure.parse(parser)
    if options.quick:
        steps.shrink(options)

    recipes = {
        method: steps.recipe_of(options, method, "optimizer.lr=1e-9") for method in ("cast", "grpo")
    }
    clock = measure.Clock()
    clock.wrap(castctl.stages.one_step, "rollout_step", "rollout")
    with steps.temporary_run(recipes["cast"]) as cast, steps.temporary_run(recipes["grpo"]) as grpo:
        policy = steps.make_step(cast).load(cast.recipe.model)
        clock.wrap(policy.model, "score", "policy_pass")
        rollout = clock.seconds["rollout"]
        if options.mixed is not None:
            draw_rewards(cast.step(0), options.mixed)
        kinds = mixed_share(cast.step(0))
        for stage in ("rollouts", "rewards"):
            shutil.copytree(cast.step(0).path / stage, grpo.step(0).path / stage)
        works = {run.recipe.method.name: Stepper(run, policy, clock) for run in (cast, grpo)}
        seconds = measure.interleaved(works, options.repeats)
    parts = {
        name: {part: measure.median(work.rounds[part][1:]) for part in PARTS}
        for name, work in works.items()
    }
    totals = {name: measure.median(spent) for name, spent in seconds.items()}
    extra = {part: parts["cast"][part] - parts["grpo"][part] for part in PARTS}
    measure.report(
        "cast_over_grpo",
        options.repeats,
        **steps.sizes(recipes["cast"]) | {"method": "cast over grpo"},
        mixed_groups=kinds,
        trained_tokens={name: work.trained_tokens for name, work in works.items()},
        cast_seconds=totals["cast"],
        grpo_seconds=totals["grpo"],
        **measure.ratio(seconds["cast"], seconds["grpo"]),
        ratio_with_rollout=(rollout + totals["cast"]) / (rollout + totals["grpo"]),
        rollout_seconds=rollout,
        seconds=parts,
        extra_over_grpo={part: spent / totals["grpo"] for part, spent in extra.items()},
    )


class Stepper:
    """Scores, shapes and updates a step anew each time it is called.

    The policy hardly moves, so that it stays who sampled the step, whatever is scored of it.
    """

    def __init__(self, run: Run, policy: Policy, clock: measure.Clock) -> None:
        state = new_state(run, policy, 0)
        self.run, self.clock, self.policy = run, clock, policy
        self.optimizer, self.name = state.optimizer, policy_at(run, 0).fingerprint
        self.teacher = state.teacher
        self.rounds: dict[str, list[float]] = defaultdict(list)
        self.trained_tokens = 0
        if self.teacher.is_copy:
            clock.wrap(self.teacher.model, "score", "teacher_pass")

    def __call__(self) -> float:
        folder, recipe = self.run.step(0), self.run.recipe
        for stage in ("signals", "advantages"):
            shutil.rmtree(folder.path / stage, ignore_errors=True)
        self.clock.reset()
        began = time.perf_counter()
        with self.clock.watch("score_tables"):
            score_signals(
                folder, recipe.signals,
                make_scorers(recipe, self.name, self.policy, self.teacher),
                temperature=recipe.sampling.temperature, budget=budget_of(recipe),
                selection=Selection.of(recipe), progress=Silent(),
            )  # fmt: skip
        with self.clock.watch("shape"):
            shape_step(folder, recipe.method, progress=Silent())
        with self.clock.watch("update"):
            batch = read_batch(folder, recipe.method, self.name)
            stats = update(self.policy, self.policy.model, self.optimizer, batch, recipe, 0)
        spent = time.perf_counter() - began
        self.trained_tokens = stats.tokens
        for part in PARTS:
            self.rounds[part].append(self.clock.seconds[part])
        return spent


def draw_rewards(folder: StepFolder, mixed: float) -> None:
    """Replace the rewards: half right in mixed groups, all right or all wrong in the others."""
    rng = np.random.default_rng(0)
    for number in folder.parts("rewards"):
        table = folder.read("rewards", number).table
        group_R = group_numbers(table["prompt_id"])
        count = int(group_R.max()) + 1
        is_mixed = np.arange(count) < round(mixed * count)
        right_G = rng.random(count) < 0.5
        sample_R = table["sample"].to_numpy()
        right = np.where(is_mixed[group_R], sample_R % 2 == 0, right_G[group_R])
        columns: dict[str, Any] = {name: table[name] for name in table.column_names}
        columns["reward"] = pa.array(right.astype(np.float32))
        columns["verdict"] = pa.array(np.where(right, "correct", "wrong"))
        write_part(folder.part_path("rewards", number), "rewards", pa.table(columns), {"step": 0})


def mixed_share(folder: StepFolder) -> float:
    """Share of the groups in which GRPO has a gradient."""
    return float((reward_groups(folder.table("rewards")).kind_G == "mixed").mean())


if __name__ == "__main__":
    main()
