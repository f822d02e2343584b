"""Processes that this one starts, and that never outlive it.

Each watches a pipe, its life. This process alone holds the other end, which closes with it, however
it ends. The kernel watches as well, so that no wedged process has to. Linux's signal at the
parent's death would also come when only a thread of the parent ends.
"""

from __future__ import annotations

import fcntl
import importlib
import json
import os
import select
import signal
import subprocess
import sys
import weakref
from collections.abc import Mapping
from multiprocessing.connection import Connection, Pipe
from typing import IO

from castctl.launcher import without_rank

START = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from castctl.lifeline import run; run(*sys.argv[2:])"
)
"""What the new interpreter runs: it finds modules where its parent does."""

KEEPER_SECONDS = 0.2
"""How often a group's keeper looks whether the leader lives."""

TIDY_SECONDS = 1.0
"""How long the rest of a group may take to end by itself: `multiprocessing` leaves it to a process
there to remove the shared memory of those that were killed."""

_held: weakref.WeakSet[Connection] = weakref.WeakSet()


def start(
    main: str,
    handle: int,
    *arguments: object,
    group: bool = False,
    output: IO[bytes] | None = None,
    environment: Mapping[str, str] | None = None,
) -> tuple[subprocess.Popen[bytes], Connection]:
    """A new interpreter that calls `main`, as `module:function`, with a handle and arguments.

    Unlike a process of `multiprocessing` it does not import the caller's main module: it starts
    from a notebook and from a script without a main guard too.

    Args:
        handle: a file descriptor that stays open, under its number.
        arguments: `main` gets them, and the handle before them, as strings.
        group: whether it leads a session and a process group of its own. Ctrl-C in the terminal
            does not reach these, and the whole group ends with its leader or with this process.
        output: where stdout and stderr go, where that is not where this process's do.
        environment: variables beside those of this process.

    Returns:
        The process, and this process's end of its life: when that is closed, the process is killed.
    """
    life, ours = Pipe(duplex=False)
    _held.add(ours)
    told = [json.dumps(sys.path), life.fileno(), int(group), main, handle, *arguments]
    try:
        with life:
            process = subprocess.Popen(
                [sys.executable, "-P", "-c", START, *map(str, told)],  # no module from here
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=None if output is None else subprocess.STDOUT,
                env={**without_rank(os.environ), **(environment or {})},
                pass_fds=(life.fileno(), handle),
                start_new_session=group,
            )
    except BaseException:
        ours.close()
        raise
    return process, ours


def _let_go() -> None:
    for end in list(_held):
        end.close()


# A fork that outlived this process would hold the lives open.
os.register_at_fork(after_in_child=_let_go)


def run(life: str, group: str, main: str, handle: str, *arguments: str) -> None:
    """The new process, from its start to its end."""
    os.set_inheritable(int(life), False)
    os.set_inheritable(int(handle), False)
    _end_with_parent(int(life), bool(int(group)))
    if int(group):
        _keep_group(int(life), int(handle))
    module, _, function = main.partition(":")
    getattr(importlib.import_module(module), function)(handle, *arguments)


def _end_with_parent(life: int, group: bool) -> None:
    """Let the kernel end this process or its group, whatever it computes, when `life` closes."""
    fcntl.fcntl(life, fcntl.F_SETOWN, -os.getpgrp() if group else os.getpid())
    if sys.platform == "linux":  # elsewhere the signal is SIGIO, which may be ignored
        fcntl.fcntl(life, fcntl.F_SETSIG, signal.SIGKILL)
    fcntl.fcntl(life, fcntl.F_SETFL, os.O_ASYNC)
    if _closes(life, 0):  # it did before
        sys.exit()


def _keep_group(life: int, handle: int) -> None:
    """Start the keeper of this process's group, which ends all of it when this process ends.

    Without it, the children of this process would live on where it is killed together with its
    parent, and would hold its pipes open where it alone is.
    """
    leader = os.getpid()
    if os.fork():
        return
    try:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)  # someone in the group may outlive these too
        os.close(handle)
        while os.getppid() == leader and not _closes(life, KEEPER_SECONDS):
            pass
        _closes(life, TIDY_SECONDS)
    finally:
        os.killpg(leader, signal.SIGKILL)  # the keeper too


def _closes(life: int, seconds: float) -> bool:
    """Whether the other end closes within some seconds; nothing is ever written to it."""
    poll = select.poll()  # select.select knows no handles above 1023
    poll.register(life, select.POLLIN)
    return bool(poll.poll(seconds * 1000))
