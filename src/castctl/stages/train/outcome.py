"""What a run in training has come to, by its evaluations."""

from __future__ import annotations

from dataclasses import dataclass

from castctl.errors import UserError
from castctl.recipe.split import task_of
from castctl.runs.run import Run, open_run
from castctl.stages.evaluate.results import Result, read_result, task_name


@dataclass(frozen=True)
class Trained:
    """What a finished run has to show: its evaluations before and after, and the best step."""

    before: Result
    after: Result
    best_step: int


def best_step(run: Run, until: int) -> int:
    """The step, up to `until`, at whose start the evaluation was best; the earliest of equals."""
    task = task_name(task_of(run.recipe))
    results = {step: read_result(run.eval_folder(task, step)) for step in range(until + 1)}
    means = {step: result["avg"]["mean"] for step, result in results.items() if result}
    if not means:
        raise UserError(f"{run.path} has no evaluation of {task} to find its best step by")
    return max(means, key=lambda step: means[step])


def checkpoint_step(run: Run, name: str) -> int:
    """The step that `last`, `best` or a number names among a run's checkpoints; 0 is the model
    before training. `UserError` where it is none of these, or no evaluation says which is best."""
    last = max(run.checkpoints(), default=0)
    if name == "last":
        return last
    if name == "best":
        return best_step(open_run(str(run.path)), last)
    if not name.isdecimal():
        raise UserError(f"--checkpoint {name}: write last, best, or the number of a step")
    return int(name)


def trained(run: Run) -> Trained:
    """What a run has to show that has come to its last step."""
    steps = run.recipe.train.steps
    return Trained(_result(run, 0), _result(run, steps), best_step(run, steps))


def _result(run: Run, step: int) -> Result:
    folder = run.eval_folder(task_name(task_of(run.recipe)), step)
    result = read_result(folder)
    if result is None:
        raise UserError(f"{folder.path} has no results; run `castctl eval --run {run.path}`")
    return result
