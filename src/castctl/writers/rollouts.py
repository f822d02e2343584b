"""A run's rollouts with what was thought of them, a table a step, for those who write them on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pyarrow as pa

from castctl.errors import UserError
from castctl.inspection.tokens import load_run_tokenizer
from castctl.runs.run import Run
from castctl.shards.schema import KEYS
from castctl.shards.stage import StepFolder, check_aligned
from castctl.stages.evaluate.stored import require_own_tokens

REMEDY = {"rewards": "castctl score", "advantages": "castctl shape"}
"""What makes a stage that is missing."""


def step_tables(
    run: Run, step: int | None, stages: Sequence[str]
) -> Iterator[tuple[StepFolder, pa.Table]]:
    """The step named, or every one that has rollouts, with the columns of its rollouts and then of
    `stages`, row by row those of one completion.

    Raises `UserError` where there are no rollouts, where a stage lacks a part, and where parts
    contradict one another.
    """
    having = [number for number in run.steps if run.step(number).parts("rollouts")]
    if step is not None and step not in having:
        there = ", ".join(map(str, having)) or "none"
        raise UserError(f"{run.path} has no rollouts at step {step}; steps that have: {there}")
    if not having:
        raise UserError(f"{run.path} has no rollouts at any step; run `castctl rollout` first")
    for number in having if step is None else [step]:
        yield run.step(number), _table(run.step(number), stages)


def _table(folder: StepFolder, stages: Sequence[str]) -> pa.Table:
    tables = []
    for number in folder.parts("rollouts"):
        rollouts = folder.read("rollouts", number)
        table = rollouts.table
        for stage in stages:
            if not folder.has(stage, number):
                raise UserError(
                    f"{folder.path} has rollouts without {stage}, part {number} first; run "
                    f"`{REMEDY[stage]} --run {folder.path}`"
                )
            other = folder.read(stage, number)
            check_aligned(rollouts, [(stage, other)], "rollouts")
            for name in other.table.column_names:
                if name not in KEYS[stage]:
                    table = table.append_column(name, other.table[name])
        tables.append(table)
    return pa.concat_tables(tables)


def prompt_texts(run: Run, folder: StepFolder, rollouts: pa.Table, *, special: bool) -> list[str]:
    """What the model read before each completion, by its token ids, with special tokens or without.

    Raises `UserError` where the run's tokenizer is not on this machine, or made other tokens.
    """
    tokenizer = load_run_tokenizer(run)
    require_own_tokens(folder, rollouts, tokenizer, run.recipe)
    ids = [tuple(each) for each in rollouts["prompt_token_ids"].to_pylist()]
    texts = {
        prompt: tokenizer.decode(list(prompt), skip_special_tokens=not special)
        for prompt in dict.fromkeys(ids)
    }
    return [texts[prompt] for prompt in ids]
