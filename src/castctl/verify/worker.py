"""A worker process: it runs one call after another, for as long as the parent lets it.

It says `Ready` when it listens. A call is answered twice: `Ready` when it and its imports are
loaded, which starts its clock in the parent, and `Done` when it has ended. POSIX systems only.
"""

from __future__ import annotations

import contextlib
import resource
import signal
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any, Literal, NamedTuple

from castctl.errors import one_line

Call = tuple[Callable[..., Any], tuple[Any, ...]]


class Outcome(NamedTuple):
    """What became of a call: its value, or a message that says why there is none."""

    kind: Literal["value", "timeout", "error"]
    seconds: float
    value: Any = None
    message: str | None = None


class Ready(NamedTuple):
    """The worker listens, or the call is loaded, or `problem` says why it cannot be."""

    problem: str | None = None


class Done(NamedTuple):
    """The call has ended; a worn worker holds too much memory to be fair to the next."""

    outcome: Outcome
    worn: bool


def main(handle: str, memory_bytes: str, timeout: str) -> None:
    """The whole life of a worker; `handle` is its open end of a pipe."""
    serve(Connection(int(handle)), int(memory_bytes), float(timeout))


def serve(connection: Connection, memory_bytes: int, timeout: float) -> None:
    """Answer calls until the parent closes the connection."""
    with contextlib.suppress(ValueError, OSError):  # not every system limits address space
        resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    loaded: int | None = None  # address space before the first call
    connection.send(Ready())
    while True:
        try:
            function, args = connection.recv()
        except (EOFError, ConnectionError):
            return
        except Exception as error:
            connection.send(Ready(problem=one_line(error, named=True)))
            continue
        if loaded is None:
            loaded = _address_space()
        # The parent kills at the deadline. Should it be stopped, the kernel does it.
        signal.setitimer(signal.ITIMER_REAL, 2 * timeout + 1)
        connection.send(Ready())
        outcome = _attempt(function, args)
        signal.setitimer(signal.ITIMER_REAL, 0)
        # sympy's caches keep huge numbers, until right answers fail for lack of memory.
        worn = _address_space() - loaded > (memory_bytes - loaded) / 2
        connection.send(Done(outcome, worn))


def _attempt(function: Callable[..., Any], args: tuple[Any, ...]) -> Outcome:
    start = time.perf_counter()
    try:
        value = function(*args)
    except (MemoryError, RecursionError) as error:
        return Outcome("timeout", time.perf_counter() - start, message=one_line(error, named=True))
    except BaseException as error:  # SystemExit too: a verifier must not end the worker
        return Outcome("error", time.perf_counter() - start, message=one_line(error, named=True))
    return Outcome("value", time.perf_counter() - start, value)


def _address_space() -> int:
    """Bytes of address space in use; 0 where the system does not say."""
    try:
        with open("/proc/self/statm", "rb") as statm:
            return int(statm.read().split()[0]) * resource.getpagesize()
    except OSError:
        return 0
