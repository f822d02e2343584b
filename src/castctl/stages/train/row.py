"""A step's row of metrics: its measures, the update's numbers, and what it took."""

from __future__ import annotations

import contextlib
import resource
import sys
import time
from collections.abc import Iterator

import torch

from castctl.stages.measures import Measures
from castctl.stages.train.metrics import OF_SCORING, Row
from castctl.stages.train.stats import UpdateStats


@contextlib.contextmanager
def timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    began = time.perf_counter()
    yield
    seconds[f"seconds_{name}"] += time.perf_counter() - began


def step_row(
    step: int,
    measures: Measures,
    stats: UpdateStats,
    seconds: dict[str, float],
    device: torch.device,
) -> Row:
    on_gpu = device.type == "cuda"
    peak_bytes = torch.cuda.max_memory_allocated(device) if on_gpu else _peak_resident_bytes()
    return {
        "step": step,
        **measures,
        **stats.row(),
        **seconds,
        "seconds": sum(s for name, s in seconds.items() if not name.startswith(OF_SCORING)),
        "peak_memory_gb": peak_bytes / 2**30,
    }


def _peak_resident_bytes() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
