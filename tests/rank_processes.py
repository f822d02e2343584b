"""Processes that are several ranks, as a launcher starts them."""

from __future__ import annotations

import signal
import socket
from collections.abc import Callable

from commands import Command

Start = Callable[..., Command]
"""Starts a rank with variables beside those of this process."""


def started(count: int, start: Start) -> list[Command]:
    """The command as so many ranks, without a launcher: rank 0 keeps the store."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    told = {"WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count, "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port}  # fmt: skip
    return [
        start(**{name: str(said) for name, said in {**told, "RANK": n, "LOCAL_RANK": n}.items()})
        for n in range(count)
    ]


def ended(processes: list[Command], seconds: float = 240) -> list[str]:
    """What each printed, once all have ended."""
    try:
        done = [process.wait(seconds) for process in processes]
        return [each.stdout + each.stderr for each in done]
    finally:
        for process in processes:
            if process.running():
                process.send_signal(signal.SIGKILL)
