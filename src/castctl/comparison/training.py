"""Train what a comparison still lacks, one run after the other, in a folder of its own."""

from __future__ import annotations

import contextlib
import datetime
import gc
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

from filelock import FileLock, Timeout

from castctl.comparison.entries import Entry
from castctl.comparison.evaluations import EvaluationComparison
from castctl.comparison.numbers import Comparison
from castctl.errors import UserError
from castctl.progress import Progress
from castctl.runs.names import require_path
from castctl.runs.run import Run, create_run, discarded_if_empty, runs_root
from castctl.shards.part import write_json
from castctl.stages.train.metrics import Row
from castctl.versions import VERSION

NUMBERS = "comparison.json"
"""The file that makes a folder a comparison."""

Announce = Callable[[Run, int, int], None]
"""Told a run, its number among those to train (from 1) and how many there are."""


def comparison_folder(name: str | None) -> Path:
    """The folder of that name or path, or a new one named by the time.

    Raises `UserError` where something is there that is no comparison.
    """
    if name is None:
        stamp = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
        path, count = runs_root() / f"compare-{stamp}", 1
        while path.exists():
            count += 1
            path = runs_root() / f"compare-{stamp}-{count}"
        return path
    if not name.strip():
        raise UserError("--name is empty; name the comparison's folder")
    path = Path(name) if len(Path(name).parts) > 1 else runs_root() / name
    require_path(path, "a comparison")
    try:
        holds = any(not child.name.startswith(".") for child in path.iterdir())
        if holds and not (path / NUMBERS).is_file():
            what = "a run" if (path / "manifest.json").is_file() else "no comparison"
            raise UserError(f"{path} is there and is {what}; give another --name")
    except FileNotFoundError:
        pass
    except OSError as error:
        raise UserError(
            f"{path} cannot be a comparison's folder ({error.strerror}); give another --name"
        ) from None
    return path


@contextlib.contextmanager
def opened(folder: Path) -> Iterator[None]:
    """Make the folder, or take it where it is there, for this process alone.

    On an error a new one goes again where it holds no run. Raises `UserError` where another process
    works in it or it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / ".lock").acquire(timeout=0)
    except Timeout:
        raise UserError(f"another castctl compare works in {folder}; wait for it") from None
    except OSError as error:
        raise UserError(f"cannot make {folder}: {error.strerror or error}") from None
    with lock:
        new = not (folder / NUMBERS).is_file()
        try:
            if new:
                write_json(folder / NUMBERS, {"finished": False})
            yield
        except BaseException:
            if new and not any(folder.glob("*/manifest.json")):
                shutil.rmtree(folder, ignore_errors=True)
            raise


def train_missing(
    entries: list[Entry], progress: Progress, announce: Announce, on_row: Callable[[Run, Row], None]
) -> None:
    """Train every run that is not finished, from where it stands.

    `announce` is told each run before its first step, `on_row` each step's metrics.
    """
    missing = [planned for entry in entries for planned in entry.runs if not planned.finished]
    for number, planned in enumerate(missing, 1):
        if planned.there:
            run = planned.run
        else:
            run = create_run(planned.recipe, str(planned.path), "run", planned.origins)
        with discarded_if_empty(run):
            announce(run, number, len(missing))
            _train(run, progress, on_row)
        _free_memory()


def _train(run: Run, progress: Progress, on_row: Callable[[Run, Row], None]) -> None:
    from castctl.stages.train.loop import train

    train(run, progress, lambda row: on_row(run, row))


def write_numbers(comparison: Comparison | EvaluationComparison, folder: Path) -> None:
    """Write every number to `comparison.json`."""
    numbers = {"finished": True, "castctl": VERSION, **asdict(comparison)}
    write_json(folder / NUMBERS, numbers)


def _free_memory() -> None:
    """Give back what the models of the last run held, and begin its peak anew."""
    gc.collect()
    torch = sys.modules["torch"]
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
