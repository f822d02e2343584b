"""Between Arrow columns and flat arrays with offsets."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from castctl.methods.groups import CORRECT
from castctl.ragged import offsets_of
from castctl.shards.schema import REWARD, reward_weights


def ragged_column(table: pa.Table, name: str) -> tuple[NDArray, NDArray[np.int64]]:
    """A list column without nulls as (flat, offsets)."""
    column = table[name].combine_chunks()
    lengths = column.value_lengths().to_numpy(zero_copy_only=False)
    return column.flatten().to_numpy(zero_copy_only=False), offsets_of(lengths)


def nullable_floats(
    table: pa.Table, name: str, offsets: NDArray[np.int64]
) -> NDArray[np.float64] | None:
    """A nullable float list column, flat by `offsets`; NaN where a row is null, None if all are.

    Raises `ValueError` where a row's length is not the one that `offsets` gives.
    """
    column = table[name].combine_chunks()
    if column.null_count == len(column):
        return None if len(column) else np.zeros(0)
    present = column.is_valid().to_numpy(zero_copy_only=False)
    lengths = np.diff(offsets)
    if (column.drop_null().value_lengths().to_numpy() != lengths[present]).any():
        raise ValueError(f"{name} has not one value a completion token")
    flat = np.full(offsets[-1], np.nan)
    flat[np.repeat(present, lengths)] = column.flatten().to_numpy(zero_copy_only=False)
    return flat


def correctness(rewards: pa.Table) -> NDArray[np.float64]:
    """The reward of each completion (R) by correctness alone, whatever else was rewarded; NaN where
    it is not known."""
    name = REWARD + CORRECT if reward_weights(rewards.schema) else "reward"
    return reward_values(rewards, name)


def reward_values(rewards: pa.Table, name: str = "reward") -> NDArray[np.float64]:
    """A column of rewards (R); NaN where one is not known."""
    values: NDArray[np.float64] = rewards[name].to_numpy(zero_copy_only=False).astype(np.float64)
    return values


def list_column(
    flat: NDArray | None,
    offsets: NDArray[np.int64],
    kind: pa.DataType,
    absent: NDArray[np.bool_] | None = None,
) -> pa.Array:
    """(flat, offsets) as a list column of `kind`; null where `absent`, or all if flat is None."""
    rows = len(offsets) - 1
    if flat is None:
        return pa.nulls(rows, pa.list_(kind))
    values = pa.array(flat, kind)
    mask = None if absent is None or not absent.any() else pa.array(absent)
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), values, mask=mask)


def has_tokens(rollouts: pa.Table) -> bool:
    """Whether completions have token ids; those that a server or a file gave have text alone."""
    lengths = rollouts["completion_token_ids"].combine_chunks().value_lengths()
    return bool(np.any(lengths))


def completion_lengths(rollouts: pa.Table) -> NDArray[np.int64] | None:
    """Tokens of each completion (R), by their ids or as a server counted them; None where one is
    not known."""
    if has_tokens(rollouts) or not rollouts.num_rows:
        lengths = rollouts["completion_token_ids"].combine_chunks().value_lengths()
        return lengths.to_numpy().astype(np.int64)
    counted = rollouts["token_count"]
    return None if counted.null_count else counted.to_numpy().astype(np.int64)
