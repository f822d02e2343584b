"""A part's completions by prompt: their rewards, how they ended, and which of them are read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from castctl.errors import UserError
from castctl.methods import MethodSettings
from castctl.methods.advantages import Ending, based_R
from castctl.methods.groups import Groups, Weighed, group_rewards
from castctl.methods.schedule import Moment
from castctl.ragged import offsets_of
from castctl.shards.columns import completion_lengths, reward_values
from castctl.shards.part import Part
from castctl.shards.schema import REWARD, reward_weights


def reward_groups(rewards: pa.Table) -> Groups:
    """The groups of a rewards table, of several rewards with each; a null reward is not known."""
    of_row = group_numbers(rewards["prompt_id"])
    right_R = rewards["verdict"].to_numpy(zero_copy_only=False) == "correct"
    parts = {
        name: Weighed(weight, group_rewards(reward_values(rewards, REWARD + name), of_row, right_R))
        for name, weight in reward_weights(rewards.schema).items()
    }
    return replace(group_rewards(reward_values(rewards), of_row, right_R), parts=parts)


def group_numbers(prompt_ids: pa.ChunkedArray) -> NDArray[np.int64]:
    """For each row (R), the number of its prompt, from 0 in order of first appearance."""
    encoded = prompt_ids.combine_chunks().dictionary_encode()
    return encoded.indices.to_numpy().astype(np.int64)


def ending_of(
    inputs: Mapping[str, Part], method: MethodSettings, longest: int | None
) -> Ending | None:
    """How the completions ended, for a method that asks; `UserError` without rollouts."""
    if method.overlong.kind == "none":
        return None
    if "rollouts" not in inputs:
        raise UserError(
            f"method.overlong.kind={method.overlong.kind} reads how completions ended, but "
            f"{inputs['rewards'].path.parent.parent} has no rollouts; set it to none"
        )
    rollouts = inputs["rollouts"]
    sampled = (rollouts.metadata or {}).get("sampling", {}).get("max_tokens", longest)
    if sampled is None:
        raise UserError(f"{rollouts.path} does not say how long completions may be")
    reasons = np.array(rollouts.table["finish_reason"].to_pylist())
    return Ending(reasons == "length", int(sampled))


def read_rows(
    method: MethodSettings, inputs: Mapping[str, Part], moment: Moment, longest: int | None
) -> NDArray[np.bool_]:
    """The completions (R) of a part with `rollouts` and `rewards` that a method's shaping reads."""
    lengths_R = completion_lengths(inputs["rollouts"].table)
    assert lengths_R is not None, "what is scored has tokens"
    groups = reward_groups(inputs["rewards"].table)
    return based_R(
        method, groups, offsets_of(lengths_R), moment, ending_of(inputs, method, longest)
    )
