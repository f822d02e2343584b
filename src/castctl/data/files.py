"""Raw rows of a Parquet, JSONL, JSON or CSV file, as plain Python values.

Rows are read one by one as dictionaries, so that nested columns (message lists,
structs) need no special care later.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from castctl.errors import UserError, one_line

Row = dict[str, Any]

SUFFIXES = (".parquet", ".jsonl", ".json", ".csv")

_BATCH_ROWS = 16384


@dataclass(frozen=True)
class Rows:
    """Rows nobody has interpreted yet."""

    columns: tuple[str, ...]
    """Column names; the fields of a struct column follow it as `column.field`."""
    read: Callable[[Collection[str]], Iterator[Row]]
    """Reads the rows in order; columns other than the ones asked for may be left out."""


def read_file(path: Path) -> Rows:
    """Open a file of rows. Its text is UTF-8 and kept as it is, control characters included.

    Raises UserError for a missing file, an unknown kind and content that is not of its kind,
    half a surrogate pair (`"\\ud800"`) among it.
    """
    if path.is_dir():
        raise UserError(f"{path} is a folder; name one file in it")
    if not path.exists():
        raise UserError(f"no such file: {path}; check the path of the data")
    try:
        match path.suffix:
            case ".parquet":
                return _parquet(path)
            case ".csv":
                return table_rows(_csv(path))
            case ".jsonl":
                return _json_rows(_json_lines(path))
            case ".json":
                return _json_rows(_json(path))
    except (pa.ArrowException, OSError) as error:
        raise _unreadable(path, error) from error
    raise UserError(f"{path} is of no known kind; its name must end in {', '.join(SUFFIXES)}")


def table_rows(table: pa.Table) -> Rows:
    """The rows of an Arrow table."""
    names = set(table.column_names)

    def read(columns: Collection[str]) -> Iterator[Row]:
        whole = {name if name in names else name.split(".")[0] for name in columns}
        for batch in table.select(sorted(whole)).to_batches(_BATCH_ROWS):
            yield from batch.to_pylist()

    return Rows(_column_names(table.schema), read)


def _parquet(path: Path) -> Rows:
    file = pq.ParquetFile(path)

    def read(columns: Collection[str]) -> Iterator[Row]:
        try:
            for batch in file.iter_batches(_BATCH_ROWS, columns=list(columns)):
                yield from batch.to_pylist()
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            raise _unreadable(path, error) from error

    return Rows(_column_names(file.schema_arrow), read)


def _column_names(schema: pa.Schema) -> tuple[str, ...]:
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
    """A JSON array of objects; anything else is taken for JSON lines."""
    text = path.read_bytes()
    if not text.lstrip().startswith(b"["):
        return _json_lines(path)
    try:
        rows = _parse_json(text)
    except (ValueError, RecursionError) as error:
        raise _unreadable(path, error) from error
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict):
            raise UserError(f"{path}: entry {number} is not a JSON object; each must be one row")
    return rows


def _json_lines(path: Path) -> list[Row]:
    rows = []
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = _parse_json(line)
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
    return UserError(f"{path} cannot be read as {path.suffix} ({one_line(error)}); mend the file")
