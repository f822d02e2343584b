"""The shape stage: rewards and signals in, token advantages out, on the host, from files alone."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from castctl.errors import UserError
from castctl.methods import MethodSettings
from castctl.methods.advantages import compute_advantages, selective_signals
from castctl.methods.schedule import Moment
from castctl.progress import Progress
from castctl.ragged import offsets_of
from castctl.shards.columns import completion_lengths, list_column
from castctl.shards.part import Metadata, Part, content_hash
from castctl.shards.stage import WHOLE, Shard, StepFolder, check_aligned, joined, mark_foreign
from castctl.stages.draws import token_draws
from castctl.stages.groups import ending_of, read_rows, reward_groups
from castctl.stages.sampled import refuse_altered, sampler_logprobs
from castctl.stages.score.peers import has_peers
from castctl.stages.signals import (
    StepSignals,
    lacking_R,
    read_signals,
    require_signals,
    rows_left_out,
    taught_rows,
)

log = logging.getLogger(__name__)


SHAPED_BY = (
    "baseline",
    "zero_variance",
    "overlong",
    "shaping",
    "token_mask",
    "conditioning",
    "distillation",
    "correction",
)
"""The slots that decide advantages; of the teacher only `skip_tokens` does."""


def shape_step(
    folder: StepFolder,
    method: MethodSettings,
    *,
    longest: int | None = None,
    seed: int = 0,
    progress: Progress,
    shard: Shard = WHOLE,
    overwrite: bool = False,
) -> None:
    """Turn `rewards/` and `signals/` into `advantages/`, part by part.

    `rollouts/` is read too where it is there, for the sampler's log-probs and for how completions
    ended; `longest` is the longest allowed completion, where the rollouts do not say it; `seed` is
    that of a token mask that draws. A method that looks at the whole step reads every part, those
    of other shards too. Raises `UserError` where parts contradict one another, are missing, or lack
    a signal that the method needs.
    """
    parts = folder.require_parts("rewards", "run `castctl score` first", shard)
    read = WHOLE if method.whole_step else shard
    expected = set(folder.parts("rollouts"))
    if method.whole_step and parts:  # where no rollouts say how many there are
        expected |= set(range(parts[-1] + 1))
    if missing := sorted(set(filter(read.owns, expected)) - set(parts)):
        why = f", and {method.name} looks at the whole step" if method.whole_step else ""
        raise UserError(
            f"{folder.path} has rollouts without rewards, part {missing[0]} first{why}; "
            f"finish `castctl score --run {folder.path}`"
        )
    folder.refuse_mixed("rollouts")
    folder.refuse_mixed("rewards")
    owned = [part for part in parts if shard.owns(part)]
    at = _At(Moment(folder.step, folder.total_steps), longest, seed)
    step = _WholeStep(folder, parts, method, at) if method.whole_step else None
    with progress.task("shape", folder.rows("rewards", owned), "completions") as advance:
        for number in owned:
            inputs = step.inputs[number] if step else _read_inputs(folder, number)

            def work(number: int = number, inputs: dict[str, Part] = inputs) -> pa.Table:
                if step:
                    return step.part(number)
                _refuse_unfit(inputs, method, at)
                return _shape(inputs, method, at)

            tables = {stage: part.table for stage, part in inputs.items()}
            settings = shaping_settings(method)
            if method.distillation.decay_steps:
                settings |= {"total_steps": folder.total_steps}
            if (ending := ending_of(inputs, method, longest)) is not None:
                settings |= {"longest": ending.longest}
            if method.token_mask.draws:
                settings |= {"seed": seed}
            made: Metadata = {"settings": settings, **mark_foreign(inputs)}
            if step:
                made["whole_step"] = step.hash
            folder.make("advantages", number, tables, made, work, overwrite)
            advance(inputs["rewards"].table.num_rows)


def shaping_settings(method: MethodSettings) -> Metadata:
    """The settings that decide advantages, as stored with each part."""
    settings: Metadata = method.model_dump(mode="json", include=set(SHAPED_BY))
    return settings | {"skip_tokens": method.teacher.skip_tokens}


def refuse_other_temperature(rollouts: Part, signals: Part) -> None:
    """Raise `UserError` where log-probs were read at another temperature than was sampled at."""
    read, sampled = ((part.metadata or {}).get("temperature") for part in (signals, rollouts))
    if None not in (read, sampled) and read != sampled:
        raise UserError(
            f"{signals.path} was scored at temperature {read:g}, but the rollouts were sampled at "
            f"{sampled:g}; score again with --overwrite"
        )


def kept_groups(folder: StepFolder, parts: Iterable[int], method: MethodSettings) -> int:
    """How many prompts of these judged parts have a completion that is kept."""
    groups = (reward_groups(folder.read("rewards", part).table) for part in parts)
    return sum(len(np.unique(g.of_row[method.zero_variance.keeps_R(g)])) for g in groups)


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
        refuse_other_temperature(rollouts, inputs["signals"])
        inputs["rollouts"] = rollouts
    return inputs


@dataclass(frozen=True)
class _At:
    """Where in a run a step is shaped, and what the rollouts may not say."""

    moment: Moment
    longest: int | None
    seed: int


class _WholeStep:
    """A step's parts shaped together, for a method whose advantages depend on all of them.

    `inputs` are each part's own; `hash` is that of all, which says beside what a part was shaped.
    """

    def __init__(
        self,
        folder: StepFolder,
        parts: list[int],
        method: MethodSettings,
        at: _At,
    ) -> None:
        self.inputs = {part: _read_inputs(folder, part) for part in parts}
        for inputs in self.inputs.values():
            _refuse_unfit(inputs, method, at)
        self._joined, self._method, self._at = _joined([*self.inputs.values()]), method, at
        rows = offsets_of([each["rewards"].table.num_rows for each in self.inputs.values()])
        self._rows = dict(zip(parts, pairwise(rows.tolist()), strict=True))
        hashes = (content_hash(part.table) for part in self._joined.values())
        self.hash = hashlib.sha256("".join(hashes).encode()).hexdigest()

    def part(self, number: int) -> pa.Table:
        """The rows of one part."""
        start, end = self._rows[number]
        return self._table.slice(start, end - start).combine_chunks()

    @cached_property
    def _table(self) -> pa.Table:
        return _shape(self._joined, self._method, self._at)


def _joined(inputs: list[dict[str, Part]]) -> dict[str, Part]:
    """The stages of several parts, each as one; what the metadata says is the first part's."""
    if not inputs:
        return {}
    return {
        stage: replace(inputs[0][stage], table=joined([part[stage] for part in inputs]))
        for stage in inputs[0]
        if all(stage in part for part in inputs)
    }


def _shape(inputs: dict[str, Part], method: MethodSettings, at: _At) -> pa.Table:
    rewards, signals = inputs["rewards"].table, inputs["signals"]
    lengths_R = completion_lengths(inputs["rollouts"].table) if "rollouts" in inputs else None
    cut = None if lengths_R is None else offsets_of(lengths_R)
    read = read_signals(signals, method.teacher.skip_tokens, method.told_by_peers, cut)
    groups = reward_groups(rewards)
    ending = ending_of(inputs, method, at.longest)
    tokens, offsets = read.tokens, read.tokens.offsets
    if method.token_mask.draws:
        ids, samples = (rewards[name].to_pylist() for name in ("prompt_id", "sample"))
        lengths_R, step = np.diff(offsets), at.moment.step
        drawn = token_draws(ids, samples, lengths_R, at.seed, step, "token_mask")
        tokens = replace(tokens, draws_N=drawn)
    tokens = replace(tokens, taught_R=taught_rows(signals, method))
    advantages = compute_advantages(method, groups, tokens, at.moment, ending)
    loss_weights = _loss_weights(inputs, read, method, advantages.masks_N)
    columns = {
        "prompt_id": rewards["prompt_id"],
        "sample": rewards["sample"],
        "group_kind": pa.array(groups.kind_R),
        "kept": pa.array(advantages.kept_R),
        "base": pa.array(advantages.base_R, pa.float32()),
        "advantages": list_column(advantages.advantages_N, offsets, pa.float32()),
        "weights": list_column(advantages.weights_N, offsets, pa.float32()),
        "flipped": list_column(advantages.flipped_N, offsets, pa.bool_()),
        "distill_weights": list_column(advantages.distill_weights_N, offsets, pa.float32()),
        "loss_weights": list_column(loss_weights, offsets, pa.float32()),
    }
    return pa.table(columns)


def _refuse_unfit(inputs: dict[str, Part], method: MethodSettings, at: _At) -> None:
    """Raise `UserError` where a part has not what the method reads."""
    _refuse_single_completions(inputs["rewards"], method)
    signals = inputs["signals"]
    require_signals(signals, method, has_peers(inputs["rewards"].table))
    for name in sorted(method.needs):
        if not rows_left_out(signals.metadata, name):
            continue
        read_R = np.full(signals.table.num_rows, True)
        if name in selective_signals(method) and "rollouts" in inputs:
            read_R = read_rows(method, inputs, at.moment, at.longest)
        lacking = lacking_R(signals.table, name, read_R, method.told_by_peers).sum()
        if lacking:
            raise UserError(
                f"{signals.path}: {name} was scored where another method reads it, and {lacking} "
                f"completions are missing that {method.name} reads; run `castctl score --run "
                f"{signals.path.parent.parent} --method {method.name} --overwrite`"
            )


def _refuse_single_completions(rewards: Part, method: MethodSettings) -> None:
    rows = rewards.table.num_rows
    together = method.compares or method.told_by_peers
    if together and rows and rows == len(rewards.table["prompt_id"].unique()):
        raise UserError(
            f"{method.name} compares completions of one prompt, but every prompt of "
            f"{rewards.path} has one; roll out with -n 2 or more"
        )


def _loss_weights(
    inputs: dict[str, Part], read: StepSignals, method: MethodSettings, masks_N: NDArray[np.float64]
) -> NDArray[np.float64] | None:
    """Importance correction (N) between sampler and scorer, times the masks; None where neither
    has anything to say. Where the policy was not scored, the update corrects."""
    offsets = read.tokens.offsets
    corrected = None
    if method.correction.kind != "none" and "rollouts" in inputs:
        refuse_altered(
            inputs["rollouts"],
            "roll out without it, or set method.correction.kind=none to shape what nothing will "
            "train on",
        )
        sampler_N = sampler_logprobs(inputs["rollouts"], offsets)
        if sampler_N is None:
            log.warning(
                "%s has no sampler_logprobs: method.correction has nothing to read, and every "
                "token weighs 1", inputs["rollouts"].path.parent,
            )  # fmt: skip
        elif read.policy_N is not None:
            corrected = method.correction.corrected(read.policy_N, sampler_N, offsets)
    if corrected is None:
        return masks_N if (masks_N != 1).any() else None
    return masks_N * corrected.weights_N
