"""Templates are programs, some a stranger's: a process of their own runs them and can be killed.

Jinja's sandbox keeps them from the machine, but lets them loop for ever and fill the memory.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import wait
from typing import Any, TypeVar

from castctl.verify.process import Bounds, WorkerProcess
from castctl.verify.worker import Outcome

T = TypeVar("T")

AT_ONCE = 64
"""Texts of one call: asking for each alone would take longer than rendering it."""
SECONDS = 2.0
"""Longest time of a call, which takes a hundredth of it."""
BOUNDS = Bounds("templates", SECONDS, 1.0, "1 GiB")
MOST_CHARACTERS = 2**24
"""Longest text that a template may make."""


class Refused(Exception):
    """A template that does not render; the message says why, fit for the middle of a line."""


class TooCostly(Refused):
    """One that takes more time or memory than any prompt needs."""


class _Renderer:
    """The process, which starts with the first call and is replaced when it had to be killed."""

    def __init__(self) -> None:
        self._worker: WorkerProcess | None = None
        self._lock = threading.Lock()

    def call(self, function: Callable[..., T], *args: Any) -> T:
        with self._lock:
            outcome = self._outcome(function, args)
            if outcome.kind == "timeout":  # once may be the machine's fault
                outcome = self._outcome(function, args)
        if outcome.kind == "timeout":
            raise TooCostly(f"it takes more than {SECONDS:g} s or {BOUNDS.memory}")
        if outcome.kind == "error":
            raise Refused(outcome.message or "its process ended")
        value: T = outcome.value
        return value

    def _outcome(self, function: Callable[..., Any], args: tuple[Any, ...]) -> Outcome:
        try:
            worker = self._ready()
            worker.start((function, args))
            while (outcome := worker.outcome()) is None:
                wait([worker.connection], max(0.0, worker.deadline - time.monotonic()))
            if worker.worn:
                self._close()
            return outcome
        except BaseException:  # Ctrl-C as well: this answer must not be taken for the next one
            self._close()
            raise

    def _ready(self) -> WorkerProcess:
        if self._worker is not None and self._worker.alive:
            return self._worker
        self._close()
        # Born with Ctrl-C blocked, so that only the parent answers it.
        old = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            worker = self._worker = WorkerProcess(BOUNDS)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, old)
        return worker

    def _close(self) -> None:
        worker, self._worker = self._worker, None
        if worker is not None:
            worker.kill()

    def forget(self) -> None:
        """A fork would share the process with its parent, and each take the other's answers."""
        self.__init__()  # type: ignore[misc]


_RENDERER = _Renderer()
os.register_at_fork(after_in_child=_RENDERER.forget)


def run(function: Callable[..., T], *args: Any) -> T:
    """`function(*args)` in the process of templates; raises `Refused` where it makes nothing."""
    return _RENDERER.call(function, *args)


def render(
    function: Callable[[Any, Sequence[Any]], list[str]], template: Any, items: Sequence[Any]
) -> list[str]:
    """The text that `function` makes of a template for each item; raises `Refused` where it makes
    none, or too much."""
    texts: list[str] = []
    for start in range(0, len(items), AT_ONCE):
        texts += run(function, template, items[start : start + AT_ONCE])
        if max(map(len, texts[start:])) > MOST_CHARACTERS:
            raise Refused(f"it makes more than {MOST_CHARACTERS:,} characters")
    return texts
