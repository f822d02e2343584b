"""A stage's contract: columns brought to its schema, and values refused that no stage makes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from castctl.errors import UserError, one_line
from castctl.methods.groups import CORRECT
from castctl.shards.schema import (
    KEYS,
    REWARD,
    SCHEMAS,
    TOKEN_LISTS,
    reward_weights,
    schema_of,
)


def conform(path: Path, stage: str, table: pa.Table) -> pa.Table:
    """The columns of `stage`, of its types, nullable ones that are missing as nulls.

    Raises `UserError` naming the part, the column and what is wrong: a type or a null that does not
    fit, a column or a key that repeats, lists of different lengths in a row, a reward that is no
    number, an answer's span that is none.
    """
    try:
        schema = schema_of(stage, table.schema)
    except ValueError as error:
        raise UserError(f"{path}: {error}; make the part again, or mend it") from None
    table = pa.table([_conform(path, stage, table, field) for field in schema], schema=schema)
    keys = table.select(KEYS[stage])
    if keys.group_by(KEYS[stage]).aggregate([]).num_rows != keys.num_rows:
        raise UserError(f"{path}: {' and '.join(KEYS[stage])} must be unique, but a key repeats")
    if wrong := _wrong_values(stage, table):
        raise UserError(f"{path}: {wrong}; make the part again, or mend it")
    return table


def token_counts(stage: str, table: pa.Table) -> NDArray[np.int64]:
    """How many tokens a row's lists are long (R), -1 where it has none.

    Raises `ValueError` where the lists of one row differ in length.
    """
    counts_R = np.full(table.num_rows, -1, np.int64)
    for name in TOKEN_LISTS.get(stage, ()):
        lengths = table[name].combine_chunks().value_lengths().fill_null(-1)
        lengths_R = lengths.to_numpy(zero_copy_only=False)
        if (both := (counts_R >= 0) & (lengths_R >= 0) & (counts_R != lengths_R)).any():
            row = int(np.argmax(both))
            raise ValueError(
                f"{name} has not one value a completion token (row {row}: {lengths_R[row]} beside "
                f"{counts_R[row]})"
            )
        counts_R = np.maximum(counts_R, lengths_R)
    return counts_R


def refuse_repeated(path: Path, names: list[str], name: str) -> None:
    """Raise `UserError` where more than one of a file's columns has this name."""
    if (there := names.count(name)) > 1:
        raise UserError(f"{path} has column {one_line(name, 40)} {there} times; keep one of them")


def conform_column(
    path: Path, stage: str, table: pa.Table, name: str
) -> pa.ChunkedArray | pa.Array:
    """One column of `stage`, as `conform` brings it to its type."""
    return _conform(path, stage, table, SCHEMAS[stage].field(name))


def _conform(
    path: Path, stage: str, table: pa.Table, field: pa.Field
) -> pa.ChunkedArray | pa.Array:
    name = field.name
    refuse_repeated(path, table.column_names, name)
    if name not in table.column_names:
        if not field.nullable:
            raise UserError(
                f"{path} lacks column {field.name} ({field.type}), which {stage} must have; "
                f"it has {one_line(', '.join(table.column_names), 200)}"
            )
        return pa.nulls(table.num_rows, field.type)
    try:
        column = table[field.name].cast(field.type)
    except pa.ArrowException:
        found = one_line(str(table[field.name].type), 100)
        raise UserError(
            f"{path}: column {field.name} must be {field.type}, found {found}"
        ) from None
    if not field.nullable and column.null_count:
        raise UserError(f"{path}: column {field.name} has {column.null_count} nulls")
    # A null among numbers says that there is none, as NaN does.
    if pa.types.is_list(field.type) and not pa.types.is_floating(field.type.value_type):
        inner = pc.list_flatten(column)
        if inner.null_count:
            what = " its token ids" if field.type == pa.list_(pa.int32()) else " the list's values"
            raise UserError(f"{path}: column {field.name} has nulls among{what}")
    return column


def _wrong_values(stage: str, table: pa.Table) -> str | None:
    try:
        token_counts(stage, table)
    except ValueError as error:
        return str(error)
    if stage != "rewards":
        return None
    rewards = table["reward"].drop_null()
    if not pc.all(pc.is_finite(rewards), min_count=0).as_py():
        return "a reward is neither finite nor null"
    if wrong := _wrong_sum(table):
        return wrong
    start, end = table["answer_start"], table["answer_end"]
    spans = pc.and_(pc.greater_equal(start, 0), pc.greater_equal(end, start))
    lone = pc.not_equal(start.is_valid(), end.is_valid())
    if pc.any(lone, min_count=0).as_py() or not pc.all(spans, min_count=0).as_py():
        return "answer_start and answer_end are no span of tokens"
    return None


def _wrong_sum(table: pa.Table) -> str | None:
    """What is wrong where `reward` is not the weighted sum of several, by float32."""
    weights = reward_weights(table.schema)
    if not weights:
        return None
    if CORRECT not in weights:
        return f"there are several rewards, and no {REWARD}{CORRECT} among them"
    total_R = table["reward"].to_numpy(zero_copy_only=False).astype(np.float64)
    terms = [
        weight * table[REWARD + name].to_numpy(zero_copy_only=False).astype(np.float64)
        for name, weight in weights.items()
    ]
    if any((np.isnan(term) != np.isnan(total_R)).any() for term in terms):
        return "a reward of several is null where their sum is not, or the other way round"
    known = ~np.isnan(total_R)
    off_R = np.abs(total_R - np.sum(terms, axis=0))[known]
    size_R = np.sum(np.abs(terms), axis=0)[known]
    return (
        "reward is not the weighted sum of the others"
        if (off_R > 1e-6 * size_R + 1e-30).any()
        else None
    )
