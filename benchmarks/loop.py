"""How much of the training loop's time is not model work, and what it is.

Model work is decoding, the scoring passes, and the update. Making the models and the
evaluations are left out of the loop's time. Checkpoints count as often as
`train.checkpoint_every` asks for them, without the one more at the end of so short a run.
"""

from __future__ import annotations

from collections.abc import Mapping

import measure
import steps

import castctl.shards.stage
import castctl.stages.measures
import castctl.stages.score.rewards
import castctl.stages.score.signals
import castctl.stages.train.loop as loop
from castctl.engines.transformers_engine import TransformersEngine
from castctl.models.language_model import LanguageModel
from castctl.models.teacher import TeacherCopy
from castctl.progress import Silent
from castctl.recipe.recipe import TrainSettings

MODEL = ("generate", "score", "update")
OUTSIDE = ("start", "evaluation")
REST = {
    "verify": "the wait for the checks",
    "spans": "finding the answers' tokens",
    "text": "rendering prompts, decoding completions, tables of rollouts",
    "signals": "tables of signals",
    "shape": "the advantages",
    "batch": "arrays for the update",
    "shards": "reading, writing and hashing parts",
    "measure": "the numbers of a step",
    "metrics": "metrics.parquet",
    "checkpoints": "writing and pruning checkpoints",
    "teacher": "copying weights into the teacher",
    "other": "everything else",
}


def main() -> None:
    parser = measure.options(__doc__, repeats=3)
    parser.add_argument("--method", default="cast")
    parser.add_argument("--steps", type=int, default=10)
    steps.add_options(parser)
    options = measure.parse(parser)
    if options.quick:
        steps.shrink(options)
        options.steps = 1

    recipe = steps.recipe_of(
        options, options.method,
        f"train.steps={options.steps}", "eval.every=0", "eval.limit=4", "eval.k=1",
    )  # fmt: skip
    clock = watch_the_loop()
    runs = []
    for _ in range(options.repeats):
        clock.reset()
        with steps.temporary_run(recipe) as run, clock.watch("other"):
            loop.train(run, Silent(), lambda row: None)
        clock.seconds["checkpoints"] *= checkpoint_share(recipe.train)
        runs.append(dict(clock.seconds))
    totals = [sum(s for name, s in spent.items() if name not in OUTSIDE) for spent in runs]
    shares = [1 - model_seconds(s) / total for s, total in zip(runs, totals, strict=True)]
    split = {
        name: measure.median([s.get(name, 0.0) / t for s, t in zip(runs, totals, strict=True)])
        for name in (*MODEL, *REST)
    }
    measure.report(
        "loop",
        options.repeats,
        **steps.sizes(recipe),
        steps=options.steps,
        seconds_per_step=measure.median(totals) / options.steps,
        rest_share=measure.median(shares),
        rest_share_min=min(shares),
        rest_share_max=max(shares),
        share=split,
    )


def model_seconds(seconds: Mapping[str, float]) -> float:
    return sum(seconds[name] for name in MODEL)


def checkpoint_share(settings: TrainSettings) -> float:
    """Checkpoints that so many steps of a long run write, over those that this run wrote."""
    steps, every = settings.steps, settings.checkpoint_every
    return steps / every / -(-steps // every)


def watch_the_loop() -> measure.Clock:
    """A clock on every part of the loop, under the names above."""
    clock = measure.Clock()
    clock.wrap(loop._Loop, "__init__", "start", opaque=True)
    clock.wrap(loop._Loop, "evaluate", "evaluation", opaque=True)
    clock.wrap(TransformersEngine, "_decode", "generate")
    clock.wrap(LanguageModel, "score", "score")
    clock.wrap(loop, "update", "update")
    clock.wrap(castctl.stages.score.rewards, "judge", "verify")
    clock.wrap(castctl.stages.score.rewards, "token_span", "spans")
    for name, function in {
        "text": "rollout_step",
        "verify": "score_rewards",
        "signals": "score_signals",
        "shape": "shape_step",
        "batch": "read_batch",
        "measure": "measure_step",
    }.items():
        clock.wrap(loop, function, name)
    for function in ("read_part", "write_part", "content_hash", "count_rows", "read_metadata"):
        clock.wrap(castctl.shards.stage, function, "shards")
    for function in ("write_part", "content_hash"):
        clock.wrap(castctl.stages.score.signals, function, "shards")
    clock.wrap(castctl.stages.measures, "read_metadata", "shards")
    clock.wrap(loop.Metrics, "append", "metrics")
    for function in ("save_checkpoint", "prune_checkpoints"):
        clock.wrap(loop, function, "checkpoints")
    for method in ("refresh", "follow"):
        clock.wrap(TeacherCopy, method, "teacher")
    return clock


if __name__ == "__main__":
    main()
