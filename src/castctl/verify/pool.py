"""Many small calls in worker processes that can be killed.

A check of model output may run for ever, exhaust memory or crash; then its worker is
replaced, and the other calls go on.
"""

from __future__ import annotations

import hashlib
import os
import signal
import time
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import wait
from typing import TYPE_CHECKING, Any, Self

from castctl.launcher import rank_of
from castctl.verify.process import Bounds, WorkerProcess
from castctl.verify.worker import Call, Outcome

if TYPE_CHECKING:
    from castctl.recipe.verifier import VerifierSettings

Key = tuple[Callable[..., Any], bytes]

CACHED_OUTCOMES = 100_000
"""Outcomes kept for calls that come again."""


class CheckPool:
    """Runs calls in `settings.workers` processes, which start with the first call; ranks on one
    machine divide them.

    A context manager: leaving it, however that happens, kills the workers. One thread
    uses it at a time.
    """

    def __init__(self, settings: VerifierSettings) -> None:
        self._most = max(1, settings.workers // rank_of(os.environ).local)
        self._bounds = Bounds(
            "verifier", settings.timeout, settings.memory_gb, "verifier.memory_gb"
        )
        self._workers: list[WorkerProcess] = []
        self._cache: OrderedDict[Key, Outcome] = OrderedDict()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Kill the workers; a later `run` starts new ones."""
        while self._workers:
            self._dismiss(self._workers[-1])

    def run(
        self, calls: Sequence[Call], on_done: Callable[[], object] | None = None
    ) -> list[Outcome]:
        """The outcome of each `(function, args)`, in order; `on_done()` follows each call.

        The function must be importable by name and give the same value for the same
        arguments: equal calls run once, and outcomes other than errors are remembered.
        A call that exceeds `settings.timeout` seconds of its own, or the worker's memory
        or stack, or that brings a signal on it, is a `timeout`; any other exception, or the
        end of the worker, is an `error`.

        Raises:
            UserError: a worker cannot start or cannot load the function.
        """
        places: defaultdict[Key, list[int]] = defaultdict(list)
        for place, call in enumerate(calls):
            places[_key(call)].append(place)
        outcomes: dict[int, Outcome] = {}
        try:
            for key, outcome in self._outcomes({key: calls[at[0]] for key, at in places.items()}):
                for place in places[key]:
                    outcomes[place] = outcome
                    if on_done:
                        on_done()
        except BaseException:  # Ctrl-C as well: calls still running must not answer the next run
            self.close()
            raise
        return [outcomes[place] for place in range(len(calls))]

    def _outcomes(self, calls: dict[Key, Call]) -> Iterator[tuple[Key, Outcome]]:
        """Each key with its outcome, as they come."""
        new: deque[tuple[Key, Call]] = deque()
        for key, call in calls.items():
            if key in self._cache:
                self._cache.move_to_end(key)
                yield key, self._cache[key]
            else:
                new.append((key, call))
        for key, outcome in self._execute(new):
            if outcome.kind != "error":
                self._cache[key] = outcome
                if len(self._cache) > CACHED_OUTCOMES:
                    self._cache.popitem(last=False)
            yield key, outcome

    def _execute(self, waiting: deque[tuple[Key, Call]]) -> Iterator[tuple[Key, Outcome]]:
        for worker in [worker for worker in self._workers if not worker.alive]:
            self._dismiss(worker)
        keys: dict[WorkerProcess, Key] = {}  # of the calls now running
        while waiting or keys:
            while len(keys) < self._most and waiting:
                idle = [worker for worker in self._workers if worker not in keys]
                worker = idle[0] if idle else self._hire()
                keys[worker], call = waiting.popleft()
                worker.start(call)
            pause = min(worker.deadline for worker in keys) - time.monotonic()
            wait([worker.connection for worker in keys], max(0.0, pause))
            for worker in list(keys):
                if outcome := worker.outcome():
                    if worker.worn:
                        self._dismiss(worker)
                    yield keys.pop(worker), outcome

    def _hire(self) -> WorkerProcess:
        # Born with Ctrl-C blocked, so that only the parent answers it.
        old = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            worker = WorkerProcess(self._bounds)
            self._workers.append(worker)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, old)
        return worker

    def _dismiss(self, worker: WorkerProcess) -> None:
        worker.kill()
        self._workers.remove(worker)


def _key(call: Call) -> Key:
    """A short name of a call; completions are too long to remember by the thousand."""
    function, args = call
    return function, hashlib.blake2b(repr(args).encode(), digest_size=16).digest()
