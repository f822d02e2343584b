"""Messages between processes: what is sent arrives, and what is no message is refused."""

from __future__ import annotations

import contextlib
import json
import os
import struct
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from castctl.engines import wire
from castctl.engines.wire import Garbled, Message, receive, send

DTYPES = st.one_of(
    hnp.boolean_dtypes(),
    hnp.integer_dtypes(endianness="?"),
    hnp.unsigned_integer_dtypes(endianness="?"),
    hnp.floating_dtypes(endianness="?", sizes=(16, 32, 64)),
)
SHAPES = hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda values: st.lists(values) | st.dictionaries(st.text(), values),
    max_leaves=10,
)


@pytest.fixture
def pipe() -> Iterator[tuple[Connection, Connection]]:
    ours, theirs = Pipe()
    with ours, theirs:
        yield ours, theirs


@given(
    st.text(),
    st.dictionaries(st.text(), JSON),
    st.dictionaries(st.text(), hnp.arrays(DTYPES, SHAPES), max_size=4),
    st.sampled_from([lambda array: array, np.transpose, np.flip]),
)
def test_a_message_arrives_as_it_was_sent(
    kind: str, facts: dict[str, Any], arrays: dict[str, np.ndarray], view: Callable
) -> None:
    arrays = {name: view(array) for name, array in arrays.items()}
    ours, theirs = Pipe()
    with ours, theirs:
        for _ in range(2):  # the first leaves nothing behind
            send(ours, Message(kind, facts, arrays))
            got = receive(theirs)
            assert (got.kind, got.facts, list(got.arrays)) == (kind, facts, list(arrays))
            for name, array in arrays.items():
                arrived = got.arrays[name]
                assert arrived.dtype == array.dtype.newbyteorder("=")
                assert arrived.dtype.isnative and arrived.flags.writeable
                assert arrived.shape == array.shape
                assert np.array_equal(arrived, array, equal_nan=array.dtype.kind == "f")


@pytest.mark.parametrize("size", [2**18 - 1, 2**18, 2**18 + 1, 3 * 2**18])
def test_long_arrays_arrive_whole(pipe: tuple[Connection, Connection], size: int) -> None:
    ours, theirs = pipe
    array = np.random.default_rng(size).integers(0, 256, size, dtype=np.uint8)
    arrays = {"first": array, "empty": array[:0], "second": array[::-1]}

    def begin() -> None:
        with ours:
            send(ours, Message("long", arrays=arrays))

    sender = threading.Thread(target=begin)
    sender.start()
    got = receive(theirs).arrays
    sender.join()
    assert all(np.array_equal(got[name], arrays[name]) for name in arrays)


@pytest.mark.parametrize(
    "message",
    [
        Message("complex", arrays={"a": np.zeros(2, np.complex64)}),
        Message("object", arrays={"a": np.array([print])}),
        Message("text", arrays={"a": np.array(["a"])}),
        Message("time", arrays={"a": np.zeros(1, "datetime64[s]")}),
        Message("fields", arrays={"a": np.zeros(1, [("x", "i4")])}),
        Message("facts", {"path": os}),
        Message("number", {"numpy": np.int64(1)}),
    ],
    ids=lambda message: message.kind,
)
def test_what_is_no_data_is_not_sent(pipe: tuple[Connection, Connection], message: Message) -> None:
    ours, theirs = pipe
    with pytest.raises(TypeError):
        send(ours, message)
    assert not theirs.poll()


def test_a_message_that_is_too_long_is_not_sent(
    pipe: tuple[Connection, Connection], monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, theirs = pipe
    monkeypatch.setattr(wire, "MOST_HEADER_BYTES", 2**10)
    for message in (
        Message("facts", {"text": "a" * 2**10}),
        Message("arrays", arrays={"a": np.broadcast_to(np.zeros(2**20, "u1"), (2**13, 2**20))}),
    ):
        with pytest.raises(ValueError, match="too long"):
            send(ours, message)
    assert not theirs.poll()


def header(*specifications: Any, kind: Any = "kind", facts: Any = None) -> bytes:
    return json.dumps([kind, {} if facts is None else facts, list(specifications)]).encode()


GARBLED = {
    "nothing": b"",
    "text": b"INFO vLLM is starting",
    "binary": b"\xff\xfe\x00\x80",
    "deep": b"[" * 100_000,
    "long number": b"9" * 10_000,
    "number": b"1",
    "object": b'{"kind": 1, "facts": 2, "arrays": 3}',
    "two": b'["kind", {}]',
    "kind": header(kind=1),
    "facts": header(facts=[]),
    "arrays": b'["kind", {}, {"abc": 1}]',
    "array": header("abc"),
    "name": header([1, "int8", [1]]),
    "a list as name": header([[], "int8", [1]]),
    "same name": header(["a", "int8", [0]], ["a", "int8", [0]]),
    "dtype": header(["a", "object", [1]]),
    "a list as dtype": header(["a", ["int8"], [1]]),
    "length": header(["a", "int8", [-1]]),
    "two negative lengths": header(["a", "int8", [-1, -1]]),
    "fraction": header(["a", "int8", [1.0]]),
    "truth": header(["a", "int8", [True]]),
    "text as shape": header(["a", "int8", "12"]),
    "dimensions": header(["a", "int8", [1] * 1000]),
    "impossible": header(["a", "int64", [2**62, 2**62, 0]]),
    "huge length": header(["a", "int8", [2**100, 0]]),
    "bytes": header(["a", "int64", [2**30]]),
    "bytes together": header(["a", "int8", [2**31]], ["b", "int8", [2**31]], ["c", "int8", [1]]),
}


@pytest.mark.parametrize("content", GARBLED.values(), ids=GARBLED)
def test_a_header_that_is_none_is_refused(
    pipe: tuple[Connection, Connection], content: bytes
) -> None:
    ours, theirs = pipe
    ours.send_bytes(content)
    with pytest.raises(Garbled):
        receive(theirs)


RAW = {
    "text": b"INFO vLLM is starting",
    "negative length": struct.pack("!i", -5),
    "long length": struct.pack("!i", 2**31 - 1),
    "longest length": struct.pack("!iQ", -1, 2**64 - 1),
}


@pytest.mark.parametrize("content", RAW.values(), ids=RAW)
def test_bytes_without_a_frame_are_refused(
    pipe: tuple[Connection, Connection], content: bytes
) -> None:
    ours, theirs = pipe
    os.write(ours.fileno(), content)
    tracemalloc.start()
    try:
        with pytest.raises(Garbled):
            receive(theirs)
        assert tracemalloc.get_traced_memory()[1] < 10**6
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("piece", [b"", b"abc", b"a" * (2**18 + 1)], ids=len)
def test_arrays_of_another_length_are_refused_and_take_no_memory(
    pipe: tuple[Connection, Connection], piece: bytes
) -> None:
    """The header announces 4 GiB."""
    ours, theirs = pipe

    def answer() -> None:
        with contextlib.suppress(ConnectionError), ours:
            ours.send_bytes(header(["a", "int8", [2**32]]))
            ours.send_bytes(piece)

    sender = threading.Thread(target=answer)
    sender.start()
    tracemalloc.start()
    try:
        with pytest.raises(Garbled):
            receive(theirs)
        assert tracemalloc.get_traced_memory()[1] < 10**6
    finally:
        tracemalloc.stop()
        theirs.close()
        sender.join()


@given(st.data())
def test_a_damaged_message_is_a_message_or_refused(data: st.DataObject) -> None:
    """Never another exception, nor a wait for what does not come."""
    content = bytearray(header(["a", "int16", [2, 3]], ["b", "bool", []]))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    ours, theirs = Pipe()
    with theirs:
        with ours:
            for part in (content[: data.draw(st.integers(0, len(content)))], b"a" * 12, b"b"):
                ours.send_bytes(part)
        with contextlib.suppress(Garbled, EOFError):
            assert isinstance(receive(theirs), Message)


@pytest.mark.parametrize("length", [0, 2, 5, 40, 100, 1000])
def test_a_message_that_breaks_off_is_an_end(
    pipe: tuple[Connection, Connection], length: int
) -> None:
    ours, theirs = pipe
    send(ours, Message("kind", {"a": 1}, {"a": np.zeros(2000, "u1")}))
    ours.close()
    whole = os.read(theirs.fileno(), 10_000)
    begun, end = Pipe()
    with end:
        with begun:
            os.write(begun.fileno(), whole[:length])
        with pytest.raises(EOFError):
            receive(end)
