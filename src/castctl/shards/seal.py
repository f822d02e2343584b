"""Tables as Parquet bytes that tell whether any bit of them has changed since."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

KEY = b"castctl.sha256"
"""The file's key-value entry with 64 hex digits: SHA-256 of the file with zeros in their place."""

_BLANK = b"0" * 64
_FOOTER = 2**22
"""The digest stands among the last bytes of a file: its metadata, of at most 2**20 bytes, is there
twice, once in base64."""
_MARK = KEY + b"\x18\x40"
"""As Thrift's compact protocol writes the entry: a field of text follows, 64 bytes long."""


def sealed(table: pa.Table, dictionaries: Sequence[str]) -> bytearray:
    """A table as a Parquet file with checksums of its pages and a digest of all its bytes; the
    columns `dictionaries` are written as such."""
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(
        sink, table.schema, compression="zstd", use_dictionary=list(dictionaries),
        write_page_checksum=True,
    ) as writer:  # fmt: skip
        writer.write_table(table)
        writer.add_key_value_metadata({KEY.decode(): _BLANK.decode()})
    content = bytearray(sink.getvalue())
    place = _place(content)
    assert place is not None, "the footer holds what was added to it"
    content[place : place + len(_BLANK)] = _digest(content, place)
    return content


def is_whole(content: pa.Buffer) -> bool | None:
    """Whether the bytes of a file are those that `sealed` made; None where they carry no digest."""
    view = memoryview(content)
    start = max(0, len(view) - _FOOTER)
    place = _place(view[start:].tobytes())
    if place is None:
        return None
    place += start
    return view[place : place + len(_BLANK)].tobytes() == _digest(view, place)


def digests_of(folder: Path) -> dict[str, str]:
    """SHA-256 of each file below a folder, by its path there; files are read side by side."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:  # hashing leaves Python's lock
        digests = list(pool.map(_file_digest, files))
    names = [file.relative_to(folder).as_posix() for file in files]
    return dict(zip(names, digests, strict=True))


def _file_digest(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _place(content: bytes | bytearray) -> int | None:
    """Where the digits stand: the footer is a file's end."""
    mark = content.rfind(_MARK)
    return None if mark < 0 else mark + len(_MARK)


def _digest(content: bytearray | memoryview, place: int) -> bytes:
    view = memoryview(content)
    digest = hashlib.sha256(view[:place])
    digest.update(_BLANK)
    digest.update(view[place + len(_BLANK) :])
    return digest.hexdigest().encode()
