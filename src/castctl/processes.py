"""Whether a process still runs, told apart from a later one of its number."""

from __future__ import annotations

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
