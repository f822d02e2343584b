"""Processes that are several ranks, as a launcher starts them."""

from __future__ import annotations

import os
import socket
import subprocess
import sys


def started(count: int, *command: str, **environment: str) -> list[subprocess.Popen[str]]:
    """The command as so many ranks, without a launcher: rank 0 keeps the store."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    told = {"WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count, "MASTER_ADDR": "127.0.0.1"}
    return [
        subprocess.Popen(
            [sys.executable, *command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            env={**os.environ, **environment, **{k: str(v) for k, v in told.items()},
                 "MASTER_PORT": str(port), "RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(count)
    ]  # fmt: skip


def ended(processes: list[subprocess.Popen[str]], seconds: float = 240) -> list[str]:
    """What each printed, once all have ended."""
    try:
        return [process.communicate(timeout=seconds)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
