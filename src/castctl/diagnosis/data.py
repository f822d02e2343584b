"""One step's shards as flat arrays, as the diagnostics read them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from castctl.errors import UserError, one_line
from castctl.methods.groups import Groups
from castctl.ragged import row_of_value
from castctl.shards.columns import nullable_floats, ragged_column
from castctl.shards.part import Metadata, Part
from castctl.shards.stage import StepFolder, check_aligned, joined
from castctl.stages.groups import reward_groups
from castctl.stages.measures import Slots, slots_of
from castctl.stages.shape import refuse_other_temperature
from castctl.stages.signals import StepSignals, read_signals

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]


@dataclass(frozen=True)
class ShapedTokens:
    """The `advantages/` of a step: `base_R` a completion, the rest a token; None where a column is
    empty."""

    base_R: Floats
    kept_R: Flags
    advantages_N: Floats
    weights_N: Floats | None
    flipped_N: Flags | None


@dataclass(frozen=True)
class StepData:
    """What the shards of one step say of its R completions and N tokens.

    `offsets` (R + 1) cuts the tokens into completions; log-probs, gaps and entropies are in nats.
    A completion without a reward is `known_R` false. `made` is the metadata of each stage's first
    part, without it where the part was made elsewhere; `slots` are those that shaped, by it.
    """

    step: int
    prompt_ids: list[str]
    samples_R: NDArray[np.int32]
    ids_N: NDArray[np.int32]
    offsets: NDArray[np.int64]
    verdict_R: NDArray[np.str_]
    groups: Groups
    signals: StepSignals | None
    entropies_N: Floats | None
    sampler_N: Floats | None
    shaped: ShapedTokens | None
    made: dict[str, Metadata]
    slots: Slots | None

    @property
    def correct_R(self) -> Flags:
        """Which completions have the verdict `correct`."""
        return np.equal(self.verdict_R, "correct")

    @property
    def known_R(self) -> Flags:
        """Which completions have a reward."""
        return self.groups.known_R

    @property
    def lengths_R(self) -> NDArray[np.int64]:
        """Tokens of each completion."""
        return np.diff(self.offsets)

    @property
    def row_N(self) -> NDArray[np.int64]:
        """For each token, its completion."""
        return row_of_value(self.offsets)

    @property
    def position_N(self) -> Floats:
        """Where in its completion a token stands, from 0 to 1: the middle of its own share."""
        lengths = np.repeat(self.lengths_R, self.lengths_R)
        index = np.arange(len(lengths)) - np.repeat(self.offsets[:-1], self.lengths_R)
        return (index + 0.5) / lengths


def read_step(
    folder: StepFolder, stages: Iterable[str], parts: Iterable[int], skip_tokens: int = 0
) -> StepData:
    """These parts of a step: `rollouts/`, `rewards/` and those other `stages` that are asked for;
    the gap of each completion's first `skip_tokens` is not heard.

    Raises `UserError` where parts are broken, contradict one another, or hold lists of other
    lengths than the completions.
    """
    wanted = list(dict.fromkeys(("rollouts", "rewards", *stages)))
    read = [_read_part(folder, wanted, part) for part in parts]
    tables = {stage: joined([each[stage] for each in read]) for stage in wanted}
    rollouts, rewards = tables["rollouts"], tables["rewards"]
    ids, offsets = ragged_column(rollouts, "completion_token_ids")
    try:
        made = {stage: read[0][stage].metadata or {} for stage in wanted}
        signals = _signals(folder, tables.get("signals"), made, offsets, skip_tokens)
        return StepData(
            step=folder.step,
            prompt_ids=rollouts["prompt_id"].to_pylist(),
            samples_R=rollouts["sample"].to_numpy(),
            ids_N=ids,
            offsets=offsets,
            verdict_R=np.array(rewards["verdict"].to_pylist(), np.str_),
            groups=reward_groups(rewards).correctness,
            signals=signals,
            entropies_N=None
            if signals is None
            else nullable_floats(tables["signals"], "entropies", offsets),
            sampler_N=nullable_floats(rollouts, "sampler_logprobs", offsets),
            shaped=_shaped(tables.get("advantages"), offsets),
            made=made,
            slots=slots_of(folder) if "advantages" in wanted else None,
        )
    except ValueError as error:
        raise UserError(
            f"{folder.path}: {one_line(error)}; castctl inspect {folder.path} --verify says where"
        ) from None


def _read_part(folder: StepFolder, stages: list[str], number: int) -> dict[str, Part]:
    parts = {stage: folder.read(stage, number) for stage in stages}
    for base in ("rollouts", "rewards", "signals"):
        later = [(stage, part) for stage, part in parts.items() if stage != base]
        if base in parts:
            check_aligned(parts[base], later, base)
    if "signals" in parts:
        refuse_other_temperature(parts["rollouts"], parts["signals"])
    return parts


def _signals(
    folder: StepFolder,
    table: pa.Table | None,
    made: dict[str, Metadata],
    offsets: NDArray[np.int64],
    skip_tokens: int,
) -> StepSignals | None:
    if table is None:
        return None
    part = Part(folder.stage_path("signals"), table, made["signals"])
    return read_signals(part, skip_tokens, offsets=offsets)


def _shaped(table: pa.Table | None, offsets: NDArray[np.int64]) -> ShapedTokens | None:
    if table is None:
        return None
    advantages = nullable_floats(table, "advantages", offsets)
    assert advantages is not None or not len(offsets), "advantages are never null"
    flipped = nullable_floats(table, "flipped", offsets)
    return ShapedTokens(
        base_R=table["base"].to_numpy().astype(np.float64),
        kept_R=table["kept"].to_numpy(zero_copy_only=False),
        advantages_N=np.zeros(0) if advantages is None else advantages,
        weights_N=nullable_floats(table, "weights", offsets),
        flipped_N=None if flipped is None else flipped == 1,
    )
