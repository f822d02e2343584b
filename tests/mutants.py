"""Files of a run, damaged: what a disk, a stranger's program or a mistake may make of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

METADATA_KEY = b"castctl"
Rng = np.random.Generator
Metadata = dict[str, Any]

TEXTS = ("", "\x00", "\x1b[2J[bold]", "\ud800", "x" * 100_000, "../..", "nan", "\u202e", "{{ 1 }}")
NUMBERS = (-1, 0, 10**6, 2**31 - 1, -(2**31))
FLOATS = (float("nan"), float("inf"), float("-inf"), -1e30, 3e38, 0.0)
WEIRD: tuple[Callable[[], Any], ...] = (
    lambda: None, lambda: -1, lambda: 1e308, lambda: float("nan"), lambda: True, lambda: 2**70,
    lambda: "x" * 100_000, lambda: [], lambda: {}, lambda: [[[]]], lambda: {"": {"": None}},
    lambda: ["a", 1], lambda: {"kind": "cast"}, lambda: {"kind": "?", "lam": "x"}, lambda: 0,
    lambda: "\ud800", lambda: nested(12), lambda: nested(200), lambda: 0.5, lambda: "foreign",
)  # fmt: skip
"""Values that no key of metadata expects."""


def nested(depth: int) -> Any:
    value: Any = {}
    for _ in range(depth):
        value = {"a": value}
    return value


def pick(rng: Rng, options: Any) -> Any:
    return options[int(rng.integers(len(options)))]


def mutate(path: Path, others: list[Path], rng: Rng) -> str:
    """Damage one Parquet file in place, which others must not share; in words, how."""
    kind = pick(rng, ("bytes", "table", "table", "table", "metadata", "metadata", "swap"))
    if kind == "bytes":
        return _bytes(path, rng)
    if kind == "swap":
        other = pick(rng, others)
        _replace(path, other.read_bytes())
        return f"{path.name} is {other.parent.name}/{other.name}"
    table = pq.read_table(path)
    raw = (table.schema.metadata or {}).get(METADATA_KEY, b"{}")
    said = {key: value for key, value in json.loads(raw).items() if key != "content"}
    if kind == "metadata":
        raw, how = _metadata(said, rng)
    else:
        table, how = _table(table, rng)
        raw = json.dumps(said).encode()
    foreign = kind == "table" and rng.random() < 0.5
    table = table.replace_schema_metadata(None if foreign else {METADATA_KEY: raw})
    path.unlink()
    pq.write_table(table, path)
    return f"{kind}: {how}{', made elsewhere' if foreign else ''}"


def _replace(path: Path, content: bytes | bytearray) -> None:
    path.unlink()
    path.write_bytes(content)


def _bytes(path: Path, rng: Rng) -> str:
    content = bytearray(path.read_bytes())
    at = int(rng.integers(len(content)))
    how = pick(rng, ("flip", "cut", "zeros", "more", "empty", "unsealed flip"))
    if how.endswith("flip"):
        if how == "unsealed flip":  # as in a file that nobody sealed
            pq.write_table(
                pq.read_table(path).replace_schema_metadata(None), path.with_suffix(".x")
            )
            content = bytearray(path.with_suffix(".x").read_bytes())
            path.with_suffix(".x").unlink()
            at = int(rng.integers(len(content)))
        content[at] ^= 1 << int(rng.integers(8))
    elif how == "cut":
        del content[at:]
    elif how == "zeros":
        content[at : at + 64] = bytes(len(content[at : at + 64]))
    elif how == "more":
        content += bytes(rng.integers(0, 256, 50, np.uint8))
    else:
        content = bytearray()
    _replace(path, content)
    return f"{how} at {at}"


def _metadata(said: Metadata, rng: Rng) -> tuple[bytes, str]:
    how = pick(rng, ("value", "value", "value", "inner", "inner", "gone", "new", "raw", "wide"))
    key = pick(rng, [*said, "stage", "inputs", "signals", "settings", "temperature", "step"])
    value = pick(rng, WEIRD)()
    if how == "raw":
        raw = pick(rng, (b"{", b"[" * 100_000, b"\xff", b'{"a": NaN}', b"1e999", b"9" * 5000,
                         b'{"schema": 1' + b" " * 2_000_000 + b"}", b'{"\\ud800": 1}'))  # fmt: skip
        return raw, f"raw {raw[:20]!r}"
    if how == "gone":
        said.pop(key, None)
    elif how == "new":
        said |= {pick(rng, TEXTS[:4]): value, "settings": {"shaping": value}}
    elif how == "wide":
        said |= {key: {str(n): n for n in range(5000)}}
    elif how == "inner" and isinstance(said.get(key), dict) and said[key]:
        inner = pick(rng, list(said[key]))
        if isinstance(said[key][inner], dict) and said[key][inner] and rng.random() < 0.7:
            deepest = pick(rng, list(said[key][inner]))
            said[key][inner][deepest] = value
            inner = f"{inner}.{deepest}"
        else:
            said[key][inner] = value
        key = f"{key}.{inner}"
    else:
        said[key] = value
    return json.dumps(said).encode(), f"{how} {key[:40]} = {repr(value)[:40]}"


def _table(table: pa.Table, rng: Rng) -> tuple[pa.Table, str]:
    names = table.column_names
    place = int(rng.integers(len(names)))
    name, column = names[place], table.column(place)
    how = pick(rng, ("drop", "twice", "rename", "null", "values", "values", "values", "values",
                     "lists", "lists", "lists", "type", "empty", "rows", "shuffle", "all null",
                     "huge"))  # fmt: skip
    try:
        changed = _changed(table, place, how, rng)
    except (pa.ArrowException, ValueError, TypeError, OverflowError):
        return table.drop_columns([name]), f"drop {name}"
    return changed, f"{how} {name} ({column.type})"


def _changed(table: pa.Table, place: int, how: str, rng: Rng) -> pa.Table:
    name, column, rows = table.column_names[place], table.column(place), table.num_rows
    if how == "drop":
        return table.drop_columns([name])
    if how == "twice":
        return table.append_column(name, column)
    if how == "rename":
        names = [*table.column_names]
        names[place] = pick(rng, ("x", names[place] + " ", "", names[place].upper()))
        return table.rename_columns(names)
    if how == "empty":
        return table.slice(0, 0)
    if how == "rows":
        return pick(rng, (table.slice(1), pa.concat_tables([table, table.slice(0, 1)]),
                          table.slice(0, 1)))  # fmt: skip
    if how == "shuffle":
        return table.take(rng.permutation(rows))
    values = column.to_pylist()
    if how == "type":
        made: Any = pick(rng, (
            lambda: pa.array([str(v) for v in values]), lambda: pa.array([[v] for v in values]),
            lambda: pa.array(range(rows)), lambda: pa.array([{"a": 1}] * rows),
            lambda: pa.nulls(rows), lambda: pa.array([b"\xff"] * rows),
            lambda: pa.array([True] * rows), lambda: pa.array([2**40] * rows),
            lambda: pa.array([0.5] * rows), lambda: pa.array([[[1]]] * rows),
            lambda: pa.array([[]] * rows), lambda: column.combine_chunks().dictionary_encode(),
        ))()  # fmt: skip
        return table.set_column(place, name, made)
    if how == "all null":
        return table.set_column(place, name, pa.nulls(rows, column.type))
    which = range(rows) if rng.random() < 0.3 else [int(rng.integers(rows))]
    for row in which:
        values[row] = None if how == "null" else _other(values[row], column.type, how, rng)
    return table.set_column(place, name, pa.array(values, column.type))


def _other(value: Any, kind: pa.DataType, how: str, rng: Rng) -> Any:
    if pa.types.is_list(kind):
        value = list(value or [])
        if pa.types.is_struct(kind.value_type):
            return [{"role": pick(rng, TEXTS[:4]), "content": pick(rng, TEXTS[:4])}]
        new = _other(None, kind.value_type, how, rng)
        if how == "huge":
            return [*value, *[new] * 20_000]
        if how == "values" and value:
            value[int(rng.integers(len(value)))] = new
            return value
        return pick(rng, (value[:-1], [*value, new], [], [None, *value[1:]], [new] * len(value)))
    if pa.types.is_string(kind):
        return pick(rng, (*TEXTS, "correct", "error", "length", "mixed")).encode(
            "utf-8", "replace").decode()  # fmt: skip
    if pa.types.is_boolean(kind):
        return pick(rng, (True, False, None))
    return pick(rng, FLOATS if pa.types.is_floating(kind) else NUMBERS)
