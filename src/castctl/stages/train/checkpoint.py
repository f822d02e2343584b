"""Checkpoints: a Hugging Face folder, with optimizer and teacher beside the weights."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Protocol

from safetensors import SafetensorError
from torch import Tensor

from castctl.errors import UserError
from castctl.models.teacher import TeacherCopy
from castctl.ranks import ALONE, Ranks
from castctl.runs.run import Run
from castctl.shards.part import Metadata, read_json, sync_folder, sync_tree
from castctl.shards.seal import digests_of
from castctl.stages.train.optimizer import Optimizer
from castctl.stages.train.provenance import STATE_FILE
from castctl.stages.train.state import TrainState

State = Mapping[str, Tensor]


class _Piece(Protocol):
    """What a checkpoint is made of."""

    def state(self) -> dict[str, Tensor]:
        """Its tensors, by name, in shares where ranks hold them so."""

    def save(self, folder: Path, state: State) -> None:
        """Write such tensors, whole."""


def save_checkpoint(
    run: Run,
    step: int,
    state: TrainState,
    provenance: Metadata | None = None,
    ranks: Ranks = ALONE,
) -> Path:
    """Write the state at the start of `step`, whole or not at all, and what made it.

    All `ranks` call it, and rank 0 writes. Raises `Taken` where the run has another writer by now,
    `UserError` where the disk is full.
    """
    folder = run.checkpoint(step)
    draft = folder.with_name(f".{folder.name}.tmp")

    def begin() -> None:
        run.require_place()
        with _writing(folder, draft):
            shutil.rmtree(draft, ignore_errors=True)
            draft.mkdir(parents=True)

    def save(place: Path, piece: _Piece, whole: State) -> None:
        with _writing(folder, draft):
            piece.save(place, whole)

    def end() -> None:
        facts = {
            "run": run.name,
            "step": step,
            "teacher": state.teacher.settings.kind,
            "teacher_refreshed_at": state.teacher.refreshed_at,
            "provenance": provenance,
        }
        with _writing(folder, draft):
            facts["sha256"] = digests_of(draft)
            (draft / STATE_FILE).write_text(json.dumps(facts, indent=2) + "\n")
            sync_tree(draft)
            run.require_place()  # to write the weights took its time
            replaced = _set_aside(folder) if folder.exists() else None
            draft.rename(folder)
            sync_folder(folder.parent)
            if replaced is not None:
                shutil.rmtree(replaced)

    ranks.first_does("a checkpoint", begin)
    pieces: list[tuple[Path, _Piece]] = [(draft, state.policy), (draft, state.optimizer)]
    if state.teacher.is_copy:
        pieces.append((draft / "teacher", state.teacher))
    for place, piece in pieces:
        whole = state.policy.whole(piece.state())
        ranks.first_does("a checkpoint's weights", partial(save, place, piece, whole))
    ranks.first_does("a checkpoint's end", end)
    return folder


@contextlib.contextmanager
def _writing(folder: Path, draft: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:  # what a full disk looks like
        shutil.rmtree(draft, ignore_errors=True)
        raise UserError(
            f"cannot write checkpoint {folder}: {error}; the one before it is whole"
        ) from error


def load_state(folder: Path, teacher: TeacherCopy, optimizer: Optimizer) -> None:
    """Restore teacher and optimizer from a checkpoint; its weights are loaded as any model's."""
    optimizer.load(folder)
    load_teacher(folder, teacher)


def load_teacher(folder: Path, teacher: TeacherCopy) -> None:
    """Restore the teacher of a checkpoint."""
    teacher.load(folder / "teacher")
    if (folder / STATE_FILE).is_file():
        facts = read_json(folder / STATE_FILE)
        refreshed = facts.get("teacher_refreshed_at")
        if type(refreshed) is not int or refreshed < 0:
            raise UserError(
                f"{folder / STATE_FILE}: teacher_refreshed_at is no step; take another checkpoint"
            )
        teacher.refreshed_at = refreshed


def prune_checkpoints(run: Run, keep: set[int]) -> None:
    """Delete the run's checkpoints whose step is not in `keep`."""
    run.require_place()
    for step in run.checkpoints():
        if step not in keep:
            shutil.rmtree(_set_aside(run.checkpoint(step)))


def remove_unfinished(run: Run) -> None:
    """Delete what a killed writer left of checkpoints half written and half deleted."""
    run.require_place()
    for ending in ("tmp", "old"):
        for left in (run.path / "checkpoints").glob(f".step-*.{ending}"):
            shutil.rmtree(left, ignore_errors=True)


def _set_aside(folder: Path) -> Path:
    """Rename a checkpoint that is to go, so that no half of one goes by its name."""
    aside = folder.with_name(f".{folder.name}.old")
    shutil.rmtree(aside, ignore_errors=True)
    return folder.rename(aside)
