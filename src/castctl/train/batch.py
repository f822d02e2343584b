"""A step's shards as the arrays that an update reads."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from castctl.errors import UserError
from castctl.models.packing import Ids, rows_of
from castctl.ragged import offsets_of
from castctl.shape import group_numbers
from castctl.shards.columns import nullable_floats, ragged_column
from castctl.shards.stage import StepFolder, check_aligned

TRAINED_FROM = ("rollouts", "signals", "advantages")
"""The stages that an update reads."""


@dataclass(frozen=True)
class TrainBatch:
    """`R` completions of a step with their streams, one float32 value a completion token (N).

    `ref_logprobs` is None where no part has them.
    """

    prompts: list[Ids]
    completions: list[Ids]
    group_of_row: NDArray[np.int64]
    kept_R: NDArray[np.bool_]
    offsets: NDArray[np.int64]
    advantages: NDArray[np.float32]
    loss_weights: NDArray[np.float32]
    old_logprobs: NDArray[np.float32]
    ref_logprobs: NDArray[np.float32] | None


def read_batch(folder: StepFolder) -> TrainBatch:
    """Every part of a shaped step.

    Raises `UserError` where a stage is missing, contradicts another or has other lengths.
    """
    numbers = folder.require_parts("advantages", "run `castctl shape` first")
    if numbers != folder.require_parts("rollouts", "training reads their tokens"):
        raise UserError(
            f"{folder.path}: advantages and rollouts do not have the same parts; "
            "finish `castctl shape` first"
        )
    parts = [_read_part(folder, number) for number in numbers]
    groups, shift = [], 0
    for part in parts:
        groups.append(part.group_of_row + shift)
        shift += int(part.group_of_row.max(initial=-1)) + 1
    refs = [part.ref_logprobs for part in parts]
    return TrainBatch(
        prompts=[row for part in parts for row in part.prompts],
        completions=[row for part in parts for row in part.completions],
        group_of_row=np.concatenate(groups),
        kept_R=np.concatenate([part.kept_R for part in parts]),
        offsets=offsets_of(np.concatenate([np.diff(part.offsets) for part in parts])),
        advantages=np.concatenate([part.advantages for part in parts]),
        loss_weights=np.concatenate([part.loss_weights for part in parts]),
        old_logprobs=np.concatenate([part.old_logprobs for part in parts]),
        ref_logprobs=None if any(r is None for r in refs) else np.concatenate(refs),  # type: ignore[arg-type]
    )


def _read_part(folder: StepFolder, number: int) -> TrainBatch:
    rollouts, signals, advantages = (folder.read(stage, number) for stage in TRAINED_FROM)
    check_aligned(rollouts, [("signals", signals), ("advantages", advantages)], "rollouts")
    check_aligned(signals, [("advantages", advantages)], "signals")
    ids, offsets = ragged_column(rollouts.table, "completion_token_ids")

    def stream(part: object, name: str) -> NDArray[np.float32] | None:
        try:
            flat = nullable_floats(part.table, name, offsets)  # type: ignore[attr-defined]
        except ValueError as error:
            raise UserError(f"{part.path}: {error}") from None  # type: ignore[attr-defined]
        return None if flat is None else flat.astype(np.float32)

    kept = advantages.table["kept"].to_numpy()
    values, weights = stream(advantages, "advantages"), stream(advantages, "loss_weights")
    old = stream(signals, "policy_logprobs")
    kept_N = np.repeat(kept, np.diff(offsets))
    if old is None or values is None or not np.isfinite(old[kept_N] + values[kept_N]).all():
        raise UserError(
            f"{folder.path}: policy_logprobs and advantages of kept rows must all be finite"
        )
    return TrainBatch(
        prompts=rows_of(*ragged_column(rollouts.table, "prompt_token_ids")),
        completions=rows_of(ids, offsets),
        group_of_row=group_numbers(rollouts.table["prompt_id"]),
        kept_R=kept,
        offsets=offsets,
        advantages=values,
        loss_weights=np.ones(len(ids), np.float32) if weights is None else weights,
        old_logprobs=old,
        ref_logprobs=stream(signals, "ref_logprobs"),
    )
