"""A step at a time, when asked: what a side is to the script that asks (sides.py).

It needs nothing but the standard library and psutil, so that any environment can load it.
"""

from __future__ import annotations

import json
import resource
import sys
import time
import zlib
from typing import Any

import psutil


class Turns:
    """Waits for a line on standard input before each step, and tells of the step in one line."""

    def __init__(self) -> None:
        self._began = self._since = 0.0
        self._out = sys.stdout
        sys.stdout = sys.stderr  # libraries print

    def wait(self) -> None:
        """Until the other side has had its turn; ends the process where there is no other."""
        print("ready", file=self._out, flush=True)
        if not sys.stdin.readline():
            raise SystemExit
        self._began, self._since = cpu_seconds(), time.perf_counter()

    def taken(self) -> dict[str, float]:
        """What the step has taken up to now."""
        return {
            "cpu_seconds": cpu_seconds() - self._began,
            "seconds": time.perf_counter() - self._since,
            "peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        }

    def tell(self, **facts: Any) -> None:
        print(json.dumps(facts), file=self._out)


def cpu_seconds() -> float:
    """Of this process and of those it has started."""
    own = psutil.Process()
    total = 0.0
    for each in [own, *own.children(recursive=True)]:
        times = each.cpu_times()
        total += times.user + times.system
    return total


def reward(completion: str) -> float:
    """From 0 to 1 and as good as never twice the same, so that every group has a variance."""
    return zlib.crc32(completion.encode("utf-8", "surrogatepass")) / 2**32
