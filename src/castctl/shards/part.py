"""One Parquet part: written whole or not at all, read only when it keeps the contract."""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import json
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, is_dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from castctl.errors import UserError, one_line
from castctl.files import read_text, regular
from castctl.shards.contract import conform, conform_column, refuse_repeated
from castctl.shards.drafts import drafted_file
from castctl.shards.metadata import METADATA_KEY, Metadata, parse_metadata
from castctl.shards.schema import SCHEMAS, VERSION, schema_of
from castctl.shards.seal import is_whole, sealed

MAY_BE_ABSENT = ("earlier", "token_count", "teacher_peer")
"""Columns that say nothing where they are null in every row."""


@dataclass(frozen=True)
class Part:
    """A part's rows and what its file says of their making; None for a part made elsewhere."""

    path: Path
    table: pa.Table
    metadata: Metadata | None


def write_part(path: Path, stage: str, table: pa.Table, metadata: Metadata) -> None:
    """Write a part atomically, cast to the stage's schema; nullable columns that the table has not
    are nulls."""
    schema = schema_of(stage, table.schema)
    for field in schema:
        if field.nullable and field.name not in table.column_names:
            table = table.append_column(field, pa.nulls(table.num_rows, field.type))
    table = table.select(schema.names).cast(schema)
    # Tokens and log-probs hardly repeat: a dictionary of them takes six times as long.
    texts = [field.name for field in schema if pa.types.is_string(field.type)]
    write_table(path, stage, table, metadata, texts)


def write_table(
    path: Path, kind: str, table: pa.Table, metadata: Metadata, dictionaries: Sequence[str] = ()
) -> None:
    """Write a table atomically into a file that says what it is, what made it and what it holds,
    and that tells by its seal whether it is still the same."""
    stamped = {"schema": VERSION, "stage": kind, **metadata, "content": content_hash(table)}
    table = table.replace_schema_metadata(
        {METADATA_KEY: json.dumps(stamped, sort_keys=True).encode()}
    )
    with atomic_file(path) as stream:
        stream.write(sealed(table, dictionaries))


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


def read_json(path: Path, remedy: str = "delete it and make it again") -> dict[str, Any]:
    """A JSON object from a file; `UserError` with the `remedy` where it is none."""
    try:
        value = json.loads(read_text(path))
        if isinstance(value, dict):
            return value
        error: Exception = TypeError(f"found {type(value).__name__}")
    except (OSError, ValueError, RecursionError) as found:
        error = found
    raise UserError(f"{path} is no JSON object ({one_line(error)}); {remedy}")


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
    with _reading(path):
        schema = pq.read_schema(regular(path))
    return _metadata_in(path, stage, schema)


def count_rows(path: Path) -> int:
    """Rows of a part by its header; `UserError` on a broken part."""
    with _reading(path):
        return pq.read_metadata(regular(path)).num_rows


def count_values(path: Path, column: str) -> int:
    """Values in a list column of a part, by its header; `UserError` on a broken part."""
    with _reading(path):
        header = pq.read_metadata(regular(path))
        groups = (header.row_group(number) for number in range(header.num_row_groups))
        columns = (group.column(n) for group in groups for n in range(group.num_columns))
        return sum(c.num_values for c in columns if c.path_in_schema.startswith(f"{column}."))


def read_column(path: Path, stage: str, name: str) -> pa.ChunkedArray | pa.Array:
    """One column of a part alone; `UserError` where it breaks the contract."""
    with _reading(path), pq.ParquetFile(regular(path), page_checksum_verification=True) as file:
        table = file.read(columns=[name])
    return conform_column(path, stage, table, name)


def read_part(path: Path, stage: str) -> Part:
    """Read a part and check it against the contract.

    Columns beyond the contract are ignored, nullable ones that are missing are null, and
    wider types are cast. Raises `UserError` naming the part and what is wrong with it.
    """
    table, metadata = read_table(path, stage)
    return Part(path, conform(path, stage, table), metadata)


def read_table(
    path: Path, kind: str, remedy: str = "delete it and make it again"
) -> tuple[pa.Table, Metadata | None]:
    """The table of a file as it is, and its metadata, None for a file made elsewhere.

    Every byte is compared with the file's seal, where it has one. Raises `UserError` for a file
    that is broken or not what it says, with the `remedy`.
    """
    with _reading(path, remedy):
        # Arrow's own memory: its threads may let go of it when Python has none left to be told.
        with pa.OSFile(str(regular(path))) as stream:
            content = stream.read_buffer()
        whole = is_whole(content)
        if whole is False:
            raise _changed(path, remedy)
        with pq.ParquetFile(pa.BufferReader(content), page_checksum_verification=True) as file:
            schema = file.schema_arrow
            table = file.read()
        table.validate(full=True)
        for name in table.column_names if kind not in SCHEMAS else ():  # parts have a contract
            refuse_repeated(path, table.column_names, name)
    metadata = _metadata_in(path, kind, schema)
    if whole is None and "content" in (metadata or {}):  # it was written with a seal
        raise _changed(path, remedy)
    return table, metadata


def _metadata_in(path: Path, stage: str, schema: pa.Schema) -> Metadata | None:
    raw = (schema.metadata or {}).get(METADATA_KEY)
    if raw is None:
        return None
    try:
        metadata = parse_metadata(raw)
    except ValueError as error:
        raise UserError(f"{path}: its castctl metadata {error}; make the part again") from None
    if metadata.get("schema") != VERSION:
        raise UserError(
            f"{path} has schema version {one_line(str(metadata.get('schema')), 40)}, this castctl "
            f"reads {VERSION}; make it again or use the castctl that wrote it"
        )
    if metadata.get("stage") != stage:
        said = one_line(str(metadata.get("stage")), 40)
        raise UserError(f"{path} is a part of {said}, not of {stage}")
    return metadata


@contextlib.contextmanager
def _reading(path: Path, remedy: str = "delete it and make it again") -> Iterator[None]:
    """Tell what goes wrong in reading a file as a `UserError`, by whose fault it is."""
    try:
        yield
    except FileNotFoundError:
        raise UserError(f"there is no part {path}") from None
    except MemoryError:
        size = path.stat().st_size / 1e6
        raise UserError(
            f"not enough memory to read {path} ({size:,.1f} MB on disk): free some, or make parts "
            "smaller with train.part_size; castctl inspect --verify says whether it is damaged"
        ) from None
    except (pa.ArrowException, OSError, ValueError, KeyError, IndexError, OverflowError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise UserError(f"cannot read {path}: {error.strerror}") from None
        raise UserError(
            f"{path} is cut short, damaged or no Parquet file ({one_line(error, 160)}); {remedy}"
        ) from None


def _changed(path: Path, remedy: str) -> UserError:
    return UserError(
        f"{path} is cut short, damaged or changed by another program: its bytes are not those "
        f"that castctl wrote; {remedy}"
    )


def content_hash(table: pa.Table) -> str:
    """Sixteen hex digits over a table's values; `seconds`, a column of `MAY_BE_ABSENT` with nothing
    in it, and the storage layout do not count."""
    digest = hashlib.sha256(f"{table.num_rows} rows;".encode())
    for name in table.column_names:
        absent = name in MAY_BE_ABSENT and table[name].null_count == table.num_rows
        if name == "seconds" or absent:
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
