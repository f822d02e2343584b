"""Where the time of one update goes: reading the step, the passes, the optimizer."""

from __future__ import annotations

from collections import defaultdict

import measure
import steps

from castctl.stages.train.batch import read_batch
from castctl.stages.train.optimizer import Optimizer
from castctl.stages.train.state import new_state
from castctl.stages.train.update import UpdateStats, update

PARTS = ("read", "passes", "optimizer")


def main() -> None:
    parser = measure.options(__doc__, repeats=7)
    parser.add_argument("--method", default="cast")
    steps.add_options(parser)
    options = measure.parse(parser)
    if options.quick:
        steps.shrink(options)

    recipe = steps.recipe_of(options, options.method)
    clock = measure.Clock()
    for name in ("zero_grad", "clip", "step"):
        clock.wrap(Optimizer, name, "optimizer")
    with steps.temporary_run(recipe) as run:
        source = steps.make_step(run)
        state = new_state(run, source.load(recipe.model), 0)

        def once() -> UpdateStats:
            with clock.watch("read"):
                batch = read_batch(run.step(0), recipe.method, source.fingerprint)
            with clock.watch("passes"):
                return update(state.policy, state.policy.model, state.optimizer, batch, recipe, 0)

        once()
        rounds: dict[str, list[float]] = defaultdict(list)
        for _ in range(options.repeats):
            clock.reset()
            stats = once()
            for part in PARTS:
                rounds[part].append(clock.seconds[part])
    seconds = {part: measure.median(rounds[part]) for part in PARTS}
    total = sum(seconds.values())
    measure.report(
        "train_step",
        options.repeats,
        **steps.sizes(recipe),
        trained_tokens=stats.tokens // recipe.train.epochs,
        seconds=seconds,
        share={part: seconds[part] / total for part in PARTS},
        tokens_per_second=stats.tokens / total,
    )


if __name__ == "__main__":
    main()
