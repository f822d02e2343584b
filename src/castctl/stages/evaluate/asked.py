"""Evaluate a model at a server, of which nothing is here."""

from __future__ import annotations

from collections.abc import Iterator

from castctl.data.messages import MessagesTemplate
from castctl.engines.endpoint import Endpoint
from castctl.errors import UserError
from castctl.progress import Progress
from castctl.recipe.split import HELD_OUT, holds_out
from castctl.runs.run import Run
from castctl.shards.columns import completion_lengths
from castctl.shards.stage import WHOLE, Shard, StepFolder, agreed
from castctl.stages.evaluate.ask import ask_step, where
from castctl.stages.evaluate.results import Result
from castctl.stages.evaluate.runner import (
    PART_SIZE,
    Posed,
    eval_sampling,
    read_problems,
    sampled,
    task_data,
)
from castctl.stages.evaluate.stage import Evaluated, folder_name, of_task, runs_of
from castctl.verify.judge import judging_pool


def ask_tasks(
    run: Run,
    endpoint: Endpoint,
    tasks: dict[str, str | None],
    *,
    progress: Progress,
    shard: Shard = WHOLE,
    overwrite: bool = False,
) -> Iterator[Evaluated]:
    """`evaluate_tasks` at a server: all problems are read before the first is asked. Raises
    `UserError` for held-out problems too: a run's own tokenizer chooses among them."""
    asked = runs_of(run, tasks)
    if any(each.recipe.verifier.box_within_last is not None for each in asked):
        raise UserError(
            "verifier.box_within_last counts tokens, and a server gives text alone; leave it out "
            "(--set verifier.box_within_last=null)"
        )
    require_endpoint(run)
    run.record(endpoint={"url": endpoint.url, "model": endpoint.model, "root": endpoint.root})
    posed = []
    for each, file in zip(asked, tasks.values(), strict=True):
        with of_task(each):
            posed.append(_pose(each, file, progress))
    with judging_pool(run.recipe.verifier) as pool:
        for each, problems in zip(asked, posed, strict=True):
            folder = run.eval_folder(folder_name(each), 0)

            def sample(
                folder: StepFolder = folder,
                run: Run = each,
                problems: Posed[MessagesTemplate] = problems,
            ) -> Result:
                ask_step(
                    folder, problems.prompts, endpoint, problems.template,
                    eval_sampling(run.recipe), seed=run.recipe.seed, part_size=PART_SIZE,
                    progress=progress, shard=shard, overwrite=overwrite,
                )  # fmt: skip
                return _makers(folder, endpoint)

            result = sampled(
                folder, each.recipe, problems, sample, None, pool,
                progress=progress, shard=shard, overwrite=overwrite,
            )  # fmt: skip
            yield Evaluated(folder, result)


def require_endpoint(run: Run) -> None:
    """Raise `UserError` where a run holds evaluations of a model that is not at a server."""
    if "endpoint" not in run.manifest and any(run.path.glob("eval/*/step-*/rollouts")):
        raise UserError(f"run {run.path} evaluates a model of its own; name another --run")


def _pose(run: Run, file: str | None, progress: Progress) -> Posed[MessagesTemplate]:
    if holds_out(run.recipe):
        raise UserError(
            f"{HELD_OUT} problems are chosen by the run that trains; name a task, or their file, "
            "RUN/held-out/prompts/part-00000.parquet"
        )
    data = task_data(run.recipe, file)
    template = MessagesTemplate(data)
    prompts, revision = read_problems(run.recipe, data, progress)
    return Posed(data, template, prompts, None, revision)


def _makers(folder: StepFolder, endpoint: Endpoint) -> Result:
    """Who made the completions that are there: the model by the name it is served under."""
    parts = [folder.read("rollouts", number) for number in folder.parts("rollouts")]
    said = [part.metadata for part in parts]
    left = {
        name for each in said if each for name in each.get("endpoint", {}).get("left_to_server", ())
    }
    counted = all(completion_lengths(part.table) is not None for part in parts)
    return {
        "model": endpoint.model,
        "engine": endpoint.identity,
        "endpoint": {
            "url": agreed(said, "endpoint", where(endpoint)).get("url"),
            "token_signals": False,
            "lengths": "usage.completion_tokens" if counted else None,
            "left_to_server": sorted(left),
        },
    }
