"""Evaluate one checkpoint of a run from its files."""

from __future__ import annotations

from castctl.data.benchmarks import task_source
from castctl.engines.transformers_engine import TransformersEngine
from castctl.evaluate.results import Result, task_name
from castctl.evaluate.runner import evaluate
from castctl.policies import policy_at
from castctl.progress import Progress
from castctl.recipe import DataSettings
from castctl.runs import Run
from castctl.shards.stage import WHOLE, Shard, StepFolder
from castctl.verify.judge import judging_pool


def evaluate_stage(
    run: Run,
    step: int,
    data: str | None,
    *,
    progress: Progress,
    shard: Shard = WHOLE,
    overwrite: bool = False,
) -> tuple[StepFolder, Result | None]:
    """The folder and, once every shard is done, the result of the run's `eval` settings.

    `data` is a file with the problems of the task, where they are not to come from the hub.
    """
    recipe = run.recipe
    policy_source = policy_at(run, step)
    policy = policy_source.load(recipe.model)
    folder = run.eval_folder(task_name(recipe.eval.task), step)
    with judging_pool(recipe.verifier) as pool:
        result = evaluate(
            folder, recipe, TransformersEngine(policy), policy.tokenizer, pool,
            model_fingerprint=policy_source.fingerprint, progress=progress,
            source=None if data is None else _file_source(data, recipe.data),
            shard=shard, overwrite=overwrite,
        )  # fmt: skip
    return folder, result


def _file_source(path: str, data: DataSettings) -> DataSettings:
    """A file of the user's with a task's problems; the column settings speak of it."""
    columns = data.model_dump(include={"problem_column", "answer_column", "solution_column"})
    return task_source(path, data).model_copy(update=columns)
