"""The live panel of `castctl train`: where the run is, how it goes, how long it will take."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator

from rich.console import Console
from rich.live import Live

from castctl.errors import UserError
from castctl.inspection.target import step_folders
from castctl.progress import Advance
from castctl.recipe.split import task_of
from castctl.report.course import Course, CoursePanel, Stage, measure
from castctl.runs.run import Run
from castctl.stages.evaluate.results import read_result, task_name
from castctl.stages.train.metrics import Metrics, Row
from castctl.stages.train.schedule import evaluates_after

REFRESHES = 4
"""Times a second that the panel is drawn."""


class TrainingPanel:
    """Draws a course on a terminal while a run trains: a `Progress` for the loop, told each row.

    A context manager. The panel appears with the first task, stays when it is left, and what
    is printed to standard error meanwhile, warnings among it, goes above it.
    """

    def __init__(self, run: Run, console: Console) -> None:
        start = max(run.checkpoints(), default=0)
        rows = [row for row in Metrics(run.path / "metrics.parquet").rows if row["step"] < start]
        self.course = Course(run.name, run.recipe, time.monotonic(), rows)
        self._run = run
        self._fresh = start == 0
        """Whether the evaluation before the first step is still to come."""
        self._mark: float | None = None  # when the work on the coming row began
        self._seen: list[str] = []  # its tasks so far
        folder = run.path / "eval" / task_name(task_of(run.recipe))
        for step in sorted(each.step for each in step_folders(folder) if each.step <= start):
            self._read_evaluation(step)
        self._live = Live(
            get_renderable=lambda: CoursePanel(self.course, time.monotonic()),
            console=console,
            refresh_per_second=REFRESHES,
            redirect_stdout=sys.stdout.isatty(),
        )

    def __enter__(self) -> TrainingPanel:
        return self

    def __exit__(self, *exception: object) -> None:
        self.course.over = True
        self._live.stop()

    @contextlib.contextmanager
    def task(self, description: str, total: int | None, unit: str) -> Iterator[Advance]:
        """Watch one task; see `castctl.progress.Progress`."""
        self._live.start()
        now = time.monotonic()
        if self._mark is None and description != "prompts":  # models and prompts are loaded
            self._mark = now
        self._seen.append(description)
        name = f"evaluation: {description}" if self._evaluating else description
        stage = self.course.stage = Stage(name, total, unit, now)

        def advance(count: int) -> None:
            stage.done += count

        yield advance
        # The update tells of no progress.
        self.course.stage = Stage("train", None, "", now) if description == "shape" else None
        if not self.course.rows:
            self._read_evaluation(0)

    def add(self, row: Row) -> None:
        """Take a step's metrics."""
        now = time.monotonic()
        evaluations = int(self._fresh) + int(row.get("eval_mean") is not None)
        if evaluations and self._mark is not None:
            beside = max(now - self._mark - (measure(row, "seconds") or 0.0), 0.0)
            self.course.pauses += evaluations * [beside / evaluations]
        self._fresh, self._seen = False, []
        self._mark = self.course.told = now
        self.course.rows.append(row)
        self._read_evaluation(row["step"] + 1)

    @property
    def _evaluating(self) -> bool:
        """Whether the newest task belongs to an evaluation, which has tasks of the same names."""
        *before, newest = self._seen
        if newest not in ("rollout", "verify"):
            return False
        if self._fresh and self._seen.count("rollout") == 1:
            return True
        recipe = self.course.recipe
        rounds = recipe.method.zero_variance.rounds  # of several, none is known to be the last
        return "shape" in before and rounds == 1 and evaluates_after(recipe, self.course.done + 1)

    def _read_evaluation(self, step: int) -> None:
        task = task_name(task_of(self.course.recipe))
        with contextlib.suppress(UserError):  # a broken result is not shown
            self.course.evaluation = (
                read_result(self._run.eval_folder(task, step)) or self.course.evaluation
            )
