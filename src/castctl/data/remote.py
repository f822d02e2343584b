"""Rows of Parquet files on the hub, read where they are: of the columns asked for, and row group by
row group, as far as somebody reads."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from castctl.data.files import Row, Rows, column_names
from castctl.errors import UserError, one_line

BLOCK = 2**18
"""Bytes that are asked for at once beyond those that are needed."""

BATCH_ROWS = 1024


def remote_files(builder: Any) -> dict[str, list[str]]:
    """The Parquet files of each split, by their address on the hub; nothing where data is of
    another kind, where the hub may not be asked, and where the cache has it all already.

    `builder` is a `datasets.DatasetBuilder`.
    """
    from huggingface_hub.constants import is_offline_mode

    files = {str(split): list(map(str, names)) for split, names in
             (builder.config.data_files or {}).items()}  # fmt: skip
    alike = all(name.startswith("hf://") and name.endswith(".parquet")
                for names in files.values() for name in names)  # fmt: skip
    return files if alike and not is_offline_mode() and not os.path.isdir(builder.cache_dir) else {}


def remote_rows(name: str, files: Sequence[str]) -> Rows:
    """The rows of a data set's files, in their order. `UserError` where they cannot be read."""
    from huggingface_hub import HfFileSystem
    from huggingface_hub.errors import HTTPError

    hub = HfFileSystem()

    def opened(file: str) -> pq.ParquetFile:
        return pq.ParquetFile(hub.open(file, block_size=BLOCK))

    def broken(error: Exception) -> UserError:
        return UserError(
            f"data set {name} broke off while it was read ({one_line(error)}); start again, or "
            "leave the limit out to fetch it whole"
        )

    def read(columns: Collection[str]) -> Iterator[Row]:
        try:
            for file in files:
                for batch in opened(file).iter_batches(BATCH_ROWS, columns=list(columns)):
                    yield from batch.to_pylist()
        except (HTTPError, OSError, pa.ArrowException) as error:
            raise broken(error) from error

    try:
        return Rows(column_names(opened(files[0]).schema_arrow), read)
    except (HTTPError, OSError, pa.ArrowException) as error:
        raise broken(error) from error
