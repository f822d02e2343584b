"""`metrics.parquet`: one row a step, rewritten whole and renamed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from castctl.errors import UserError, one_line
from castctl.files import regular
from castctl.shards.part import atomic_file

Row = dict[str, Any]


def _read(path: Path) -> list[Row]:
    try:
        return pq.read_table(regular(path)).to_pylist()
    except (pa.ArrowException, OSError) as error:
        raise UserError(
            f"{path} cannot be read ({one_line(error)}); move it away to go on without the "
            "steps before"
        ) from None


class Metrics:
    """The rows so far; columns are the union of what the rows hold."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: list[Row] = _read(path) if path.exists() else []

    def rewind(self, step: int) -> None:
        """Forget the rows of `step` and later, which are about to be made again."""
        self.rows = [row for row in self.rows if row["step"] < step]

    def append(self, row: Row) -> None:
        """Add a step's row and write the file."""
        self.rows.append(row)
        names = list(dict.fromkeys(name for each in self.rows for name in each))
        columns = {name: [each.get(name) for each in self.rows] for name in names}
        with atomic_file(self.path) as stream:
            pq.write_table(pa.table(columns), stream)
