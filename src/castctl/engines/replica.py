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
    """How the process is started: the function it runs, its variables, what `start` tells it, and
    how long it may take to start and to be silent (seconds)."""

    entry: str
    environment: Mapping[str, str]
    facts: Mapping[str, Any]
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
        self.ready: Mapping[str, Any] = {}
        """What it said of itself when it had started."""

    @property
    def runs(self) -> bool:
        return self._child is not None

    @property
    def connection(self) -> Connection:
        return self._running.connection

    @property
    def patience(self) -> float:
        """Seconds that it may still be silent."""
        return max(0.0, self._heard + self._launch.timeout - time.monotonic())

    def start(self) -> None:
        self._child = Child(self._launch.entry, self._log, self._launch.environment)
        self._resting = False
        self.ready = self.ask("start", self._launch.facts, seconds=self._launch.start_timeout).facts

    def ask(
        self, kind: str, facts: Mapping[str, Any] | None = None, *, seconds: float | None = None
    ) -> Message:
        """Tell it something and wait for its answer."""
        self.tell(kind, facts)
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
        try:
            message = self._running.receive(limit, time.monotonic() - self._heard)
        except ChildFailed:
            self.kill()
            raise
        self._heard = time.monotonic()
        return message

    def rest(self) -> None:
        """Let it give back its GPU's memory."""
        if self.runs and not self._resting:
            self.ask("rest")
            self._resting = True

    def wake(self) -> None:
        if self._resting:
            self.ask("wake")
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
