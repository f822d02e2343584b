"""How long work tells of its progress, whoever is watching."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Protocol

Advance = Callable[[int], None]


class Progress(Protocol):
    """Someone who watches long work."""

    def task(
        self, description: str, total: int | None, unit: str
    ) -> contextlib.AbstractContextManager[Advance]:
        """Watch a task of `total` units (None = not known); call the result as units are done."""


class Silent:
    """Nobody watches."""

    @contextlib.contextmanager
    def task(self, description: str, total: int | None, unit: str) -> Iterator[Advance]:
        yield lambda count: None


class Beating:
    """Somebody who watches, and others who are told that the work gets on."""

    def __init__(self, watcher: Progress, beat: Callable[[], None]) -> None:
        self._watcher, self._beat = watcher, beat

    @contextlib.contextmanager
    def task(self, description: str, total: int | None, unit: str) -> Iterator[Advance]:
        with self._watcher.task(description, total, unit) as advance:

            def both(count: int) -> None:
                advance(count)
                self._beat()

            yield both
