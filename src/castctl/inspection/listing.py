"""Every run in a line."""

from __future__ import annotations

import datetime
from dataclasses import dataclass
from pathlib import Path

from castctl.errors import UserError, one_line
from castctl.inspection.run import read_metrics, state_of, steps_done
from castctl.inspection.target import step_folders
from castctl.recipe.split import task_of
from castctl.runs.run import Run, open_run, run_folders
from castctl.stages.evaluate.results import read_result, task_name
from castctl.stages.measures import measure_rewards


@dataclass(frozen=True)
class RunRow:
    """A run in a line. `problem` says why it cannot be read; the rest is then None.

    `best` is the best avg@k of the recipe's task, a share; `reward` the last step's mean.
    """

    name: str
    path: Path
    created: str
    state: str | None = None
    method: str | None = None
    model: str | None = None
    steps_done: int | None = None
    steps_of: int | None = None
    best: float | None = None
    best_step: int | None = None
    reward: float | None = None
    problem: str | None = None


def list_runs() -> list[RunRow]:
    """The runs in `runs_root()`, newest first; a broken one takes the time of its folder."""
    return sorted(map(_row, run_folders()), key=lambda row: (row.created, row.name), reverse=True)


def _row(path: Path) -> RunRow:
    changed = ""
    try:
        modified = path.stat().st_mtime
        changed = datetime.datetime.fromtimestamp(modified, datetime.UTC).isoformat()
        run = open_run(str(path))
        metrics = read_metrics(run)
        best = _best(run)
        return RunRow(
            name=path.name,
            path=path,
            created=str(run.manifest.get("created", changed)),
            state=state_of(run),
            method=run.recipe.method.name,
            model=run.recipe.model.path,
            steps_done=steps_done(run, metrics),
            steps_of=run.recipe.train.steps,
            best=None if best is None else best[0],
            best_step=None if best is None else best[1],
            reward=metrics[-1].get("reward_mean") if metrics else _last_reward(run),
        )
    except UserError as error:
        return RunRow(path.name, path, changed, problem=str(error))
    except (OSError, ValueError, TypeError, KeyError) as error:  # files of another make
        return RunRow(path.name, path, changed, problem=one_line(error, named=True))


def _best(run: Run) -> tuple[float, int] | None:
    """The best mean of the run's own task, and the earliest step that has it."""
    steps = step_folders(run.path / "eval" / task_name(task_of(run.recipe)))
    results = [(read_result(step), step.step) for step in steps]
    means = [(result["avg"]["mean"], -step) for result, step in results if result is not None]
    return (max(means)[0], -max(means)[1]) if means else None


def _last_reward(run: Run) -> float | None:
    """The mean reward of the last step that was scored by hand."""
    scored = [step for step in run.steps if run.step(step).parts("rewards")]
    if not scored:
        return None
    mean = measure_rewards(run.step(scored[-1]).table("rewards"))["reward_mean"]
    return mean if isinstance(mean, float) else None
