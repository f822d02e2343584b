"""One part: its metadata, its columns, its size."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq

from castctl.shards.part import Metadata, content_hash, read_part


@dataclass(frozen=True)
class ColumnView:
    """A column as it is in the file. `values` counts what its lists hold, None for no list;
    `known` is whether the stage's contract names it."""

    name: str
    type: str
    nulls: int
    values: int | None
    bytes: int
    known: bool


@dataclass(frozen=True)
class PartView:
    """`metadata` is None for a part made elsewhere; `hash` is the content hash that parts made
    from this one record."""

    path: Path
    stage: str
    rows: int
    bytes: int
    hash: str
    metadata: Metadata | None
    columns: list[ColumnView]
    missing: list[str]


def view_part(path: Path, stage: str) -> PartView:
    """A part that keeps the contract; `UserError` naming what is wrong with one that does not."""
    part = read_part(path, stage)
    with pq.ParquetFile(path) as file:
        table, header = file.read(), file.metadata
    sizes: dict[str, int] = defaultdict(int)
    for group in range(header.num_row_groups):
        for index in range(header.num_columns):
            column = header.row_group(group).column(index)
            sizes[column.path_in_schema.split(".")[0]] += column.total_compressed_size
    contract = part.table.schema.names
    columns = []
    for field, column in zip(table.schema, table.columns, strict=True):
        values = column.combine_chunks()
        listed = len(values.flatten()) if hasattr(values, "value_lengths") else None
        columns.append(
            ColumnView(
                name=field.name,
                type=str(field.type),
                nulls=values.null_count,
                values=listed,
                bytes=sizes[field.name],
                known=field.name in contract,
            )
        )
    return PartView(
        path=path,
        stage=stage,
        rows=table.num_rows,
        bytes=path.stat().st_size,
        hash=content_hash(part.table),
        metadata=part.metadata,
        columns=columns,
        missing=[name for name in contract if name not in table.column_names],
    )
