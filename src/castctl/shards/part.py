"""One Parquet part: written whole or not at all, read only when it keeps the contract."""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import json
import math
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, is_dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from castctl.errors import UserError, one_line
from castctl.files import read_text, regular
from castctl.shards.drafts import drafted_file
from castctl.shards.schema import KEYS, SCHEMAS, VERSION

METADATA_KEY = b"castctl"
Metadata = dict[str, Any]


@dataclass(frozen=True)
class Part:
    """A part's rows and what its file says of their making; None for a part made elsewhere."""

    path: Path
    table: pa.Table
    metadata: Metadata | None


def write_part(path: Path, stage: str, table: pa.Table, metadata: Metadata) -> None:
    """Write a part atomically, cast to the stage's schema."""
    schema = SCHEMAS[stage]
    stamped = {"schema": VERSION, "stage": stage, **metadata}
    table = table.select(schema.names).cast(schema)
    table = table.replace_schema_metadata(
        {METADATA_KEY: json.dumps(stamped, sort_keys=True).encode()}
    )
    texts = [field.name for field in schema if pa.types.is_string(field.type)]
    with atomic_file(path) as stream:
        # Tokens and log-probs hardly repeat: a dictionary of them takes six times as long.
        pq.write_table(table, stream, compression="zstd", use_dictionary=texts)


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """A binary file that appears at `path` only once it is complete and on the disk.

    Raises `UserError` where the disk is full or the folder cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with drafted_file(path) as (stream, draft):
            os.fchmod(stream.fileno(), 0o666 & ~_umask())  # mkstemp's files are private
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
            draft.replace(path)  # open still: its lock ends when it is closed
        sync_folder(path.parent)
    except OSError as error:
        raise UserError(
            f"cannot write {path}: {error.strerror or error}; is the folder writable?"
        ) from error


def _umask() -> int:
    mask = os.umask(0)  # there is no way to read it but to set it
    os.umask(mask)
    return mask


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    with atomic_file(path) as stream:
        stream.write(text.encode("utf-8"))


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file atomically."""
    write_text(path, json.dumps(plain(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def plain(value: Any) -> Any:
    """What JSON can hold of a value: dataclasses as objects, null for what it has no number for."""
    if is_dataclass(value) and not isinstance(value, type):
        return plain(asdict(value))
    if isinstance(value, dict):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if isinstance(value, Path | datetime.date) else value


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file; `UserError` where it is none."""
    try:
        value = json.loads(read_text(path))
        if isinstance(value, dict):
            return value
        error: Exception = TypeError(f"found {type(value).__name__}")
    except (OSError, ValueError, RecursionError) as found:
        error = found
    raise UserError(f"{path} is no JSON object ({one_line(error)}); delete it and make it again")


def sync_folder(folder: Path) -> None:
    """Bring a folder's entries, or a file, to the disk, so that a rename survives a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_tree(folder: Path) -> None:
    """Bring every file below a folder to the disk, and the folders' entries."""
    for path in folder.rglob("*"):
        sync_folder(path)
    sync_folder(folder)


def read_metadata(path: Path, stage: str) -> Metadata | None:
    """A part's metadata, None for a part made elsewhere; raises `UserError` on a broken part."""
    try:
        schema = pq.read_schema(regular(path))
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise _unreadable(path, error) from None
    return _metadata_in(path, stage, schema)


def _metadata_in(path: Path, stage: str, schema: pa.Schema) -> Metadata | None:
    raw = (schema.metadata or {}).get(METADATA_KEY)
    if raw is None:
        return None
    try:
        metadata = dict(json.loads(raw))
    except (ValueError, TypeError):
        raise UserError(
            f"{path}: its castctl metadata is no JSON object; make the part again"
        ) from None
    if metadata.get("schema") != VERSION:
        raise UserError(
            f"{path} has schema version {metadata.get('schema')}, this castctl reads {VERSION}; "
            "make it again or use the castctl that wrote it"
        )
    if metadata.get("stage") != stage:
        raise UserError(f"{path} is a part of {metadata.get('stage')}, not of {stage}")
    return metadata


def count_rows(path: Path) -> int:
    """Rows of a part by its header; `UserError` on a broken part."""
    try:
        return pq.read_metadata(regular(path)).num_rows
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise _unreadable(path, error) from None


def read_part(path: Path, stage: str) -> Part:
    """Read a part and check it against the contract.

    Columns beyond the contract are ignored, nullable ones that are missing are null, and
    wider types are cast. Raises `UserError` naming the part and what is wrong with it.
    """
    try:
        with pq.ParquetFile(regular(path)) as file:
            metadata = _metadata_in(path, stage, file.schema_arrow)
            table = file.read()
        table.validate(full=True)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise _unreadable(path, error) from None
    table = _conform(path, stage, table)
    keys = table.select(KEYS[stage])
    if keys.group_by(KEYS[stage]).aggregate([]).num_rows != keys.num_rows:
        raise UserError(f"{path}: {' and '.join(KEYS[stage])} must be unique, but a key repeats")
    return Part(path, table, metadata)


def _conform(path: Path, stage: str, table: pa.Table) -> pa.Table:
    columns = []
    for field in SCHEMAS[stage]:
        if field.name not in table.column_names:
            if not field.nullable:
                raise UserError(
                    f"{path} lacks column {field.name} ({field.type}), which {stage} must have; "
                    f"it has {', '.join(table.column_names)}"
                )
            columns.append(pa.nulls(table.num_rows, field.type))
            continue
        try:
            column = table[field.name].cast(field.type)
        except pa.ArrowException:
            found = table[field.name].type
            raise UserError(
                f"{path}: column {field.name} must be {field.type}, found {found}"
            ) from None
        if not field.nullable and column.null_count:
            raise UserError(f"{path}: column {field.name} has {column.null_count} nulls")
        if field.type == pa.list_(pa.int32()) and pc.list_flatten(column).null_count:
            raise UserError(f"{path}: column {field.name} has nulls among its token ids")
        columns.append(column)
    return pa.table(columns, schema=SCHEMAS[stage])


def content_hash(table: pa.Table) -> str:
    """Sixteen hex digits over a table's values; `seconds`, `earlier` without a message in it, and
    the storage layout do not count."""
    digest = hashlib.sha256(f"{table.num_rows} rows;".encode())
    for name in table.column_names:
        if name == "seconds" or (name == "earlier" and table[name].null_count == table.num_rows):
            continue
        digest.update(f"{name}:{table.schema.field(name).type};".encode())
        _hash_array(digest, table[name])
    return digest.hexdigest()[:16]


def _hash_array(digest: Any, column: pa.ChunkedArray | pa.Array) -> None:
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
    digest.update(np.packbits(column.is_valid().to_numpy(zero_copy_only=False)).tobytes())
    present = column.drop_null()
    if pa.types.is_list(present.type):
        digest.update(pc.list_value_length(present).to_numpy(zero_copy_only=False).tobytes())
        _hash_array(digest, present.flatten())
    elif pa.types.is_struct(present.type):
        for values in present.flatten():
            _hash_array(digest, values)
    elif pa.types.is_string(present.type):
        encoded = [text.encode() for text in present.to_pylist()]
        digest.update(np.array([len(text) for text in encoded], np.int64).tobytes())
        digest.update(b"".join(encoded))
    else:
        digest.update(np.ascontiguousarray(present.to_numpy(zero_copy_only=False)).tobytes())


def _unreadable(path: Path, error: Exception) -> UserError:
    if not path.exists():
        return UserError(f"there is no part {path}")
    return UserError(
        f"{path} is cut short or no Parquet file ({one_line(error, 160)}); delete it and "
        "make it again"
    )
