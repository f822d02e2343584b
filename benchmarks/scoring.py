"""A step whose scoring reads everything over one whose scoring reads what the step needs, on the
same rollouts.

Timed are score, shape and update; the rollouts, which both share, are timed once.
"""

from __future__ import annotations

import shutil

import measure
import steps
from cast_over_grpo import Stepper, draw_rewards, mixed_share

import castctl.stages.one_step


def main() -> None:
    parser = measure.options(__doc__, repeats=7)
    steps.add_options(parser)
    steps.add_mixed(parser)
    parser.add_argument("--method", default="grpo")
    options = measure.parse(parser)
    if options.quick:
        steps.shrink(options)

    everything = ("train.score_policy=always", "train.score_rows=all")
    recipes = {
        name: steps.recipe_of(options, options.method, "optimizer.lr=1e-9", *settings)
        for name, settings in {"all": everything, "auto": ()}.items()
    }
    clock = measure.Clock()
    clock.wrap(castctl.stages.one_step, "rollout_step", "rollout")
    whole, auto = (steps.temporary_run(recipe) for recipe in recipes.values())
    with whole as scored, auto as unscored:
        policy = steps.make_step(scored).load(scored.recipe.model)
        rollout = clock.seconds["rollout"]
        if options.mixed is not None:
            draw_rewards(scored.step(0), options.mixed)
        for stage in ("rollouts", "rewards"):
            shutil.copytree(scored.step(0).path / stage, unscored.step(0).path / stage)
        kinds = mixed_share(scored.step(0))
        works = {
            name: Stepper(run, policy, clock)
            for name, run in {"all": scored, "auto": unscored}.items()
        }
        seconds = measure.interleaved(works, options.repeats)
    totals = {name: measure.median(spent) for name, spent in seconds.items()}
    measure.report(
        "scoring",
        options.repeats,
        **steps.sizes(recipes["auto"]),
        mixed_groups=kinds,
        seconds=totals,
        rollout_seconds=rollout,
        **measure.ratio(seconds["all"], seconds["auto"]),
        ratio_with_rollout=(rollout + totals["all"]) / (rollout + totals["auto"]),
    )


if __name__ == "__main__":
    main()
