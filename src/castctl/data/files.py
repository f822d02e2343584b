"""Raw rows of a Parquet, JSONL, JSON or CSV file, as plain Python values.

Text may begin with a byte order mark, and be compressed by gzip or zstd as its name says.

Rows are read one by one as dictionaries, so that nested columns (message lists,
structs) need no special care later.
"""

from __future__ import annotations

import io
import json
from codecs import BOM_UTF8
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from castctl.errors import UserError, one_line
from castctl.files import regular

Row = dict[str, Any]

_KINDS = (".parquet", ".jsonl", ".json", ".csv")
_COMPRESSED = (".gz", ".zst")

SUFFIXES = (*_KINDS, *(kind + ending for ending in _COMPRESSED for kind in _KINDS[1:]))
"""What the name of a file of rows ends in."""

LONGEST_LINE = 2**28
"""Bytes of JSON in a line that are too many for one row."""

_BATCH_ROWS = 16384


@dataclass(frozen=True)
class Rows:
    """Rows nobody has interpreted yet."""

    columns: tuple[str, ...]
    """Column names; the fields of a struct column follow it as `column.field`."""
    read: Callable[[Collection[str]], Iterator[Row]]
    """Reads the rows in order; columns other than the ones asked for may be left out."""


def split_name(path: Path) -> tuple[str, str]:
    """A file's name without its ending, and the ending: `a.jsonl.gz` is `a` and `.jsonl.gz`."""
    double = "".join(path.suffixes[-2:])
    suffix = double if double in SUFFIXES else path.suffix
    return path.name.removesuffix(suffix), suffix


def read_file(path: Path) -> Rows:
    """Open a file of rows. Its text is UTF-8 and kept as it is, control characters included.

    Raises UserError for a missing file, an unknown kind and content that is not of its kind or
    compressed otherwise than the name says, half a surrogate pair (`"\\ud800"`) among it.
    """
    if path.is_dir():
        raise UserError(f"{path} is a folder; name one file in it")
    if not path.exists():
        raise UserError(f"no such file: {path}; check the path of the data")
    regular(path)
    try:
        match split_name(path)[1].split("."):
            case ["", "parquet"]:
                return _parquet(path)
            case ["", "csv", *_]:
                return table_rows(_csv(path))
            case ["", "jsonl" | "json", *_]:
                return _json_rows(_json(path))
    except (pa.ArrowException, OSError) as error:
        raise _unreadable(path, error) from error
    raise UserError(f"{path} is of no known kind; its name must end in {', '.join(_KINDS)}, "
                    f"and that of text may go on with {' or '.join(_COMPRESSED)}")  # fmt: skip


def table_rows(table: pa.Table) -> Rows:
    """The rows of an Arrow table."""
    names = set(table.column_names)

    def read(columns: Collection[str]) -> Iterator[Row]:
        whole = {name if name in names else name.split(".")[0] for name in columns}
        for batch in table.select(sorted(whole)).to_batches(_BATCH_ROWS):
            yield from batch.to_pylist()

    return Rows(column_names(table.schema), read)


def _parquet(path: Path) -> Rows:
    file = pq.ParquetFile(path)

    def read(columns: Collection[str]) -> Iterator[Row]:
        try:
            for batch in file.iter_batches(_BATCH_ROWS, columns=list(columns)):
                yield from batch.to_pylist()
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            raise _unreadable(path, error) from error

    return Rows(column_names(file.schema_arrow), read)


def column_names(schema: pa.Schema) -> tuple[str, ...]:
    """The columns of a schema, the fields of a struct column after it as `column.field`."""
    if twice := {name for name in schema.names if name and schema.names.count(name) > 1}:
        raise UserError(f"two columns are called {', '.join(sorted(twice))}; rename one of them")
    names = []
    for field in schema:
        names.append(field.name)
        if pa.types.is_struct(field.type):
            names += [f"{field.name}.{inner.name}" for inner in field.type]
    return tuple(names)


def _csv(path: Path) -> pa.Table:
    """Every cell as text: `007` and `2.0` are answers, not numbers."""
    parse = pa_csv.ParseOptions(newlines_in_values=True)
    with pa_csv.open_csv(path, parse_options=parse) as reader:
        types = dict.fromkeys(reader.schema.names, pa.string())
    convert = pa_csv.ConvertOptions(column_types=types)
    return pa_csv.read_csv(path, parse_options=parse, convert_options=convert)


def _json(path: Path) -> list[Row]:
    """JSON lines, or one array of objects, whichever the name says."""
    with io.BufferedReader(pa.input_stream(path)) as file:
        rows = _array(file.read(), path) if _begins_array(file) else _lines(file, path)
    return rows


def _begins_array(file: io.BufferedReader) -> bool:
    return file.peek(_BATCH_ROWS).removeprefix(BOM_UTF8).lstrip().startswith(b"[")


def _array(text: bytes, path: Path) -> list[Row]:
    try:
        rows: list[Row] = _parse_json(text.removeprefix(BOM_UTF8))
    except (ValueError, RecursionError) as error:
        raise _unreadable(path, error) from error
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict):
            raise UserError(f"{path}: entry {number} is not a JSON object; each must be one row")
    return rows


def _lines(file: io.BufferedReader, path: Path) -> list[Row]:
    rows = []
    for number, line in enumerate(iter(lambda: file.readline(LONGEST_LINE), b""), 1):
        if len(line) == LONGEST_LINE:  # packed, it may be a few kilobytes
            raise UserError(f"{path}, line {number}: longer than {LONGEST_LINE:,} bytes; cut it")
        text = line.removeprefix(BOM_UTF8)  # of any line, since files are joined
        if not text.strip():
            continue
        try:
            row = _parse_json(text)
        except (ValueError, RecursionError) as error:
            raise UserError(
                f"{path}, line {number}: not valid JSON ({one_line(error)}); mend the line"
            ) from error
        if not isinstance(row, dict):
            raise UserError(f"{path}, line {number}: not a JSON object; each line is one row")
        rows.append(row)
    return rows


def _parse_json(text: bytes) -> Any:
    """JSON with its numbers left as they were written, so that `2.0` stays `2.0`."""
    value = json.loads(text, parse_int=str, parse_float=str, parse_constant=lambda _: None)
    if b"\\u" in text or b"\xed" in text:
        # Half a surrogate pair is legal JSON but no text, and Python also takes its bytes;
        # encoding it raises a ValueError.
        json.dumps(value, ensure_ascii=False).encode()
    return value


def _json_rows(rows: list[Row]) -> Rows:
    names: dict[str, None] = {}
    for row in rows:
        for name, value in row.items():
            names.setdefault(name)
            if isinstance(value, dict):
                names.update(dict.fromkeys(f"{name}.{field}" for field in value))
    return Rows(tuple(names), lambda columns: iter(rows))


def _unreadable(path: Path, error: Exception) -> UserError:
    return UserError(
        f"{path} cannot be read as {split_name(path)[1]} ({one_line(error)}); mend the file"
    )
