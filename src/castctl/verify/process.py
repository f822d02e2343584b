"""The parent's side of one worker process.

Each has a pipe of its own and shares no lock, so that killing one holds up no other. A worker is a
new interpreter that imports the check alone: unlike a process of `multiprocessing`, which imports
the caller's main module, it starts from a notebook and from a script without a main guard too.
"""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import time
from multiprocessing.connection import Pipe
from typing import TYPE_CHECKING

from castctl.errors import UserError
from castctl.verify.worker import Call, Done, Outcome, Ready

if TYPE_CHECKING:
    from castctl.recipe.recipe import VerifierSettings

OUT_OF_BOUNDS = {-signal.SIGSEGV, -signal.SIGABRT, -signal.SIGBUS, -signal.SIGFPE, -signal.SIGILL}
"""How C code ends that runs out of memory or stack; another signal came from outside."""

START = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from castctl.verify.worker import main; main(*sys.argv[2:])"
)
"""What the interpreter of a worker runs: it finds modules where its parent does."""

START_SECONDS = 120.0
"""Longest time a worker may take to start and to load a call's imports."""


class WorkerProcess:
    """One worker, from its start to its death.

    Raises:
        UserError: from `outcome`, where the worker cannot start or load the call.
    """

    def __init__(self, settings: VerifierSettings) -> None:
        self._timeout = settings.timeout
        self.connection, theirs = Pipe()
        memory_bytes = int(settings.memory_gb * 2**30)
        arguments = (json.dumps(sys.path), theirs.fileno(), memory_bytes, settings.timeout)
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", START, *map(str, arguments)],  # no module from here
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
            )
        finally:
            theirs.close()
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
                    f"verifier: a worker cannot load the check ({message.problem}); it has "
                    "verifier.memory_gb for everything that the check imports"
                )
            if self._unsent is None:
                self._started = time.monotonic()
                self.deadline = self._started + self._timeout
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

    def _after_death(self) -> Outcome:
        self.worn = True
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(1)
        code = self._process.returncode
        if self._started is None:
            raise UserError(
                f"verifier: a worker ended while it started (exit code {code}); see its output "
                "above, and raise verifier.memory_gb if it ran out of memory"
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
            raise UserError(f"verifier: a worker did not start within {START_SECONDS:g} s")
        seconds = time.monotonic() - self._started
        return Outcome("timeout", seconds, message=f"no verdict in {self._timeout:g} s")
