"""One copy of an engine: its process, started when first needed and again when it has failed."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from castctl.engines.child import Child, ChildFailed
from castctl.engines.wire import Message


@dataclass(frozen=True)
class Launch:
    """How the process is started: the function it runs, its variables, the arguments of its model,
    and how long it may take to start and to be silent (seconds)."""

    entry: str
    environment: Mapping[str, str]
    arguments: Mapping[str, Any]
    start_timeout: float
    timeout: float


class Replica:
    """A process that answers one question after another.

    Every method that asks raises `ChildFailed` where it is gone or silent for too long; then it is
    killed, and the next `start` makes another.
    """

    def __init__(self, launch: Launch, log: Path) -> None:
        self._launch = launch
        self._log = log
        self._child: Child | None = None
        self._heard = 0.0
        self._resting = False

    @property
    def runs(self) -> bool:
        """Whether there is a process, which may still be starting."""
        return self._child is not None

    @property
    def connection(self) -> Connection:
        return self._running.connection

    @property
    def patience(self) -> float:
        """Seconds that it may still be silent."""
        return max(0.0, self._heard + self._launch.timeout - time.monotonic())

    def begin(self, weights: Path) -> None:
        """Let it start from a folder of weights; others may start meanwhile."""
        self._child = Child(self._launch.entry, self._log, self._launch.environment)
        self._resting = False
        self.tell("start", {"arguments": {**self._launch.arguments, "model": str(weights)}})

    def started(self) -> Mapping[str, Any]:
        """Wait until it has started; what it says of itself."""
        return self._answer(self._launch.start_timeout).facts

    def ask(self, kind: str, facts: Mapping[str, Any] | None = None, *, long: bool = False) -> None:
        """Tell it something and wait until it is done; a `long` work takes as long as a start."""
        self.tell(kind, facts)
        self._answer(self._launch.start_timeout if long else None)

    def _answer(self, seconds: float | None) -> Message:
        while (message := self.hear(seconds)).kind == "alive":
            pass
        return message

    def tell(
        self,
        kind: str,
        facts: Mapping[str, Any] | None = None,
        arrays: Mapping[str, NDArray[Any]] | None = None,
    ) -> None:
        try:
            self._running.send(Message(kind, facts or {}, arrays or {}))
        except ChildFailed:
            self.kill()
            raise
        self._heard = time.monotonic()

    def hear(self, seconds: float | None = None) -> Message:
        """The next message, which may take its patience, or so many seconds, since the last one."""
        limit = self._launch.timeout if seconds is None else seconds
        waits = self.connection.poll()  # it spoke while nobody listened
        try:
            message = self._running.receive(limit, 0 if waits else time.monotonic() - self._heard)
        except ChildFailed:
            self.kill()
            raise
        self._heard = time.monotonic()
        return message

    def rest(self) -> None:
        """Let it give back its GPU's memory."""
        if self.runs and not self._resting:
            self.ask("rest", long=True)
            self._resting = True

    def wake(self) -> None:
        if self._resting:
            self.ask("wake", long=True)
            self._resting = False

    def close(self) -> None:
        if self._child is not None:
            self._child.close()
            self._child = None

    def kill(self) -> None:
        if self._child is not None:
            self._child.kill()
            self._child = None

    @property
    def _running(self) -> Child:
        assert self._child is not None, "it was not started"
        return self._child
