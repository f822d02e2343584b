"""A run on disk: where it stands, what it holds, and the settings that made it."""

from __future__ import annotations

import contextlib
import os
import platform
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from castctl.errors import UserError
from castctl.inspection.step import view_stage
from castctl.inspection.target import Target, step_folders
from castctl.recipe.recipe import Recipe
from castctl.recipe.trust import runs_code
from castctl.runs.run import Run
from castctl.settings import settings_in
from castctl.shards.schema import SCHEMAS
from castctl.shards.stage import StepFolder
from castctl.stages.evaluate.results import Result, read_result
from castctl.stages.measures import measure_step
from castctl.stages.train.metrics import Metrics, Row

DEFAULT = "default"
RESULT = ("task", "step", "k", "avg", "pass", "maj", "truncated_share", "length_mean")
"""What a result must say to stand in a table."""


@dataclass(frozen=True)
class SettingView:
    """One setting by its dotted key. `origin` is `default`, or names what changed it: an option,
    a file, a preset; None where the run does not record that."""

    key: str
    value: Any
    default: Any
    origin: str | None


@dataclass(frozen=True)
class StepRow:
    """A step in a line: its parts, rows and bytes by stage, and its measures.

    `problem` says why there are no measures.
    """

    step: int
    parts: dict[str, int]
    rows: int
    bytes: int
    measures: Row
    problem: str | None = None


@dataclass(frozen=True)
class Checkpoint:
    step: int
    bytes: int
    teacher: bool


@dataclass(frozen=True)
class RunView:
    """`manifest` is empty and `settings` too for a folder made elsewhere."""

    path: Path
    name: str
    state: str
    steps_done: int
    steps_of: int | None
    bytes: int
    manifest: dict[str, Any]
    checkpoints: list[Checkpoint]
    evaluations: list[Result]
    steps: list[StepRow]
    settings: list[SettingView]
    runs_code: dict[str, str] = field(default_factory=dict)
    """The settings that run code where a person trusts it, and which code."""
    notes: list[str] = field(default_factory=list)


def view_run(target: Target) -> RunView:
    """All that a run's folder tells. What cannot be read becomes a note, not an error."""
    run = target.run
    notes: list[str] = []
    metrics: list[Row] = []
    evaluations: list[Result] = []
    if run is not None:
        metrics = _noting(notes, lambda: read_metrics(run), [])
        evaluations = read_evaluations(run, notes)
    by_step = {row["step"]: row for row in metrics}
    return RunView(
        path=target.path,
        name=target.path.absolute().name,
        state="made elsewhere" if run is None else state_of(run),
        steps_done=0 if run is None else steps_done(run, metrics),
        steps_of=None if run is None else run.recipe.train.steps,
        bytes=_size(target.path),
        manifest={} if run is None else run.manifest,
        checkpoints=[] if run is None else _checkpoints(run),
        evaluations=evaluations,
        steps=[_step_row(folder, by_step.get(folder.step)) for folder in target.steps],
        settings=[] if run is None else settings_of(run),
        runs_code={} if run is None else runs_code(run.recipe),
        notes=notes,
    )


def state_of(run: Run) -> str:
    """`new`, `running`, `interrupted` or `finished`.

    A run is running only while the process that wrote so lives on this machine.
    """
    manifest = run.manifest
    state = str(manifest.get("state", "new"))
    if state != "running":
        return state
    return state if _is_alive(manifest, run.path / "manifest.json") else "interrupted"


def _is_alive(manifest: dict[str, Any], file: Path) -> bool:
    machine = manifest.get("machine")
    if not isinstance(machine, dict) or machine.get("system") != platform.platform():
        return False
    try:
        process = psutil.Process(manifest["pid"])
        # A process that began after the manifest was written only has the number of its writer.
        began_before = process.create_time() <= file.stat().st_mtime + 1
        return began_before and process.status() != psutil.STATUS_ZOMBIE
    except (psutil.Error, KeyError, TypeError, ValueError, OverflowError):
        return False


def read_metrics(run: Run) -> list[Row]:
    """The rows of `metrics.parquet`; `UserError` where it cannot be read."""
    file = run.path / "metrics.parquet"
    rows = Metrics(file).rows
    if any(not isinstance(row.get("step"), int) for row in rows):
        raise UserError(f"{file} has rows without a step")
    return rows


def steps_done(run: Run, metrics: list[Row]) -> int:
    """Steps that the run has trained: by its metrics or, step by step, by its checkpoints."""
    return max([0, *run.checkpoints(), *(row["step"] + 1 for row in metrics)])


def read_evaluations(run: Run, notes: list[str]) -> list[Result]:
    """Every result below `eval/` by task and step, without its list of problems; a broken one
    becomes a note."""
    folders = [step for task in sorted((run.path / "eval").glob("*")) if task.is_dir()
               for step in step_folders(task)]  # fmt: skip
    results = []
    for folder in folders:
        result = _noting(notes, lambda folder=folder: read_result(folder), None)
        if result is None:
            continue
        if missing := [key for key in RESULT if key not in result]:
            notes.append(f"{folder.path / 'results.json'} lacks {', '.join(missing)}")
            continue
        results.append({key: value for key, value in result.items() if key != "by_problem"})
    return results


def settings_of(run: Run) -> list[SettingView]:
    """Every setting of the run with its origin."""
    recorded = run.manifest.get("origins")
    origins = recorded if isinstance(recorded, dict) else {}
    return [
        SettingView(s.key, s.value, s.default, origins.get(s.key, None if s.changed else DEFAULT))
        for s in settings_in(run.recipe, Recipe())
    ]


def _step_row(folder: StepFolder, metrics: Row | None) -> StepRow:
    """A step by its metrics, or measured from its shards where the loop left none."""
    measures, rows, size, problem = metrics or {}, 0, 0, None
    try:
        stages = [view_stage(folder, stage) for stage in SCHEMAS if folder.parts(stage)]
        rows = max((stage.rows for stage in stages), default=0)
        size = sum(stage.bytes for stage in stages)
        measures = measures or measure_step(folder)
    except UserError as error:
        problem = str(error)
    parts = {stage: len(folder.parts(stage)) for stage in SCHEMAS if stage != "prompts"}
    return StepRow(folder.step, parts, rows, size, measures, problem)


def _checkpoints(run: Run) -> list[Checkpoint]:
    return [
        Checkpoint(step, _size(run.checkpoint(step)), (run.checkpoint(step) / "teacher").is_dir())
        for step in run.checkpoints()
    ]


def _size(folder: Path) -> int:
    """Bytes of the files below a folder. A run that runs makes and removes files meanwhile."""
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                total += Path(place, name).stat().st_size
    return total


def _noting(notes: list[str], read: Any, otherwise: Any) -> Any:
    try:
        return read()
    except UserError as error:
        notes.append(str(error))
        return otherwise
