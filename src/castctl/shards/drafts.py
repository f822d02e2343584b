"""Files and folders in the making, under hidden names beside what they are to be.

Who makes one holds a lock of the kernel's on it (flock), which ends with the process however that
ends. A draft that nobody holds was left by a process that was killed, and goes when the same thing
is made again. Where the file system has no locks, nothing is taken for left.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import glob
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

FOLDER = ".castctl-{}.tmp"
"""The name of a folder in the making."""


def hold(handle: int, *, shared: bool = False) -> bool | None:
    """Lock an open file or folder until it is closed, alone or `shared` with others who share it.

    False where somebody else holds it, None where the file system has no locks.
    """
    how = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    try:
        fcntl.flock(handle, how | fcntl.LOCK_NB)
    except OSError as error:
        return False if error.errno in (errno.EAGAIN, errno.EACCES) else None
    return True


@contextlib.contextmanager
def drafted_file(path: Path) -> Iterator[tuple[BinaryIO, Path]]:
    """A file to write, and its name; to be renamed to `path` while open, or else it is removed."""
    for left in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        with contextlib.suppress(OSError), left.open("r+b") as stream:
            if hold(stream.fileno()):
                left.unlink()
    while True:
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
        if _is_ours(handle, Path(name)):
            break
    try:
        with os.fdopen(handle, "wb") as stream:
            yield stream, Path(name)
    finally:
        Path(name).unlink(missing_ok=True)


@contextlib.contextmanager
def drafted_folder(beside: Path) -> Iterator[Path]:
    """A folder to fill and to rename, or else it is removed."""
    for left in beside.parent.glob(FOLDER.format("*")):
        with contextlib.suppress(OSError), _opened(left) as handle:
            if hold(handle):
                shutil.rmtree(left)
    while True:
        folder = beside.with_name(FOLDER.format(secrets.token_hex(4)))
        folder.mkdir(parents=True)
        handle = os.open(folder, os.O_RDONLY)
        if _is_ours(handle, folder):
            break
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(handle)


@contextlib.contextmanager
def _opened(folder: Path) -> Iterator[int]:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        yield handle
    finally:
        os.close(handle)


def _is_ours(handle: int, draft: Path) -> bool:
    """Hold a new draft. Closed where another took it for left before it was held."""
    if hold(handle) is not False and draft.exists():
        return True
    os.close(handle)
    return False
