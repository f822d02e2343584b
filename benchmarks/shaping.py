"""Tokens a second of `shape`: the mathematics alone, and the stage from and to Parquet."""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path

import measure
import numpy as np
import synthetic

from castctl.methods import MethodSettings
from castctl.methods.advantages import compute_advantages
from castctl.methods.groups import Groups
from castctl.methods.shaping import TokenSignals
from castctl.progress import Silent
from castctl.shards.columns import ragged_column
from castctl.shards.stage import StepFolder
from castctl.stages.groups import reward_groups
from castctl.stages.shape import shape_step

METHODS = ("cast", "grpo")


def main() -> None:
    parser = measure.options(__doc__, repeats=7)
    parser.add_argument("--groups", type=int, default=64)
    parser.add_argument("-n", type=int, default=8, help="completions of a group")
    parser.add_argument("--tokens", type=int, default=1024, help="of a completion, on average")
    parser.add_argument("--part-size", type=int, default=16, help="groups in a part")
    options = measure.parse(parser)
    if options.quick:
        options.groups, options.tokens = 8, 64

    with tempfile.TemporaryDirectory() as folder:
        step = synthetic.random_step(
            Path(folder), options.groups, options.n, options.tokens, options.part_size
        )
        groups, signals = load(step)
        tokens = int(signals.offsets[-1])
        methods = {name: MethodSettings(name=name) for name in METHODS}
        works = {}
        for name, method in methods.items():
            works[f"mathematics_{name}"] = measure.timed(
                partial(compute_advantages, method, groups, signals)
            )
            works[f"stage_{name}"] = measure.timed(
                partial(shape_step, step, method, progress=Silent(), overwrite=True)
            )
        seconds = measure.interleaved(works, options.repeats)
    measure.report(
        "shaping",
        options.repeats,
        groups=options.groups,
        n=options.n,
        tokens=tokens,
        part_size=options.part_size,
        tokens_per_second={name: tokens / measure.median(s) for name, s in seconds.items()},
        cast_over_grpo_mathematics=measure.ratio(
            seconds["mathematics_cast"], seconds["mathematics_grpo"]
        ),
        cast_over_grpo_stage=measure.ratio(seconds["stage_cast"], seconds["stage_grpo"]),
    )


def load(step: StepFolder) -> tuple[Groups, TokenSignals]:
    """What the mathematics reads, in memory."""
    table = step.table("signals")
    policy, offsets = ragged_column(table, "policy_logprobs")
    teacher, _ = ragged_column(table, "teacher_logprobs")
    gap = teacher.astype(np.float64) - policy
    return reward_groups(step.table("rewards")), TokenSignals(offsets, gap)


if __name__ == "__main__":
    main()
