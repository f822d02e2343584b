"""A step's shards as the arrays that an update reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from castctl.errors import UserError
from castctl.methods import MethodSettings
from castctl.models.packing import Ids, rows_of
from castctl.ragged import offsets_of
from castctl.shape import group_numbers
from castctl.shards.columns import nullable_floats, ragged_column
from castctl.shards.part import Part
from castctl.shards.stage import StepFolder, check_aligned

TRAINED_FROM = ("rollouts", "signals", "advantages")
"""The stages that an update reads."""

Stream = NDArray[np.float32]


@dataclass(frozen=True)
class TrainBatch:
    """`R` completions of a step with their streams, one float32 value a completion token (N).

    `prompts` are those of the ratio, `teacher_prompts` those a teacher reads. What is None is not
    there in some part, or not needed.
    """

    prompts: list[Ids]
    teacher_prompts: list[Ids]
    completions: list[Ids]
    group_of_row: NDArray[np.int64]
    kept_R: NDArray[np.bool_]
    offsets: NDArray[np.int64]
    advantages: Stream
    loss_weights: Stream
    old_logprobs: Stream
    ref_logprobs: Stream | None = None
    teacher_logprobs: Stream | None = None
    distill_weights: Stream | None = None

    @property
    def token_ids(self) -> dict[str, list[Ids]]:
        """Every row of token ids, by what it is."""
        return {
            "prompt": self.prompts,
            "teacher's prompt": self.teacher_prompts,
            "completion": self.completions,
        }


def read_batch(folder: StepFolder, method: MethodSettings) -> TrainBatch:
    """Every part of a shaped step, for a method's ratio and loss.

    Raises `UserError` where a stage is missing, contradicts another, has other lengths, or lacks
    what the loss reads.
    """
    numbers = folder.require_parts("advantages", "run `castctl shape` first")
    if numbers != folder.require_parts("rollouts", "training reads their tokens"):
        raise UserError(
            f"{folder.path}: advantages and rollouts do not have the same parts; "
            "finish `castctl shape` first"
        )
    batch = _joined([_read_part(folder, number, method) for number in numbers])
    needed = method.objective.needs & {"ref_logprobs", "teacher_logprobs"}
    if method.distillation.kind != "none":
        needed |= {"distill_weights"}
    for name in sorted(needed):
        stream = getattr(batch, name)
        kept_N = np.repeat(batch.kept_R, np.diff(batch.offsets))
        if stream is None or not np.isfinite(stream[kept_N]).all():
            command = f"--run {folder.path} --method {method.name}"
            made_anew = name == "distill_weights"  # its stage is there without it
            command = f"shape {command} --overwrite" if made_anew else f"score {command}"
            raise UserError(
                f"{method.name} trains with {name}, which {folder.path} does not have for every "
                f"kept row; run `castctl {command}`"
            )
    return batch


def _joined(parts: list[TrainBatch]) -> TrainBatch:
    """Parts one after the other; a stream that one of them lacks is None."""
    groups, shift = [], 0
    for part in parts:
        groups.append(part.group_of_row + shift)
        shift += int(part.group_of_row.max(initial=-1)) + 1
    joined: dict[str, Any] = {
        "group_of_row": np.concatenate(groups),
        "offsets": offsets_of(np.concatenate([np.diff(part.offsets) for part in parts])),
    }
    for field in fields(TrainBatch):
        values = [getattr(part, field.name) for part in parts]
        if field.name in joined:
            continue
        if isinstance(values[0], list):
            joined[field.name] = [row for value in values for row in value]
        else:
            lacking = any(value is None for value in values)
            joined[field.name] = None if lacking else np.concatenate(values)
    return TrainBatch(**joined)


def _read_part(folder: StepFolder, number: int, method: MethodSettings) -> TrainBatch:
    rollouts, signals, advantages = (folder.read(stage, number) for stage in TRAINED_FROM)
    check_aligned(rollouts, [("signals", signals), ("advantages", advantages)], "rollouts")
    check_aligned(signals, [("advantages", advantages)], "signals")
    ids, offsets = ragged_column(rollouts.table, "completion_token_ids")

    def stream(part: Part, name: str) -> Stream | None:
        try:
            flat = nullable_floats(part.table, name, offsets)
        except ValueError as error:
            raise UserError(f"{part.path}: {error}") from None
        return None if flat is None else flat.astype(np.float32)

    kept = advantages.table["kept"].to_numpy()
    values, weights = stream(advantages, "advantages"), stream(advantages, "loss_weights")
    conditioning = method.conditioning
    old = stream(signals, conditioning.old_logprobs)
    kept_N = np.repeat(kept, np.diff(offsets))
    if old is None or values is None or not np.isfinite(old[kept_N] + values[kept_N]).all():
        raise UserError(
            f"{folder.path}: {conditioning.old_logprobs} and advantages of kept rows must all be "
            f"finite; run `castctl score --run {folder.path} --method {method.name}`"
        )
    bare = rows_of(*ragged_column(rollouts.table, "prompt_token_ids"))
    ratio = conditioning.prompts
    return TrainBatch(
        prompts=_prompts(rollouts, bare) if ratio is None else _prompts(signals, bare, ratio),
        teacher_prompts=_prompts(signals, bare, "teacher_prompt_token_ids"),
        completions=rows_of(ids, offsets),
        group_of_row=group_numbers(rollouts.table["prompt_id"]),
        kept_R=kept,
        offsets=offsets,
        advantages=values,
        loss_weights=np.ones(len(ids), np.float32) if weights is None else weights,
        old_logprobs=old,
        ref_logprobs=stream(signals, "ref_logprobs"),
        teacher_logprobs=stream(signals, "teacher_logprobs"),
        distill_weights=stream(advantages, "distill_weights"),
    )


def _prompts(part: Part, bare: Sequence[Ids], name: str = "prompt_token_ids") -> list[Ids]:
    """The prompts of a column (R), the bare one where a row has none; `UserError` for empty ones,
    after which nothing can be predicted."""
    column = part.table[name]
    rows = zip(column.to_pylist(), bare, strict=True)
    prompts = [own if ids is None else np.array(ids, np.int32) for ids, own in rows]
    if not all(map(len, prompts)):
        raise UserError(
            f"{part.path} has empty {name}; write the prompt's tokens into the part, or make it "
            "again"
        )
    return prompts
