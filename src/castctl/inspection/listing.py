"""Every run in a line."""

from __future__ import annotations

import datetime
from dataclasses import dataclass
from pathlib import Path

from castctl.errors import UserError, one_line
from castctl.inspection.run import read_metrics, state_of, steps_done
from castctl.inspection.target import step_folders
from castctl.recipe.split import task_of
from castctl.runs.kind import RESCORED, WORKED, kind_of_run
from castctl.runs.run import Run, compared_folders, open_run, run_folders, runs_root
from castctl.stages.evaluate.results import read_result, task_name
from castctl.stages.measures import measure_rewards


@dataclass(frozen=True)
class RunRow:
    """A run in a line. `problem` says why it cannot be read; the rest is then None.

    `kind` is what it was made for: `train`, `stages` by hand, `eval`, `rescored`, or `new`. One
    that only evaluates has no method and no steps, and completions made elsewhere no model.
    `best` is the best avg@k of the recipe's task, or of the one evaluation there is, a share;
    `reward` the last step's mean.
    """

    name: str
    path: Path
    created: str
    kind: str | None = None
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
    """The runs in `runs_root()` and in its comparisons, newest first; a broken one takes the time
    of its folder."""
    rows = map(_row, [*run_folders(), *compared_folders()])
    return sorted(rows, key=lambda row: (row.created, row.name), reverse=True)


def _row(path: Path) -> RunRow:
    name, changed = path.relative_to(runs_root()).as_posix(), ""
    try:
        modified = path.stat().st_mtime
        changed = datetime.datetime.fromtimestamp(modified, datetime.UTC).isoformat()
        run = open_run(str(path))
        metrics = read_metrics(run)
        best, kind = _best(run), kind_of_run(path)
        works = kind in WORKED
        return RunRow(
            name=name,
            path=path,
            created=str(run.manifest.get("created", changed)),
            kind=kind,
            state=state_of(run) if works else None,
            method=run.recipe.method.name if works else None,
            model=None if kind == RESCORED else run.recipe.model.path,
            steps_done=steps_done(run, metrics) if works else None,
            steps_of=run.recipe.train.steps if works else None,
            best=None if best is None else best[0],
            best_step=None if best is None else best[1],
            reward=metrics[-1].get("reward_mean") if metrics else _last_reward(run),
        )
    except UserError as error:
        return RunRow(name, path, changed, problem=str(error))
    except (OSError, ValueError, TypeError, KeyError) as error:  # files of another make
        return RunRow(name, path, changed, problem=one_line(error, named=True))


def _best(run: Run) -> tuple[float, int] | None:
    """The best mean of the run's own task, or of the one evaluation there is, and the earliest step
    that has it."""
    steps = step_folders(run.path / "eval" / task_name(task_of(run.recipe)))
    if not steps and len(others := list(run.path.glob("eval/*/step-*"))) == 1:
        steps = step_folders(others[0].parent)
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
