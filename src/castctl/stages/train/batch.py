"""A step's shards as the arrays that an update reads."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from castctl.errors import UserError
from castctl.methods import MethodSettings
from castctl.models.packing import Ids, flattened, rows_of
from castctl.ragged import offsets_of, spread
from castctl.shards.columns import nullable_floats, ragged_column
from castctl.shards.part import Metadata, Part
from castctl.shards.stage import StepFolder, check_aligned, describe_difference
from castctl.stages.groups import group_numbers
from castctl.stages.sampled import refuse_altered, sampler_logprobs
from castctl.stages.shape import refuse_other_temperature, shaping_settings
from castctl.stages.signals import taught_rows

TRAINED_FROM = ("rollouts", "signals", "advantages")
"""The stages that an update reads."""

Stream = NDArray[np.float32]


@dataclass(frozen=True)
class TrainBatch:
    """`R` completions of a step with their streams, one float32 value a completion token (N).

    `prompts` are those of the ratio, `teacher_prompts` those a teacher reads. What is None is not
    there in some part, or not needed. `on_policy` is whether `old_logprobs` are known to be of the
    weights that an update begins with; they are None where the update is the first to read the
    completions, and `sampler_logprobs` then those under the sampler that `sampled_by` tells of.
    """

    prompts: list[Ids]
    teacher_prompts: list[Ids]
    completions: list[Ids]
    group_of_row: NDArray[np.int64]
    kept_R: NDArray[np.bool_]
    offsets: NDArray[np.int64]
    advantages: Stream
    loss_weights: Stream
    old_logprobs: Stream | None
    ref_logprobs: Stream | None = None
    teacher_logprobs: Stream | None = None
    distill_weights: Stream | None = None
    on_policy: bool = False
    sampler_logprobs: Stream | None = None
    sampled_by: Metadata = field(default_factory=dict)

    @property
    def token_ids(self) -> dict[str, list[Ids]]:
        """Every row of token ids, by what it is."""
        return {
            "prompt": self.prompts,
            "teacher's prompt": self.teacher_prompts,
            "completion": self.completions,
        }


def digest_of(batch: TrainBatch) -> str:
    """A hash of what an update reads."""
    digest = hashlib.sha256()
    for rows in batch.token_ids.values():
        flat, offsets = flattened(rows)
        digest.update(flat.tobytes() + offsets.tobytes())
    for each in fields(TrainBatch):
        if isinstance(values := getattr(batch, each.name), np.ndarray):
            digest.update(values.tobytes())
    return digest.hexdigest()


def read_batch(folder: StepFolder, method: MethodSettings, policy: str | None = None) -> TrainBatch:
    """Every part of a shaped step, for a method's ratio and loss, and an update of the weights that
    go by the name `policy` in the metadata.

    Raises `UserError` where a stage is missing, contradicts another, has other lengths, or lacks
    what the loss reads.
    """
    numbers = folder.require_parts("advantages", "run `castctl shape` first")
    if numbers != folder.require_parts("rollouts", "training reads their tokens"):
        raise UserError(
            f"{folder.path}: advantages and rollouts do not have the same parts; "
            "finish `castctl shape` first"
        )
    folder.refuse_mixed("rollouts")
    folder.refuse_mixed("advantages")
    parts = [_read_part(folder, number, method, policy) for number in numbers]
    if len({part.old_logprobs is None for part in parts if part.prompts}) > 1:
        raise UserError(
            f"{folder.path} has policy_logprobs in some of its parts and not in others; run "
            f"`castctl score --run {folder.path} --method {method.name} --overwrite`, then shape"
        )
    batch = _joined(parts)
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
    for each in fields(TrainBatch):
        values = [getattr(part, each.name) for part in parts]
        if each.name in joined:
            continue
        if isinstance(values[0], bool):
            joined[each.name] = all(values)
        elif isinstance(values[0], list):
            joined[each.name] = [row for value in values for row in value]
        elif isinstance(values[0], dict):
            joined[each.name] = values[0]  # a step's parts have it in common
        else:
            lacking = any(value is None for value in values)
            joined[each.name] = None if lacking else np.concatenate(values)
    return TrainBatch(**joined)


def _read_part(
    folder: StepFolder, number: int, method: MethodSettings, policy: str | None
) -> TrainBatch:
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

    refuse_other_temperature(rollouts, signals)
    refuse_altered(rollouts, "roll out again without it")
    _refuse_other_shaping(advantages, method)
    kept = advantages.table["kept"].to_numpy()
    values, weights = stream(advantages, "advantages"), stream(advantages, "loss_weights")
    conditioning = method.conditioning
    old = stream(signals, conditioning.old_logprobs)
    made = (signals.metadata or {}).get("signals", {}).get(conditioning.old_logprobs)
    sampled_by = rollouts.metadata or {}
    unread = old is None and "policy_logprobs" not in method.needs
    if unread:  # then whoever sampled them must be whoever trains
        made = {"model": sampled_by.get("model")}
    on_policy = isinstance(made, dict) and policy is not None and made.get("model") == policy
    kept_N = np.repeat(kept, np.diff(offsets))
    known_N = np.zeros(len(ids), np.float32) if old is None else old
    lacking = old is None and not unread
    if values is None or lacking or not np.isfinite(known_N[kept_N] + values[kept_N]).all():
        raise UserError(
            f"{folder.path}: {conditioning.old_logprobs} and advantages of kept rows must all be "
            f"finite; run `castctl score --run {folder.path} --method {method.name}`"
        )
    bare = rows_of(*ragged_column(rollouts.table, "prompt_token_ids"))
    teacher, distilled = stream(signals, "teacher_logprobs"), stream(advantages, "distill_weights")
    if distilled is not None:
        _refuse_untaught(signals, method, distilled, offsets)
        read = np.full(len(ids), np.nan) if teacher is None else teacher
        teacher = np.where(distilled == 0, known_N, read).astype(np.float32)  # what nothing reads
    return TrainBatch(
        prompts=_prompts(signals, conditioning.prompts, bare),
        teacher_prompts=_prompts(signals, "teacher_prompt_token_ids", bare),
        completions=rows_of(ids, offsets),
        group_of_row=group_numbers(rollouts.table["prompt_id"]),
        kept_R=kept,
        offsets=offsets,
        advantages=values,
        loss_weights=np.ones(len(ids), np.float32) if weights is None else weights,
        old_logprobs=old,
        ref_logprobs=stream(signals, "ref_logprobs"),
        teacher_logprobs=teacher,
        distill_weights=distilled,
        on_policy=on_policy,
        sampler_logprobs=_sampler_logprobs(rollouts, offsets) if unread else None,
        sampled_by=sampled_by,
    )


def _sampler_logprobs(rollouts: Part, offsets: NDArray[np.int64]) -> Stream | None:
    found = sampler_logprobs(rollouts, offsets)
    return None if found is None else found.astype(np.float32)


def _refuse_untaught(
    signals: Part, method: MethodSettings, distilled: Stream, offsets: NDArray[np.int64]
) -> None:
    """Raise `UserError` where a completion is distilled that has no teacher: its own prompt would
    be taken for the teacher's."""
    taught_R = taught_rows(signals, method)
    if taught_R is not None and (distilled[~spread(taught_R, offsets)] != 0).any():
        raise UserError(
            f"{signals.path} has completions without a peer, so without a teacher, that the "
            f"advantages distil; run `castctl shape --run {signals.path.parent.parent} --method "
            f"{method.name} --overwrite`"
        )


def _refuse_other_shaping(advantages: Part, method: MethodSettings) -> None:
    """Raise `UserError` for advantages of other slots than those that train: what one method makes,
    the loss of another would drop."""
    weights = advantages.table["distill_weights"]
    if advantages.metadata is None:
        if method.distillation.kind == "none" and weights.null_count < len(weights):
            raise UserError(
                f"{advantages.path} has distill_weights, which {method.name} does not train with; "
                "name the method that made them (--method)"
            )
        return
    made, asked = advantages.metadata.get("settings", {}), shaping_settings(method)
    if different := [key for key in asked if made.get(key, asked[key]) != asked[key]]:
        raise UserError(
            f"{advantages.path} was shaped with {describe_difference(made, asked, different)}; "
            "train with the --method and --set that shaped it, or run `castctl shape --run "
            f"{advantages.path.parent.parent} --method {method.name} --overwrite` first"
        )


def _prompts(signals: Part, name: str | None, bare: list[Ids]) -> list[Ids]:
    """The prompts of a signal (R), the bare one where a row or the signal is none.

    Raises `UserError` for an empty prompt: nothing predicts what follows.
    """
    rows = bare
    if name is not None:
        pairs = zip(signals.table[name].to_pylist(), bare, strict=True)
        rows = [own if ids is None else np.array(ids, np.int32) for ids, own in pairs]
    if not all(map(len, rows)):
        raise UserError(
            f"{signals.path.parent.parent} has an empty prompt among its "
            f"{name or 'prompt_token_ids'}; write the prompt's tokens there, or make them again"
        )
    return rows
