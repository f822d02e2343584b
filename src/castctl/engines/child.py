"""A child process that answers by arrays over a pipe, and is gone when it does not.

It leads a process group of its own: whatever it starts ends with it. Linux and other POSIX systems.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from multiprocessing.connection import Connection, Pipe
from pathlib import Path

import psutil

from castctl import lifeline
from castctl.engines import wire
from castctl.engines.wire import Garbled, Message
from castctl.errors import one_line, printable

SEND_SECONDS = 60.0
"""Longest time the child may take to read a message."""

GRACE_SECONDS = 5.0
"""How long a child may take to end after its pipe has closed."""

KILL_SECONDS = 10.0
"""How long killed processes may take to go; one that waits for a broken device may never."""

LOG_BYTES = 2**16
"""How much of the log's end is searched for an error."""

ERROR = re.compile(r"\b(?i:error|exception|fatal|fault|aborted)\b|\w(?:Error|Exception)\b")
COLOR = re.compile(r"\x1b\[[0-9;]*m")


class ChildFailed(Exception):
    """The child is gone: how it ended, the last error that its log tells, and where the log is."""


class Child:
    """A process that calls one function with its end of a pipe (`castctl.engines.child_main`).

    It ends with this process, however that ends, and so does whatever it starts in its session. One
    thread uses it at a time; any thread may have made it.
    """

    connection: Connection
    """To wait for several children at once; messages go through `send` and `receive`."""

    def __init__(self, entry: str, log: Path, environment: Mapping[str, str] = {}) -> None:
        """Start it.

        Args:
            entry: the function, as `package.module:function`; it gets its `Connection`.
            log: where its stdout and stderr are appended.
            environment: variables beside those of this process.
        """
        self.log = log
        log.parent.mkdir(parents=True, exist_ok=True)
        self.connection, theirs = Pipe()
        with theirs, log.open("ab", buffering=0) as stream:
            self._log_start = stream.seek(0, os.SEEK_END)
            self._process, self._life = lifeline.start(
                "castctl.engines.child_main:main",
                theirs.fileno(),
                entry,
                group=True,
                output=stream,
                environment=environment,
            )
            self.pid = self._process.pid
            now = time.strftime("%Y-%m-%d %H:%M:%S%z")
            stream.write(f"--- {now}, process {self.pid}: {entry}\n".encode())
        self._gone: str | None = None  # why nothing more can be said to it or heard from it

    def send(self, message: Message, seconds: float = SEND_SECONDS) -> None:
        """Send a message; the child is killed where it does not read it in `seconds`.

        Raises:
            ChildFailed: the child is gone.
        """
        with self._within(seconds, f"read nothing for {seconds:g} s"):
            wire.send(self.connection, message)

    def receive(self, seconds: float, silent: float = 0) -> Message:
        """The next message; the child is killed where none comes in `seconds`, of which it has been
        silent for some already.

        Raises:
            ChildFailed: the child is gone, and so is whatever it started.
        """
        with self._within(max(seconds - silent, 0), f"gave no sign of life for {seconds:g} s"):
            message = wire.receive(self.connection)
        return message

    def close(self, seconds: float = 5) -> None:
        """End it: its pipe closes, and it is killed where it has not ended after `seconds`."""
        if self._gone is None:
            self._hang_up()
            self._ends(seconds)
        self.kill()

    def kill(self) -> None:
        """Kill it and whatever it started, and wait until they are gone."""
        if self.connection.closed:
            return
        self._gone = self._gone or "was ended"
        _wait(lambda: _kill_workers(self.pid), KILL_SECONDS)
        _wait(lambda: not _members(self.pid), lifeline.TIDY_SECONDS)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
        # The leader is reaped last: until then no other group can get its number.
        _wait(lambda: not _members(self.pid), lifeline.TIDY_SECONDS)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(1)
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-self.pid, os.WNOHANG)[0]:
                pass  # a container's first process inherits its children's children
        self.connection.close()
        self._life.close()

    @contextlib.contextmanager
    def _within(self, seconds: float, silent: str) -> Iterator[None]:
        """An exchange that takes so long at the most; where it fails, the child is gone."""
        if self._gone is not None:
            raise ChildFailed(self._gone)
        late = threading.Event()
        clock = threading.Timer(seconds, self._cut_off, [late])
        clock.daemon = True
        clock.start()
        try:
            try:
                yield
            finally:
                clock.cancel()
                clock.join()
            if late.is_set():  # the pipe has been hung up all the same
                raise EOFError
        except Garbled:
            raise self._failed("sent what is no message") from None
        except (EOFError, ConnectionError):
            raise self._failed(silent if late.is_set() else None) from None
        except BaseException:  # Ctrl-C as well: the pipe may be in mid-message
            self.kill()
            raise

    def _cut_off(self, late: threading.Event) -> None:
        """End the exchange that another thread waits in."""
        late.set()
        self._hang_up()

    def _hang_up(self) -> None:
        """Close the pipe for all that hold it, and for who waits for it here."""
        with (
            contextlib.suppress(OSError),
            socket.socket(fileno=os.dup(self.connection.fileno())) as pipe,
        ):
            pipe.shutdown(socket.SHUT_RDWR)

    def _ends(self, seconds: float) -> bool:
        """Whether it ends by itself within some seconds; it is not reaped."""
        return _wait(lambda: _living(self.pid) is None, seconds)

    def _failed(self, how: str | None) -> ChildFailed:
        """What to raise of a child that is killed here, or that has ended by itself."""
        if how is None and not self._ends(GRACE_SECONDS):
            how = "closed its pipe"
        self.kill()
        error = self._last_error()
        where = f"last error in {self.log}: {error}" if error else f"log: {self.log}"
        self._gone = f"{how or self._fate()}; {where}"
        return ChildFailed(self._gone)

    def _fate(self) -> str:
        code = self._process.returncode
        if code is None:  # some of its threads wait for a broken device
            return "died"
        return f"died of signal {-code}" if code < 0 else f"ended with exit code {code}"

    def _last_error(self) -> str | None:
        """The last line of this child's log that looks like an error, fit for a line."""
        try:
            with self.log.open("rb") as stream:
                end = stream.seek(0, os.SEEK_END)
                stream.seek(max(self._log_start, end - LOG_BYTES))
                lines = stream.read(LOG_BYTES).decode(errors="replace").splitlines()
        except OSError:
            return None
        for line in reversed(lines):
            if ERROR.search(line) and "see root cause above" not in line.lower():
                return printable(one_line(COLOR.sub("", line)))
        return None


def _wait(done: Callable[[], bool], seconds: float) -> bool:
    """Whether something is done within some seconds."""
    deadline = time.monotonic() + seconds
    while not done():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def _members(group: int) -> list[psutil.Process]:
    """The processes of a group that have not ended."""
    return [
        process
        for pid in psutil.pids()
        if _group(pid) == group and (process := _living(pid)) is not None
    ]


def _group(pid: int) -> int | None:
    try:
        return os.getpgid(pid)
    except OSError:
        return None


def _living(pid: int) -> psutil.Process | None:
    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else process
    except psutil.NoSuchProcess:
        return None


def _kill_workers(group: int) -> bool:
    """Kill a group but for who tidies up after it; whether all those are gone."""
    workers = [process for process in _members(group) if not _tidies(process)]
    for process in workers:
        with contextlib.suppress(psutil.Error):
            process.kill()
    return not workers


def _tidies(process: psutil.Process) -> bool:
    """Whether it removes the shared memory of killed processes, and ends when it has."""
    try:
        return any("multiprocessing.resource_tracker" in word for word in process.cmdline())
    except psutil.Error:
        return False
