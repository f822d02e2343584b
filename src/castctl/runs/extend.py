"""A run that goes on for longer than it was asked to at first."""

from __future__ import annotations

import datetime
import logging
import shutil

from castctl.errors import UserError
from castctl.recipe.reader import dump_recipe
from castctl.runs.run import Run
from castctl.runs.trust import refuse_untrusted
from castctl.shards.part import write_text

log = logging.getLogger(__name__)


def extend(run: Run, steps: int) -> Run:
    """The run with `train.steps` = `steps`, in its recipe and, as `extended`, in its manifest.

    Where a schedule reads the number of steps, what was made under the old one after the last
    checkpoint is deleted, to be made again, and a warning says that the course is another. Raises
    `UserError` unless more steps are asked for than are done, and for code that is not trusted.
    """
    refuse_untrusted(run)
    if steps == run.recipe.train.steps:
        return run
    with run.alone() as held:
        return _extended(held, steps)


def _extended(run: Run, steps: int) -> Run:
    planned = run.recipe.train.steps
    start = max(run.checkpoints(), default=0)
    rows = run.metrics().num_rows if (run.path / "metrics.parquet").exists() else 0
    if steps <= (done := max(start, rows)):
        raise UserError(
            f"run {run.path} has done {done} steps; ask for more with --steps, or leave it out"
        )
    if reading := run.recipe.reads_total:
        _forget_after(run, start)
        log.warning(
            "%s reads the number of steps: the steps done followed %d, so the course differs from "
            "one planned for %d", " and ".join(reading), planned, steps,
        )  # fmt: skip
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="microseconds")
    manifest = run.manifest
    history = [*manifest.get("extended", []), {"at": now, "from": planned, "to": steps}]
    origins = manifest.get("origins")
    if origins is not None:
        origins = {**origins, "train.steps": "option"}
    run.record(state="interrupted", extended=history, origins=origins)
    longer = run.recipe.model_copy(
        update={"train": run.recipe.train.model_copy(update={"steps": steps})}
    )
    write_text(run.path / "recipe.yaml", dump_recipe(longer))
    return Run(run.path, longer)


def _forget_after(run: Run, start: int) -> None:
    """Delete the advantages of step `start`, and every table and evaluation after its weights."""
    shutil.rmtree(run.step(start).stage_path("advantages"), ignore_errors=True)
    later = [*run.path.glob("step-*"), *run.path.glob("eval/*/step-*")]
    for folder in later:
        number = folder.name.removeprefix("step-")
        if number.isdecimal() and int(number) > start:
            shutil.rmtree(folder)
