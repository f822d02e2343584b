"""Evaluate one checkpoint of a run from its files."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from castctl.data.files import SUFFIXES, split_name
from castctl.engines import make_engine
from castctl.errors import UserError
from castctl.files import regular
from castctl.models.loading import load_tokenizer
from castctl.progress import Progress
from castctl.recipe.reader import load_recipe
from castctl.recipe.recipe import Recipe
from castctl.recipe.split import HELD_OUT, task_of
from castctl.recipe.task import SECTIONS, about, is_task_file, pinned, refuse_beside
from castctl.recipe.trust import require_trust
from castctl.runs.run import Run
from castctl.shards.stage import WHOLE, Shard, StepFolder
from castctl.stages.evaluate.results import Result, require_folder, task_name, variant
from castctl.stages.evaluate.runner import eval_sampling, evaluate, pose, require_room
from castctl.stages.policies import load_sampled, policy_at, site_of
from castctl.verify.judge import grader_name, judging_pool


@dataclass(frozen=True)
class Evaluated:
    """One task: its folder, and its result once every shard is done."""

    folder: StepFolder
    result: Result | None


def evaluate_tasks(
    run: Run,
    step: int,
    tasks: dict[str, str | None],
    *,
    progress: Progress,
    shard: Shard = WHOLE,
    overwrite: bool = False,
) -> Iterator[Evaluated]:
    """Evaluate one task after the other with one model; the recipe's `eval` says how.

    `tasks` gives for each the file of its problems, or None for its own. All problems are read
    before the first is sampled. Raises `UserError` as `pose` and `evaluate` do.
    """
    asked = runs_of(run, tasks)
    if "endpoint" in run.manifest:
        raise UserError(f"run {run.path} evaluates a model at a server; name it with --endpoint")
    source = policy_at(run, step)
    tokenizer = load_tokenizer(source.weights.model, run.recipe.model)
    posed = []
    for each, file in zip(asked, tasks.values(), strict=True):
        with of_task(each):
            posed.append(pose(each, tokenizer, progress, file))
    policy = load_sampled(run, source)
    for each, problems in zip(asked, posed, strict=True):
        require_room(problems, each.recipe, policy.model.context_tokens)
    site = site_of(run, source, shard)
    with (
        contextlib.closing(make_engine(_longest(asked), policy, site)) as engine,
        judging_pool(run.recipe.verifier) as pool,
    ):
        for each, problems in zip(asked, posed, strict=True):
            folder = run.eval_folder(folder_name(each), step)
            result = evaluate(
                folder, each.recipe, engine, tokenizer, pool, problems,
                model_fingerprint=source.fingerprint, progress=progress,
                shard=shard, overwrite=overwrite,
            )  # fmt: skip
            yield Evaluated(folder, result)


@contextlib.contextmanager
def of_task(run: Run) -> Iterator[None]:
    """Say in a `UserError` of which of several tasks it speaks."""
    task = task_of(run.recipe)
    try:
        yield
    except UserError as error:
        raise error if task in str(error) else UserError(f"{task}: {error}") from None


def folder_name(run: Run) -> str:
    """The folder of the recipe's task below `eval/`: the task's name and, where `run.recipe`
    evaluates otherwise than the run's own recipe does, what differs."""
    task = task_of(run.recipe)
    differs = variant(about(load_recipe(run.path / "recipe.yaml"), task), run.recipe)
    return require_folder(f"{task_name(task)}-{differs}" if differs else task_name(task))


def sources(
    tasks: Iterable[str], data: str | None, typed: Mapping[str, Any] | None = None
) -> dict[str, str | None]:
    """Where the problems of each task come from: a file, or None for its own place; a task's file
    by its name with the digest.

    `data` is one task's file, or a folder that holds a file TASK.jsonl (or .parquet, .json, .csv)
    for each. Raises `UserError` for one file of several tasks, for a file that is missing, for two
    tasks of one name, for a task that names its own problems, for settings that were `typed`, by
    section, where a task's file says otherwise, and for a name that no folder may have.
    """
    tasks = [pinned(task) for task in tasks]
    for task in tasks:
        if os.path.exists(task) and not os.path.isdir(task):
            regular(Path(task))
        require_folder(task_name(task))
        refuse_beside(task, typed or {}, SECTIONS)
    if twice := [task for task in tasks if [*map(task_name, tasks)].count(task_name(task)) > 1]:
        raise UserError(
            f"two tasks go by the name {task_name(twice[0])} and would share one folder; name each "
            "once, or rename a file"
        )
    if data is None:
        return dict.fromkeys(tasks)
    for task in tasks:
        own = is_task_file(task) or (split_name(Path(task))[1] in SUFFIXES and task != data)
        if task == HELD_OUT or own:
            what = "the run's own data" if task == HELD_OUT else "a file of problems itself"
            raise UserError(
                f"{task} is {what}, not what --data {data} holds; leave one of them out"
            )
    if Path(data).is_dir():
        return {task: _file_in(Path(data), task) for task in tasks}
    if len(tasks) > 1:
        raise UserError(
            f"--data {data} holds the problems of one task, not of {', '.join(tasks)}; name one "
            "task, or a folder with a file of each one's name"
        )
    return {tasks[0]: data}


def _file_in(folder: Path, task: str) -> str:
    names = [f"{task_name(task)}{suffix}" for suffix in SUFFIXES]
    found = [folder / name for name in names if (folder / name).is_file()]
    if len(found) != 1:
        what = " and ".join(path.name for path in found) or f"none of {', '.join(names)}"
        raise UserError(f"--data {folder} holds {what}; put one file there for {task}")
    return str(found[0])


def runs_of(run: Run, tasks: Iterable[str]) -> list[Run]:
    """The run, once for each task and with that task's recipe; `UserError` where one of them names
    a verifier that nobody trusts, or that does not load."""
    asked = [Run(run.path, about(run.recipe, task)) for task in tasks]
    for each in asked:
        with of_task(each):
            require_trust(each.recipe.verifier)
            grader_name(each.recipe.verifier)
    return asked


def _longest(asked: Sequence[Run]) -> Recipe:
    """The recipe of those whose completions may be the longest, for an engine that serves all."""
    return max((run.recipe for run in asked), key=lambda each: eval_sampling(each).max_tokens)
