"""What a run was made for, by what its folder holds."""

from __future__ import annotations

from pathlib import Path

from castctl.runs.run import Run, created, open_run, read_manifest, run_folders

TRAIN, STAGES, EVAL, RESCORED, NEW = "train", "stages", "eval", "rescored", "new"

WORKED = (TRAIN, STAGES, NEW)
"""Kinds of runs that sample and train, or are about to."""


def kind_of_run(folder: Path) -> str:
    """`train`: the loop has begun; `rescored`: completions of others, graded; `stages`: stages run
    by hand; `eval`: evaluations alone; `new`: nothing is done. `UserError` where it is unreadable.
    """
    manifest = read_manifest(folder)
    if manifest.get("state", NEW) != NEW:
        return TRAIN
    if "rescored" in manifest:
        return RESCORED
    if any(folder.glob("step-*")):
        return STAGES
    return EVAL if (folder / "eval").is_dir() else NEW


def newest_run(*kinds: str) -> Run | None:
    """The run made last, by the time in its manifest, of those of these kinds."""
    for folder in sorted(run_folders(), key=created, reverse=True):
        if kind_of_run(folder) in kinds:
            return open_run(str(folder))
    return None
