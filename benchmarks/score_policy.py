"""A GRPO step with a scoring pass of the policy over one without, on the same rollouts.

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
    parser.add_argument(
        "--mixed", type=float, metavar="SHARE",
        help="draw the rewards, with this share of mixed groups, where the model solves nothing",
    )  # fmt: skip
    options = measure.parse(parser)
    if options.quick:
        steps.shrink(options)
        options.mixed = 0.5

    recipes = {
        name: steps.recipe_of(options, "grpo", "optimizer.lr=1e-9", f"train.score_policy={name}")
        for name in ("always", "auto")
    }
    clock = measure.Clock()
    clock.wrap(castctl.stages.one_step, "rollout_step", "rollout")
    always, auto = (steps.temporary_run(recipe) for recipe in recipes.values())
    with always as scored, auto as unscored:
        policy = steps.make_step(scored).load(scored.recipe.model)
        rollout = clock.seconds["rollout"]
        if options.mixed is not None:
            draw_rewards(scored.step(0), options.mixed)
        for stage in ("rollouts", "rewards"):
            shutil.copytree(scored.step(0).path / stage, unscored.step(0).path / stage)
        kinds = mixed_share(scored.step(0))
        works = {
            name: Stepper(run, policy, clock)
            for name, run in {"always": scored, "auto": unscored}.items()
        }
        seconds = measure.interleaved(works, options.repeats)
    totals = {name: measure.median(spent) for name, spent in seconds.items()}
    measure.report(
        "score_policy",
        options.repeats,
        **steps.sizes(recipes["auto"]),
        mixed_groups=kinds,
        seconds=totals,
        rollout_seconds=rollout,
        **measure.ratio(seconds["always"], seconds["auto"]),
        ratio_with_rollout=(rollout + totals["always"]) / (rollout + totals["auto"]),
    )


if __name__ == "__main__":
    main()
