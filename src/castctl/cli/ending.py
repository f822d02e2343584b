"""SIGTERM and SIGHUP end a command as Ctrl-C does, so that it leaves everything in order."""

from __future__ import annotations

import signal
import time
from types import FrameType

AGAIN_SECONDS = 1.0
"""Within this time a second signal is the first one told twice, as `timeout` and SLURM do."""


class Ending:
    """The signal that ends the command: Ctrl-C, or another that came before it."""

    def __init__(self) -> None:
        self.number = signal.SIGINT
        self._last = -AGAIN_SECONDS
        for number in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) == signal.SIG_DFL:  # nohup's children ignore SIGHUP
                signal.signal(number, self._end)

    def _end(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        told_before, self._last = now - self._last < AGAIN_SECONDS, now
        if not told_before:
            self.number = signal.Signals(number)
            raise KeyboardInterrupt

    def __str__(self) -> str:
        return "interrupted" if self.number == signal.SIGINT else f"ended by {self.number.name}"
