"""What children of the tests do; most do it without numpy, which would take most of their time."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from multiprocessing.connection import Connection
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path
from typing import Any

import psutil

LONG = 100.0
"""Seconds; no test lasts that long."""


def echo(connection: Connection) -> None:
    from castctl.engines.wire import receive, send

    try:
        while True:
            send(connection, receive(connection))
    except EOFError:
        print("the parent has hung up")


def tell(connection: Connection) -> None:
    facts = {
        "session": os.getsid(0),
        "group": os.getpgrp(),
        "stdin": os.readlink("/proc/self/fd/0"),
        "path": sys.path,
        "variable": os.environ.get("CASTCTL_TOLD"),
        "open": sorted(map(int, os.listdir("/proc/self/fd"))),
        "inherited": [fd for fd in (3, *range(3, 64)) if _inherited(fd)],
    }
    _say(connection, "facts", facts)


def _say(connection: Connection, kind: str, facts: Mapping[str, Any] = {}) -> None:
    connection.send_bytes(json.dumps([kind, facts, []]).encode())


def _inherited(fd: int) -> bool:
    try:
        return os.get_inheritable(fd)
    except OSError:
        return False


def sleep(connection: Connection) -> None:
    _say(connection, "ready")
    time.sleep(LONG)


def stop(connection: Connection) -> None:
    _say(connection, "ready")
    os.kill(os.getpid(), signal.SIGSTOP)


def compute(connection: Connection) -> None:
    """In C, with the lock of the interpreter."""
    _say(connection, "ready")
    re.match(r"(a*)*b", "a" * 64)


def refuse(connection: Connection) -> None:
    _say(connection, "ready")
    for number in set(signal.Signals) - {signal.SIGKILL, signal.SIGSTOP}:
        signal.signal(number, signal.SIG_IGN)
    time.sleep(LONG)


def break_off(connection: Connection) -> None:
    _say(connection, "ready")
    _begin(connection)
    time.sleep(LONG)


def _begin(connection: Connection) -> None:
    header = b'["numbers", {}, [["a", "int8", [500000]]]]'
    connection.send_bytes(header)
    connection.send_bytes(bytes(2**18))


def die(connection: Connection) -> None:
    """In mid-answer, while a fork holds the pipe open."""
    if os.fork() == 0:
        time.sleep(LONG)
    _begin(connection)
    os.kill(os.getpid(), signal.SIGKILL)


def leave(connection: Connection) -> None:
    sys.exit(3)


def fail(connection: Connection) -> None:
    print("an error before", flush=True)
    raise ValueError("\x1b[31mno\x1b[0m \x07luck " + 400 * "a")


def crash(connection: Connection) -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


def hang_up(connection: Connection) -> None:
    connection.close()
    time.sleep(LONG)


def linger(connection: Connection) -> None:
    """A thread holds up its end."""
    threading.Thread(target=time.sleep, args=(LONG,)).start()


def babble(connection: Connection) -> None:
    os.write(connection.fileno(), b"Loading safetensors checkpoint shards: 100%\n")
    time.sleep(LONG)


def print_much(connection: Connection) -> None:
    line = b"x" * 1023 + b"\n"
    for _ in range(2000):
        os.write(1, line)
        os.write(2, line)
    subprocess.run(["echo", "from a program"])
    print("from Python")
    _say(connection, "done")
    time.sleep(LONG)


def let_escape(connection: Connection) -> None:
    """A fork in a session of its own, which keeps the pipe open and is not in the group."""
    pid = os.fork()
    if not pid:
        os.setsid()
    else:
        _say(connection, "pid", {"pid": pid})
    time.sleep(LONG)


def share(connection: Connection) -> None:
    """Memory that a killed process cannot remove."""
    memory = SharedMemory(create=True, size=1000)
    while not _tracked():
        time.sleep(0.01)
    _say(connection, "memory", {"name": memory.name})
    time.sleep(LONG)


def _tracked() -> bool:
    """Whether the process that would remove it has started: it ignores SIGTERM then."""
    for process in psutil.Process().children():
        if any("resource_tracker" in word for word in process.cmdline()):
            status = Path(f"/proc/{process.pid}/status").read_text()
            ignored = int(status.split("SigIgn:")[1].split()[0], 16)
            return bool(ignored >> (signal.SIGTERM - 1) & 1)
    return False


def start_others(connection: Connection) -> None:
    """One of each kind that there is; their numbers are told."""
    program = subprocess.Popen(["sleep", str(LONG)], close_fds=False)
    fork = os.fork()
    if not fork:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        time.sleep(LONG)
    spawned = multiprocessing.get_context("spawn").Process(target=time.sleep, args=(LONG,))
    spawned.start()
    _say(connection, "pids", {"pids": [program.pid, fork, spawned.pid]})
    time.sleep(LONG)
