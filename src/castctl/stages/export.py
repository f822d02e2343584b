"""A run's trained weights in a folder of their own, as other tools load them."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

from castctl.errors import UserError
from castctl.models.adapter import CONFIG_FILE, WEIGHTS_FILE
from castctl.models.loading import MODEL_FILES
from castctl.runs.run import Run
from castctl.shards.drafts import drafted_folder
from castctl.shards.part import sync_folder, sync_tree
from castctl.stages.policies import policy_at

BESIDE = ("castctl.json", "optimizer.json", "optimizer.safetensors")
"""What a checkpoint holds beside a model."""


@contextlib.contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A folder to fill, which appears at `folder` once it is filled; `UserError` where something is
    there already, or where it cannot be written."""
    if folder.exists():
        raise UserError(f"{folder} is there already; name a folder that is not")
    with passing_folder(folder) as draft:
        yield draft
        draft.chmod(0o755)
        sync_tree(draft)
        draft.rename(folder)
        sync_folder(folder.parent)


@contextlib.contextmanager
def passing_folder(beside: Path) -> Iterator[Path]:
    """A folder to fill that goes again; `UserError` where it cannot be written."""
    try:
        beside.parent.mkdir(parents=True, exist_ok=True)
        with drafted_folder(beside) as draft:
            yield draft
    except OSError as error:
        raise UserError(
            f"cannot write beside {beside}: {error.strerror or error}; is its place writable?"
        ) from error


def export_policy(run: Run, step: int | None, folder: Path, *, merged: bool) -> int:
    """`write_policy` into a new folder, of the last checkpoint unless a step is named; the step."""
    step = max(run.checkpoints(), default=0) if step is None else step
    if step == 0:
        raise UserError(f"{run.path} has no checkpoint to export; train it, or name a --step")
    with new_folder(folder) as draft:
        write_policy(run, step, draft, merged=merged)
    return step


def write_policy(run: Run, step: int, folder: Path, *, merged: bool) -> None:
    """Write the policy at the start of `step` into a folder that is there: a whole model in Hugging
    Face format, or its adapter in peft's; `merged`, an adapter becomes a whole model too.

    It is merged in float32 into weights that are loaded for it, which leaves no trace in those that
    train. Raises `UserError` where there is no such checkpoint.
    """
    source = policy_at(run, step)
    if source.weights.adapter is None:
        for pattern in MODEL_FILES:
            for file in source.weights.model.glob(pattern):
                if file.name not in BESIDE:
                    shutil.copyfile(file, folder / file.name)
    elif merged:
        exact = {"device": "cpu", "dtype": "float32", "weights": "float32"}
        source.load(run.recipe.model.model_copy(update=exact)).save_whole(folder)
    else:
        for name in (CONFIG_FILE, WEIGHTS_FILE):
            shutil.copyfile(source.weights.adapter / name, folder / name)
