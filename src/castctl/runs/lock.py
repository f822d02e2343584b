"""Who writes a run: a training loop alone, or stages run by hand beside one another.

The kernel holds the lock (flock on `RUN/.lock`) and lets go of it however its process ends, kill -9
included. The file says who holds it, a line each. Not every file system has such locks, and not
every one shows them to other machines; so the first line, that of a writer alone, has a token too.
Who does not find its own there has lost its place to another, and stops before it writes.
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
from castctl.processes import born, lives, status_of
from castctl.shards.drafts import hold

log = logging.getLogger(__name__)

FILE = ".lock"
MOST_BYTES = 1 << 16
SAFE = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
"""A stranger's run may hold a link or a pipe where its lock should be."""


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
        return lives(self.pid, self.born)

    @property
    def advice(self) -> str:
        """What can be done about it."""
        if self.lives and status_of(self.pid, self.born) == psutil.STATUS_STOPPED:
            return f"it is stopped: kill -CONT {self.pid} lets it go on, kill -9 {self.pid} ends it"
        return "wait for it, or end it"


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
            if now[:1] == [self.writer]:
                return
            why = f"it is written by {now[0]}" if now else f"its {FILE} does not name this process"
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
        locked, named = hold(handle, shared=not alone), _read(handle)
        _refuse_taken(folder, locked, named, alone)
        if not _is_at(handle, folder / FILE):
            raise Taken(f"run {folder} was removed meanwhile, or its {FILE} was")
        if named and named[0].alone and named[0].lives is None:
            log.warning(
                "%s was not seen to end: %s. If it still runs, %s",
                folder, named[0],
                "it stops before it writes again" if alone else "it may write the same parts",
            )  # fmt: skip
        me = _this_process(alone)
        _write(handle, folder, me)
        try:
            yield Place(folder, me)
        finally:
            _leave(handle, me)
    finally:
        os.close(handle)


def _open(folder: Path) -> int:
    try:
        handle = os.open(folder / FILE, os.O_RDWR | os.O_CREAT | SAFE, 0o666)
        if stat.S_ISREG(os.fstat(handle).st_mode):
            return handle
    except OSError as error:
        raise _cannot_write(folder, error) from None
    os.close(handle)
    raise UserError(f"{folder / FILE} is no file; delete it")


def _cannot_write(folder: Path, error: OSError) -> UserError:
    return UserError(f"cannot write in {folder}: {error.strerror}; is the folder writable?")


def _refuse_taken(folder: Path, locked: bool | None, named: list[Writer], alone: bool) -> None:
    """Raise `Taken` where somebody holds the place: by the lock or, without locks, by a line."""
    living = [writer for writer in named if writer.lives]
    if locked is False:
        who = [*(writer for writer in named if writer.lives is None), *living]
    elif locked is None:
        who = [writer for writer in living if alone or writer.alone]
    if locked or (locked is None and not who):
        return
    holder, advice = (who[-1], who[-1].advice) if who else ("another castctl", "wait for it")
    raise Taken(f"run {folder} is written by {holder}; {advice}")


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
        born=born(),
        host=socket.gethostname(),
        since=datetime.datetime.now().astimezone().isoformat(sep=" ", timespec="seconds"),
        command=one_line(shlex.join([Path(sys.argv[0]).name or "python", *sys.argv[1:]])),
    )


def _write(handle: int, folder: Path, writer: Writer) -> None:
    """The only line of a writer alone, a further one of another."""
    try:
        if writer.alone:
            _replace(handle, [writer])
        else:
            os.lseek(handle, 0, os.SEEK_END)
            os.write(handle, _line(writer))
    except OSError as error:
        raise _cannot_write(folder, error) from None


def _leave(handle: int, writer: Writer) -> None:
    """Take the writer's line away, and what others left where nobody else is at work."""
    named = _read(handle)
    if writer in named:
        quiet = not writer.alone and hold(handle)
        _replace(handle, [] if quiet else [other for other in named if other != writer])


def _replace(handle: int, writers: list[Writer]) -> None:
    lines = b"".join(map(_line, writers))
    os.pwrite(handle, lines, 0)
    os.ftruncate(handle, len(lines))


def _line(writer: Writer) -> bytes:
    return json.dumps(asdict(writer)).encode() + b"\n"


def _read(handle: int) -> list[Writer]:
    """Who the file says writes, without the lines that name nobody."""
    try:
        lines = os.pread(handle, MOST_BYTES, 0).splitlines()
    except OSError:
        return []
    return [writer for line in lines if (writer := _parsed(line)) is not None]


def _parsed(line: bytes) -> Writer | None:
    try:
        writer = Writer(**json.loads(line))
    except (ValueError, TypeError, RecursionError):
        return None
    kinds = {"alone": bool, "pid": int, "born": float}
    fits = all(type(v) is kinds.get(k, str) for k, v in asdict(writer).items())
    return writer if fits else None
