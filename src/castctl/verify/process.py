"""The parent's side of one worker process.

Each has a pipe of its own and shares no lock, so that killing one holds up no other.
"""

from __future__ import annotations

import contextlib
import signal
import subprocess
import time
from multiprocessing.connection import Pipe
from typing import NamedTuple

from castctl import lifeline
from castctl.errors import UserError
from castctl.verify.worker import Call, Done, Outcome, Ready

OUT_OF_BOUNDS = {-signal.SIGSEGV, -signal.SIGABRT, -signal.SIGBUS, -signal.SIGFPE, -signal.SIGILL}
"""How C code ends that runs out of memory or stack; another signal came from outside."""

GRACE_SECONDS = 0.5
"""How long after a worker's end by a signal the same signal may come to this process, where a
scheduler or `timeout` ends both."""

START_SECONDS = 120.0
"""Longest time a worker may take to start and to load a call's imports."""


class Bounds(NamedTuple):
    """What a call may use, and how messages speak of it."""

    whose: str
    """Whose calls these are."""
    seconds: float
    memory_gb: float
    """Address space, in GiB."""
    memory: str
    """The setting that says it, or how much it is."""


class WorkerProcess:
    """One worker, from its start to its death.

    Raises:
        UserError: from `outcome`, where the worker cannot start or load the call.
    """

    def __init__(self, bounds: Bounds) -> None:
        self._bounds = bounds
        self.connection, theirs = Pipe()
        memory_bytes = int(bounds.memory_gb * 2**30)
        with theirs:
            self._process, self._life = lifeline.start(
                "castctl.verify.worker:main", theirs.fileno(), memory_bytes, bounds.seconds
            )
        self._unsent: Call | None = None
        self._listens = False
        self.worn = False
        """Whether the worker is dead, or unfit for another call."""
        self.deadline = 0.0
        """When `outcome` has an answer in any case, in seconds of the monotonic clock."""
        self._started: float | None = None  # the call's clock; None while the call is loaded

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def start(self, call: Call) -> None:
        """Hand over a call; the worker must be idle."""
        self._started = None
        self.deadline = time.monotonic() + START_SECONDS
        if self._listens:
            self._send(call)
        else:  # a long call would hold up this process, and the others' deadlines, until it does
            self._unsent = call

    def _send(self, call: Call) -> None:
        with contextlib.suppress(ConnectionError):  # `outcome` finds out what happened
            self.connection.send(call)

    def outcome(self) -> Outcome | None:
        """What became of the call, or None while it runs."""
        try:
            message = self.connection.recv() if self.connection.poll() else None
        except (EOFError, ConnectionError):
            return self._after_death()
        if isinstance(message, Done):
            self.worn = message.worn
            return message.outcome
        if isinstance(message, Ready):
            if message.problem:
                raise UserError(
                    f"{self._bounds.whose}: a worker cannot load the call ({message.problem}); it "
                    f"has {self._bounds.memory} for everything that the call imports"
                )
            if self._unsent is None:
                self._started = time.monotonic()
                self.deadline = self._started + self._bounds.seconds
            else:
                call, self._unsent, self._listens = self._unsent, None, True
                self._send(call)
        if time.monotonic() < self.deadline:
            return None
        return self._after_deadline()

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()
        self.connection.close()
        self._life.close()

    def _after_death(self) -> Outcome:
        self.worn = True
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(1)
        code = self._process.returncode
        if code in (-signal.SIGTERM, -signal.SIGHUP):
            time.sleep(GRACE_SECONDS)  # or else a call would count as failed that was only stopped
        if self._started is None:
            raise UserError(
                f"{self._bounds.whose}: a worker ended while it started (exit code {code}); see "
                f"its output above, and whether {self._bounds.memory} of memory are too few"
            )
        if code == -signal.SIGALRM:  # its own deadline, where this process was held up
            return self._after_deadline()
        seconds = time.monotonic() - self._started
        if code in OUT_OF_BOUNDS:
            return Outcome("timeout", seconds, message=f"the worker died of signal {-code}")
        return Outcome("error", seconds, message=f"the worker died (exit code {code})")

    def _after_deadline(self) -> Outcome:
        self.worn = True
        if self._started is None:
            raise UserError(
                f"{self._bounds.whose}: a worker did not start within {START_SECONDS:g} s"
            )
        seconds = time.monotonic() - self._started
        return Outcome("timeout", seconds, message=f"no verdict in {self._bounds.seconds:g} s")
