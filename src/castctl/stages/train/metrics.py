"""`metrics.parquet`: one row a step, rewritten whole and renamed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa

from castctl.shards.part import read_table, write_table

Row = dict[str, Any]


KIND = "metrics"
REMEDY = "move it away to go on without the steps before"


class Metrics:
    """The rows so far; columns are the union of what the rows hold."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: list[Row] = (
            read_table(path, KIND, REMEDY)[0].to_pylist() if path.exists() else []
        )

    def rewind(self, step: int) -> None:
        """Forget the rows of `step` and later, which are about to be made again."""
        self.rows = [row for row in self.rows if row["step"] < step]

    def append(self, row: Row) -> None:
        """Add a step's row and write the file."""
        self.rows.append(row)
        names = list(dict.fromkeys(name for each in self.rows for name in each))
        columns = {name: [each.get(name) for each in self.rows] for name in names}
        write_table(self.path, KIND, pa.table(columns), {})
