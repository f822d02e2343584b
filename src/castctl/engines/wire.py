"""Messages of JSON and arrays over a pipe, without pickle: what arrives can only be data.

A message is a JSON header, then the bytes of each array in pieces, in order. Both sides run on one
machine.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

DTYPES = {
    name: np.dtype(name)
    for name in ("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64",
                 "float16", "float32", "float64")
}  # fmt: skip

MOST_HEADER_BYTES = 2**26
MOST_ARRAY_BYTES = 2**32
"""Longest header, and longest arrays of one message together."""

MOST_DIMENSIONS = 32

PIECE_BYTES = 2**18
"""Arrays travel in pieces: at every read `Connection` asks for memory for all that is to come, and
100 MB in one piece take several times as long."""


class Garbled(Exception):
    """What came is no message; nothing that follows on that pipe can be trusted."""


class Message(NamedTuple):
    """What one side tells the other."""

    kind: str
    facts: Mapping[str, Any] = {}
    """JSON values; tuples arrive as lists."""
    arrays: Mapping[str, NDArray[Any]] = {}
    """Arrays of a dtype in `DTYPES`, of any shape; they arrive writable, in native byte order."""


def send(connection: Connection, message: Message) -> None:
    """Send a message; waits for as long as the other side reads nothing and the pipe is full.

    Raises:
        TypeError: a fact is no JSON value, or an array has another dtype.
        ValueError: it is longer than a message may be.
        ConnectionError: the other side is gone.
    """
    for name, array in message.arrays.items():
        if array.dtype.name not in DTYPES:
            raise TypeError(f"the array {name!r} has dtype {array.dtype}, which no message holds")
    told = [[name, array.dtype.name, array.shape] for name, array in message.arrays.items()]
    header = json.dumps([message.kind, dict(message.facts), told]).encode()
    size = sum(array.nbytes for array in message.arrays.values())
    if len(header) > MOST_HEADER_BYTES or size > MOST_ARRAY_BYTES:
        raise ValueError(
            f"a message of {len(header):,} bytes and arrays of {size:,} is too long "
            f"(at most {MOST_HEADER_BYTES:,} and {MOST_ARRAY_BYTES:,})"
        )
    connection.send_bytes(header)
    for array in message.arrays.values():
        plain = np.asarray(array, DTYPES[array.dtype.name], order="C")
        content = plain.reshape(-1).view(np.uint8).data
        for start in range(0, len(content), PIECE_BYTES):
            connection.send_bytes(content[start : start + PIECE_BYTES])


def receive(connection: Connection) -> Message:
    """The next message; waits for it.

    Raises:
        EOFError: the other side is gone, in the middle of a message or between two.
        Garbled: what came is no message.
    """
    header = _receive_bytes(connection, MOST_HEADER_BYTES)
    try:
        kind, facts, told = json.loads(header)
        specifications = [(name, DTYPES[dtype], tuple(shape)) for name, dtype, shape in told]
        names = {name for name, _, _ in specifications}
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise Garbled("a header that cannot be read") from error
    if not (
        type(kind) is str
        and type(facts) is dict
        and len(names) == len(specifications)
        and all(type(name) is str for name in names)
        and all(_is_shape(shape) for _, _, shape in specifications)
    ):
        raise Garbled("a header of another form")
    sizes = [dtype.itemsize * math.prod(shape) for _, dtype, shape in specifications]
    if sum(sizes) > MOST_ARRAY_BYTES:
        raise Garbled(f"arrays of {sum(sizes):,} bytes")
    arrays = {}
    for (name, dtype, shape), size in zip(specifications, sizes, strict=True):
        content = bytearray()
        while len(content) < size:
            most = min(PIECE_BYTES, size - len(content))
            content += (piece := _receive_bytes(connection, most))
            if len(piece) != most:
                raise Garbled(f"a piece of {len(piece):,} bytes, not {most:,}")
        try:
            arrays[name] = np.frombuffer(content, dtype).reshape(shape)
        except ValueError as error:  # no elements, but more dimensions than memory could hold
            raise Garbled("an array of an impossible shape") from error
    return Message(kind, facts, arrays)


def _is_shape(shape: tuple[Any, ...]) -> bool:
    return len(shape) <= MOST_DIMENSIONS and all(
        type(length) is int and 0 <= length < 2**63 for length in shape
    )


def _receive_bytes(connection: Connection, most: int) -> bytes:
    try:
        return connection.recv_bytes(most)
    except OSError as error:
        # The standard library stops reading where a length is out of bounds.
        if connection.closed or not connection.readable:
            raise Garbled(f"more than {most:,} bytes") from error
        raise EOFError("the other side is gone") from error
