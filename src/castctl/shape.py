"""The shape stage: rewards and signals in, token advantages out, on the host, from files alone."""

from __future__ import annotations

import logging

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from castctl.errors import UserError
from castctl.methods import MethodSettings
from castctl.methods.advantages import compute_advantages, importance_weights
from castctl.methods.groups import Groups, group_rewards
from castctl.methods.shaping import TokenSignals
from castctl.progress import Progress
from castctl.shards.columns import list_column, nullable_floats, ragged_column
from castctl.shards.part import Part
from castctl.shards.stage import WHOLE, Shard, StepFolder, check_aligned, mark_foreign

log = logging.getLogger(__name__)


def shape_step(
    folder: StepFolder,
    method: MethodSettings,
    *,
    progress: Progress,
    shard: Shard = WHOLE,
    overwrite: bool = False,
) -> None:
    """Turn `rewards/` and `signals/` into `advantages/`, part by part.

    `rollouts/` is read too where it is there, for the sampler's log-probs. Raises
    `UserError` where parts contradict one another or a signal the method needs is missing.
    """
    parts = folder.require_parts("rewards", "run `castctl score` first")
    provenance = {
        "settings": method.model_dump(
            mode="json", include={"baseline", "zero_variance", "shaping", "importance_cap"}
        )
    }
    if missing := sorted(set(filter(shard.owns, folder.parts("rollouts"))) - set(parts)):
        raise UserError(
            f"{folder.path} has rollouts without rewards, part {missing[0]} first; "
            f"finish `castctl score --run {folder.path}`"
        )
    owned = [part for part in parts if shard.owns(part)]
    with progress.task("shape", folder.rows("rewards", owned), "completions") as advance:
        for number in owned:
            inputs = _read_inputs(folder, number)

            def work(inputs: dict[str, Part] = inputs) -> pa.Table:
                return _shape(inputs, method)

            tables = {stage: part.table for stage, part in inputs.items()}
            made = provenance | mark_foreign(inputs)
            folder.make("advantages", number, tables, made, work, overwrite)
            advance(inputs["rewards"].table.num_rows)


def _read_inputs(folder: StepFolder, number: int) -> dict[str, Part]:
    if not folder.has("signals", number):
        raise UserError(
            f"{folder.part_path('signals', number)} is missing; run "
            f"`castctl score --run {folder.path}` first"
        )
    inputs = {stage: folder.read(stage, number) for stage in ("rewards", "signals")}
    check_aligned(inputs["rewards"], [("signals", inputs["signals"])], "rewards")
    if folder.has("rollouts", number):
        rollouts = folder.read("rollouts", number)
        check_aligned(rollouts, list(inputs.items()), "rollouts")
        inputs["rollouts"] = rollouts
    return inputs


def _shape(inputs: dict[str, Part], method: MethodSettings) -> pa.Table:
    rewards, signals = inputs["rewards"].table, inputs["signals"]
    _refuse_single_completions(inputs["rewards"], method)
    _require_signals(signals, method)
    policy, offsets = _policy_logprobs(signals)
    groups = reward_groups(rewards)
    teacher = _signal(signals, "teacher_logprobs", offsets)
    gap = None if teacher is None else teacher - policy
    advantages = compute_advantages(method, groups, TokenSignals(offsets, gap))
    columns = {
        "prompt_id": rewards["prompt_id"],
        "sample": rewards["sample"],
        "group_kind": pa.array(groups.kind_R),
        "kept": pa.array(advantages.kept_R),
        "base": pa.array(advantages.base_R, pa.float32()),
        "advantages": list_column(advantages.advantages_N, offsets, pa.float32()),
        "weights": list_column(advantages.weights_N, offsets, pa.float32()),
        "flipped": list_column(advantages.flipped_N, offsets, pa.bool_()),
        "distill_weights": list_column(None, offsets, pa.float32()),
        "loss_weights": list_column(
            _loss_weights(inputs, policy, offsets, method), offsets, pa.float32()
        ),
    }
    return pa.table(columns)


def _refuse_single_completions(rewards: Part, method: MethodSettings) -> None:
    rows = rewards.table.num_rows
    if rows and rows == len(rewards.table["prompt_id"].unique()):
        raise UserError(
            f"{method.name} compares completions of one prompt, but every prompt of "
            f"{rewards.path} has one; roll out with -n 2 or more"
        )


def reward_groups(rewards: pa.Table) -> Groups:
    """The groups of a rewards table; a null reward is not known."""
    values = rewards["reward"].to_numpy(zero_copy_only=False).astype(np.float64)
    return group_rewards(values, group_numbers(rewards["prompt_id"]))


def group_numbers(prompt_ids: pa.ChunkedArray) -> NDArray[np.int64]:
    """For each row (R), the number of its prompt, from 0 in order of first appearance."""
    encoded = prompt_ids.combine_chunks().dictionary_encode()
    return encoded.indices.to_numpy().astype(np.int64)


def _require_signals(signals: Part, method: MethodSettings) -> None:
    for name in sorted(method.needs):
        column = signals.table[name]
        if len(column) and column.null_count == len(column):
            step = signals.path.parent.parent
            raise UserError(
                f"{method.name} needs {name}, which {signals.path} does not have; run "
                f"`castctl score --run {step} --method {method.name}`"
            )


def _policy_logprobs(signals: Part) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    column = signals.table["policy_logprobs"]
    if column.null_count:
        raise UserError(
            f"{signals.path}: policy_logprobs has {column.null_count} null rows; score them"
        )
    flat, offsets = ragged_column(signals.table, "policy_logprobs")
    if not np.isfinite(flat).all():
        raise UserError(f"{signals.path}: policy_logprobs are not all finite; score again")
    return flat.astype(np.float64), offsets


def _signal(signals: Part, name: str, offsets: NDArray[np.int64]) -> NDArray[np.float64] | None:
    """A log-prob signal (N), NaN where a row has none; a number it holds must be finite."""
    try:
        flat = nullable_floats(signals.table, name, offsets)
    except ValueError as error:
        raise UserError(f"{signals.path}: {error}") from None
    present = signals.table[name].combine_chunks().flatten().to_numpy(zero_copy_only=False)
    if not np.isfinite(present).all():
        raise UserError(
            f"{signals.path}: {name} are not all finite, so the gap is not; score again with a "
            "sound teacher"
        )
    return flat


def _loss_weights(
    inputs: dict[str, Part],
    policy: NDArray[np.float64],
    offsets: NDArray[np.int64],
    method: MethodSettings,
) -> NDArray[np.float64] | None:
    """Importance correction (N) between sampler and scorer; None without sampler log-probs."""
    if method.importance_cap is None or "rollouts" not in inputs:
        return None
    rollouts = inputs["rollouts"]
    try:
        sampler = nullable_floats(rollouts.table, "sampler_logprobs", offsets)
    except ValueError as error:
        raise UserError(f"{rollouts.path}: {error}") from None
    return None if sampler is None else importance_weights(policy, sampler, method.importance_cap)
