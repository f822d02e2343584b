"""Output for people: results on standard output, everything else on standard error."""

from __future__ import annotations

import contextlib
import logging
import sys
import time
from collections.abc import Iterator

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichBars

from castctl.errors import printable
from castctl.progress import Advance, Progress, Silent

LINE_EVERY = 15.0
"""Seconds between lines of progress where there is no terminal."""


def tell(text: str) -> None:
    """A result on standard output; its lines are kept."""
    print("\n".join(map(printable, text.split("\n"))), flush=True)


_said_to_be_quiet = False


def be_quiet() -> None:
    """From now on print results and warnings only."""
    global _said_to_be_quiet
    _said_to_be_quiet = True


def say(text: str) -> None:
    """A line for people on standard error, unless they asked for quiet."""
    if not _said_to_be_quiet:
        print(printable(text), file=sys.stderr, flush=True)


def progress() -> Progress:
    """What long work should report to."""
    return Silent() if _said_to_be_quiet else TerminalProgress()


def live_console() -> Console | None:
    """Standard error where something that moves may be drawn on it; None where it is no terminal
    or a dumb one, or people asked for quiet."""
    console = Console(stderr=True)
    moves = console.is_terminal and console.is_interactive and sys.stderr.isatty()
    return console if moves and not _said_to_be_quiet else None


class TerminalProgress:
    """Bars with rate and time left on a terminal; elsewhere a line now and then."""

    def __init__(self) -> None:
        self._console = live_console()

    @contextlib.contextmanager
    def task(self, description: str, total: int | None, unit: str) -> Iterator[Advance]:
        """Watch one task; see `castctl.progress.Progress`."""
        watch = self._lines if self._console is None else self._bar
        with watch(description, total, unit) as advance:
            yield advance

    @contextlib.contextmanager
    def _bar(self, description: str, total: int | None, unit: str) -> Iterator[Advance]:
        columns = (
            TextColumn("{task.description:<8}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
        )
        began = time.monotonic()
        done = 0
        with RichBars(*columns, console=self._console, transient=True) as bars:
            bar = bars.add_task(description, total=total, rate=unit)

            def advance(count: int) -> None:
                nonlocal done
                done += count
                speed = done / max(time.monotonic() - began, 1e-9)
                bars.update(bar, advance=count, rate=f"{speed:,.0f} {unit}/s")

            yield advance

    @contextlib.contextmanager
    def _lines(self, description: str, total: int | None, unit: str) -> Iterator[Advance]:
        began = last = time.monotonic()
        done = 0

        def advance(count: int) -> None:
            nonlocal done, last
            done += count
            now = time.monotonic()
            if now - last < LINE_EVERY:
                return
            last = now
            rate = done / (now - began)
            left = f", {(total - done) / rate:.0f} s left" if total and rate else ""
            of = f" of {total}" if total else ""
            say(f"{description}: {done}{of} {unit}, {rate:,.0f}/s{left}")

        yield advance


class _Once(logging.Filter):
    """Lets each message through once."""

    def __init__(self) -> None:
        super().__init__()
        self._seen: set[str] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        message = record.getMessage()
        new = message not in self._seen
        self._seen.add(message)
        return new


class _OneLine(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        level = "" if record.levelno == logging.INFO else f"{record.levelname.lower()}: "
        return printable(f"castctl: {level}{record.getMessage()}")


class _Terminal(logging.Handler):
    """Prints to standard error as it is now: a live panel takes it over and prints above itself."""

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno < logging.WARNING and _said_to_be_quiet:
            return
        try:
            print(self.format(record), file=sys.stderr, flush=True)
        except Exception:
            self.handleError(record)


def send_warnings_to_terminal() -> None:
    """Show castctl's warnings and what it has to say, each once, a line each."""
    handler = _Terminal()
    handler.setFormatter(_OneLine())
    handler.addFilter(_Once())
    log = logging.getLogger("castctl")
    log.handlers = [handler]
    log.setLevel(logging.INFO)
    log.propagate = False
