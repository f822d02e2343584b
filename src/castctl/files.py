"""Files that others may have left or named: read where they are files, and not without end."""

from __future__ import annotations

import stat
from pathlib import Path

from castctl.errors import UserError

MOST_BYTES = 2**26
"""Longest file that is read at once, of those that castctl writes a few kilobytes into."""


def regular(path: Path) -> Path:
    """The path, where it leads to a regular file: a pipe would be waited for, a device has no end.

    Raises `OSError` where nothing can be found there, `UserError` where it is no regular file.
    """
    if not stat.S_ISREG(path.stat().st_mode):
        raise UserError(f"{path} is no regular file; put one in its place, or name another")
    return path


def regular_files(folder: Path) -> None:
    """Refuse a folder with anything in it but regular files and folders, as `regular` does."""
    for path in folder.iterdir():
        if not path.is_dir():
            regular(path)


def read_text(path: Path, most_bytes: int = MOST_BYTES) -> str:
    """The UTF-8 text of a regular file; as `regular`, and `ValueError` for other or longer text."""
    with regular(path).open("rb") as stream:
        content = stream.read(most_bytes + 1)
    if len(content) > most_bytes:
        raise ValueError(f"longer than {most_bytes:,} bytes")
    return content.decode("utf-8")
