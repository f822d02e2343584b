"""A run's weights or results in a new folder, as what is asked for."""

from __future__ import annotations

from pathlib import Path

from castctl.runs.run import Run
from castctl.stages.export import export_policy, new_folder
from castctl.writers import known_format, writer


def export_run(
    run: Run, folder: Path, format: str, step: int | None, *, merged: bool = False
) -> int | None:
    """Write a checkpoint's model, the last one's unless a step is named, or in another format the
    rollouts or evaluations of a step, or of all; the step, None for all of them.

    The folder is there once it is whole. Raises `UserError` where there is no such format, where
    something is there already, and where there is nothing to export.
    """
    named = known_format(format)
    if named == "model":
        return export_policy(run, step, folder, merged=merged)
    with new_folder(folder) as draft:
        writer(named)(run, step, draft)
    return step
