"""Who writes a run: a training loop alone, or stages run by hand beside one another.

The kernel holds the lock (flock on `RUN/.lock`) and lets go of it however its process ends, kill -9
included. The file's one line says who holds it. Not every file system has such locks, and not every
one shows them to other machines; so the line has a token too, the last writer's own. A writer who
does not find its token there has lost its place, and stops before it writes.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import logging
import os
import shlex
import socket
import stat
import sys
import uuid
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from castctl.errors import UserError, one_line
from castctl.shards.drafts import hold

log = logging.getLogger(__name__)

FILE = ".lock"
LINE_BYTES = 4096
SAFE = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
"""A stranger's run may hold a link or a pipe where its lock should be."""

CLOCK_SECONDS = 2.0
"""How far two readings of one process's start may lie apart."""


class Taken(UserError):
    """Somebody else writes the run."""


@dataclass(frozen=True)
class Writer:
    """A process that writes a run: `alone`, or beside others. `born` is when the process began, in
    seconds since the epoch."""

    token: str
    alone: bool
    pid: int
    born: float
    host: str
    since: str
    command: str

    def __str__(self) -> str:
        return (
            f"{one_line(self.command, 200)} (process {self.pid} on {one_line(self.host, 64)}, "
            f"since {one_line(self.since, 32)})"
        )

    @property
    def lives(self) -> bool | None:
        """Whether the process runs or is stopped; None where it is another machine's."""
        if self.host != socket.gethostname():
            return None
        return self._status() not in (None, psutil.STATUS_ZOMBIE)

    @property
    def advice(self) -> str:
        """What can be done about it."""
        if self._status() == psutil.STATUS_STOPPED and self.lives:
            return f"it is stopped: kill -CONT {self.pid} lets it go on, kill -9 {self.pid} ends it"
        return "wait for it, or end it"

    def _status(self) -> str | None:
        try:
            process = psutil.Process(self.pid)
            same = abs(process.create_time() - self.born) < CLOCK_SECONDS
            return str(process.status()) if same else None
        except (psutil.Error, ValueError, OverflowError):
            return None


@dataclass(frozen=True)
class Place:
    """What the writer of a run holds while it writes."""

    folder: Path
    writer: Writer

    def require(self) -> None:
        """Raise `Taken` where the place is another's by now."""
        try:
            handle = os.open(self.folder / FILE, os.O_RDONLY | SAFE)
        except OSError as error:
            why = f"its {FILE} cannot be read ({error.strerror})"
        else:
            with os.fdopen(handle, "rb") as stream:
                now = _read(stream.fileno())
            if now is not None and now.token == self.writer.token:
                return
            why = f"it is written by {now}" if now else f"its {FILE} does not name this process"
        raise Taken(
            f"run {self.folder} was taken over: {why}. This one has stopped and writes no more"
        )


@contextlib.contextmanager
def writing(folder: Path, *, alone: bool) -> Iterator[Place]:
    """Be a writer of the run in `folder`: the only one, or one of those who are not `alone`.

    Raises `Taken`, which says who is in the way, and `UserError` where nothing can be written.
    """
    handle = _open(folder)
    try:
        locked, before = hold(handle, shared=not alone), _read(handle)
        _refuse_taken(folder, locked, before, alone)
        if not _is_at(handle, folder / FILE):
            raise Taken(f"run {folder} was removed meanwhile, or its {FILE} was")
        elsewhere = before is not None and before.alone and before.lives is None
        if elsewhere:
            log.warning(
                "%s was not seen to end: %s. If it still runs, %s",
                folder, before,
                "it stops before it writes again" if alone else "it may write the same parts",
            )  # fmt: skip
        me = _this_process(alone)
        if alone or not elsewhere:  # who shares a place must not take it from who had it alone
            os.pwrite(handle, line := _line(me), 0)
            os.ftruncate(handle, len(line))
        try:
            yield Place(folder, me)
        finally:
            if _read(handle) == me:
                os.ftruncate(handle, 0)
    finally:
        os.close(handle)


def _open(folder: Path) -> int:
    try:
        handle = os.open(folder / FILE, os.O_RDWR | os.O_CREAT | SAFE, 0o666)
        if stat.S_ISREG(os.fstat(handle).st_mode):
            return handle
    except OSError as error:
        raise UserError(
            f"cannot write in {folder}: {error.strerror}; is the folder writable?"
        ) from None
    os.close(handle)
    raise UserError(f"{folder / FILE} is no file; delete it")


def _refuse_taken(folder: Path, locked: bool | None, there: Writer | None, alone: bool) -> None:
    """Raise `Taken` where somebody holds the place: by the lock or, without locks, by the line."""
    if locked is None and there is not None and (alone or there.alone) and there.lives:
        locked = False
    if locked is False:
        who, advice = ("another castctl", "wait for it") if there is None else (there, there.advice)
        raise Taken(f"run {folder} is written by {who}; {advice}")


def _is_at(handle: int, file: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), os.stat(file))
    except OSError:
        return False


def _this_process(alone: bool) -> Writer:
    return Writer(
        token=uuid.uuid4().hex,
        alone=alone,
        pid=os.getpid(),
        born=float(psutil.Process().create_time()),
        host=socket.gethostname(),
        since=datetime.datetime.now().astimezone().isoformat(sep=" ", timespec="seconds"),
        command=one_line(shlex.join([Path(sys.argv[0]).name or "python", *sys.argv[1:]])),
    )


def _line(writer: Writer) -> bytes:
    return json.dumps(asdict(writer)).encode() + b"\n"


def _read(handle: int) -> Writer | None:
    """Who the file's first line says writes; None where it names nobody."""
    try:
        said = json.loads(os.pread(handle, LINE_BYTES, 0).split(b"\n")[0])
        writer = Writer(**said)
    except (OSError, ValueError, TypeError, RecursionError):
        return None
    kinds = {"alone": bool, "pid": int, "born": float}
    fits = all(type(v) is kinds.get(k, str) for k, v in asdict(writer).items())
    return writer if fits else None
