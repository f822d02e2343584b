"""What a person sees while the embedded model is made."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

LINE_EVERY = 15.0
"""Seconds between lines of progress where there is no terminal."""

Report = Callable[[int, int], None]


@contextmanager
def telling(message: str) -> Iterator[Report]:
    """The message on stderr, how far the work is, and at its end how long it took.

    A terminal gets a bar with the time left, anything else a line now and then.
    """
    console = Console(stderr=True)
    moves = console.is_interactive and sys.stderr.isatty()
    began = time.monotonic()
    _say(f"{message}.")
    with _bar(console) if moves else _lines() as report:
        yield report
    _say(f"The embedded model is made, in {time.monotonic() - began:.0f} s. It is kept.")


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


@contextmanager
def _bar(console: Console) -> Iterator[Report]:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        making = bar.add_task("embedded model", total=None)
        yield lambda done, total: bar.update(making, completed=done, total=total)


@contextmanager
def _lines() -> Iterator[Report]:
    began = last = 0.0

    def report(done: int, total: int) -> None:
        nonlocal began, last
        now = time.monotonic()
        if not done:
            began = last = now
        elif now - last >= LINE_EVERY:
            last = now
            left = (total - done) * (now - began) / done
            _say(f"embedded model: {done} of {total} steps, {left:.0f} s left")

    yield report
