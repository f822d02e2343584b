"""What the benchmarks share: paired timing, exclusive clocks, peak memory, and one line of JSON.

Import it before torch: it sets the thread policy that castctl's command line sets.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import platform
import resource
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import wraps
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil

import castctl

castctl.before_torch()

Timed = Callable[[], float]
"""Does its work once and says how many seconds of it count."""
GIB = 2**30


def options(description: str | None, repeats: int) -> argparse.ArgumentParser:
    """A parser with the options that every benchmark has."""
    parser = argparse.ArgumentParser(description=(description or "").splitlines()[0])
    parser.add_argument("--repeats", type=int, default=repeats, help="timed rounds")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that it runs")
    return parser


def parse(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """What was typed; a quick run has one round."""
    given = parser.parse_args()
    if given.quick:
        given.repeats = 1
    return given


def timed(work: Callable[[], object]) -> Timed:
    """All of `work` counts."""

    def run() -> float:
        began = time.perf_counter()
        work()
        return time.perf_counter() - began

    return run


def interleaved(works: Mapping[str, Timed], repeats: int) -> dict[str, list[float]]:
    """Seconds of each work in each round (A B A B ...), after a round that does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for round_number in range(repeats + 1):
        for name, work in works.items():
            spent = work()
            if round_number:
                seconds[name].append(spent)
    return seconds


def median(values: Sequence[float]) -> float:
    return statistics.median(values)


def ratio(above: Sequence[float], below: Sequence[float]) -> dict[str, float]:
    """Median, least and greatest of the rounds' ratios."""
    ratios = [a / b for a, b in zip(above, below, strict=True)]
    return {"ratio": median(ratios), "ratio_min": min(ratios), "ratio_max": max(ratios)}


class Clock:
    """Tells by name where time goes: a call's time, less that of watched calls inside it."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self._running: list[str] = []
        self._since = 0.0
        self._opaque = False

    def reset(self) -> None:
        self.seconds.clear()

    @contextlib.contextmanager
    def watch(self, name: str, opaque: bool = False) -> Iterator[None]:
        """Count the time inside under `name`; `opaque` counts what it calls as its own."""
        if self._opaque:
            yield
            return
        self._turn()
        self._running.append(name)
        self._opaque = opaque
        try:
            yield
        finally:
            self._turn()
            self._running.pop()
            self._opaque = False

    def wrap(self, owner: Any, attribute: str, name: str, opaque: bool = False) -> None:
        """Watch every call of a function or method from now on."""
        inner = getattr(owner, attribute)

        @wraps(inner)
        def watched(*arguments: Any, **keywords: Any) -> Any:
            with self.watch(name, opaque):
                return inner(*arguments, **keywords)

        setattr(owner, attribute, watched)

    def _turn(self) -> None:
        now = time.perf_counter()
        if self._running:
            self.seconds[self._running[-1]] += now - self._since
        self._since = now


def peak_extra_gb(set_up: Callable[..., Callable[[], object]], *arguments: Any) -> float:
    """GiB by which the work that `set_up(*arguments)` returns raises a fresh process's memory.

    Call it before this process grows: the peak that the system tells of a process starts
    with its parent's.
    """
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(_peak_extra_gb, set_up, arguments).result()


def _peak_extra_gb(
    set_up: Callable[..., Callable[[], object]], arguments: tuple[Any, ...]
) -> float:
    work = set_up(*arguments)
    before = psutil.Process().memory_info().rss
    work()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return (peak * (1 if sys.platform == "darwin" else 1024) - before) / GIB


def report(benchmark: str, repeats: int, **facts: Any) -> None:
    """Print the one line of JSON that a benchmark ends with."""
    line = {"benchmark": benchmark, **facts, "repeats": repeats, "machine": _machine()}
    print(json.dumps(_rounded(line), allow_nan=False))


def _rounded(value: Any) -> Any:
    """Four significant digits are more than a timing has."""
    if isinstance(value, float):
        return float(f"{value:.4g}")
    if isinstance(value, Mapping):
        return {key: _rounded(inner) for key, inner in value.items()}
    return [_rounded(inner) for inner in value] if isinstance(value, list) else value


def _machine() -> dict[str, Any]:
    import torch

    return {
        "cpu": cpu_model(),
        "cores": os.cpu_count(),
        "memory_gb": psutil.virtual_memory().total / GIB,
        "python": platform.python_version(),
        "torch": version("torch"),
        "transformers": version("transformers"),
        "threads": torch.get_num_threads(),
    }


def cpu_model() -> str:
    """What the system calls its CPU."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
