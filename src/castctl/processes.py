"""Whether a process still runs, told apart from a later one of its number."""

from __future__ import annotations

import os
import socket
from typing import NamedTuple

import psutil

CLOCK_SECONDS = 2.0
"""How far two readings of one process's start may lie apart."""


def born() -> float:
    """When this process began, in seconds since the epoch."""
    return float(psutil.Process().create_time())


def status_of(pid: int, born: float) -> str | None:
    """The status, by psutil's names, of the process `pid` of this machine that began at `born`;
    None where it is gone."""
    try:
        process = psutil.Process(pid)
        same = abs(process.create_time() - born) < CLOCK_SECONDS
        return str(process.status()) if same else None
    except (psutil.Error, ValueError, OverflowError):
        return None


def lives(pid: int, born: float) -> bool:
    """Whether that process runs or is stopped."""
    return status_of(pid, born) not in (None, psutil.STATUS_ZOMBIE)


class Seen(NamedTuple):
    """A process that others may ask after: its number, when it began, and its machine."""

    pid: int
    born: float
    host: str

    @classmethod
    def this(cls) -> Seen:
        return cls(os.getpid(), born(), socket.gethostname())

    @property
    def gone(self) -> bool:
        """Whether it is known to have ended: on another machine nobody knows."""
        return self.host == socket.gethostname() and not lives(self.pid, self.born)
