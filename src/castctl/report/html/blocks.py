"""Completions as compressed bytes that a browser unpacks one block at a time.

A block is deflated (zlib). Inside stand four bytes, little-endian, with the length of a header,
the header (JSON in UTF-8), and one column after the other of N values, N being the block's tokens:
the token's place in the page's table of texts (uint32), the values of each quantity (float32), and
whether it was flipped (a byte). Columns of four bytes are stored byte by byte, the lowest byte of
every value first: neighbours in that order are alike, and compress well.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from castctl.ragged import Floats

LEVEL = 1
"""Of zlib: the values are noise to it, and a higher level takes three times as long for 3 %."""

KEPT_BITS = 10
"""Of a rounded value's mantissa: half a unit of the third digit, and no more."""


class TokenTable:
    """Numbers the token ids of a page in the order in which they first appear."""

    def __init__(self) -> None:
        self.places: dict[int, int] = {}

    def places_of(self, ids_N: NDArray[np.int32]) -> NDArray[np.uint32]:
        """Each token's place in the table, which grows by ids that are new."""
        encoded = pa.array(ids_N).dictionary_encode()
        places = self.places
        of_local = [places.setdefault(id, len(places)) for id in encoded.dictionary.to_pylist()]
        return np.array(of_local, np.uint32)[encoded.indices.to_numpy()]


class BlockWriter:
    """Packs blocks on several threads, in order."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(min(4, os.cpu_count() or 1))
        self._packed: list[Future[bytes]] = []

    def add(self, header: dict[str, Any], columns: Sequence[NDArray]) -> None:
        """One block: its header, and the columns after it."""
        self._packed.append(self._pool.submit(_pack, header, columns))

    def close(self) -> list[bytes]:
        """Every block, deflated."""
        with self._pool:
            return [each.result() for each in self._packed]


def _pack(header: dict[str, Any], columns: Sequence[NDArray]) -> bytes:
    said = json.dumps(header, allow_nan=False).encode()
    packer = zlib.compressobj(LEVEL)
    pieces = [packer.compress(len(said).to_bytes(4, "little") + said)]
    pieces += [packer.compress(_planes(column)) for column in columns]
    return b"".join([*pieces, packer.flush()])


def _planes(values_N: NDArray) -> bytes:
    """The lowest byte of every value, then the next lowest of every value, and so on."""
    width = values_N.dtype.itemsize
    little = values_N.astype(values_N.dtype.newbyteorder("<"), copy=False)
    return np.ascontiguousarray(little.view(np.uint8).reshape(-1, width).T).tobytes()


def rounded(values_N: Floats) -> NDArray[np.float32]:
    """Values as float32 with `KEPT_BITS` of their mantissa, rounded half up in size; what is not
    finite stays."""
    single = np.ascontiguousarray(values_N, np.float32)
    dropped = np.uint32(23 - KEPT_BITS)
    half, mask = np.uint32(1 << (dropped - 1)), np.uint32(0xFFFFFFFF >> dropped << dropped)
    shortened = ((single.view(np.uint32) + half) & mask).view(np.float32)
    return np.where(np.isfinite(single), shortened, single)
