"""The rows of a part that is not whole yet: a hidden file beside it, a line a row, written as each
is done, so that an interruption costs none of them."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, BinaryIO

from castctl.errors import UserError
from castctl.files import regular
from castctl.shards.metadata import Metadata, parse_metadata
from castctl.shards.stage import describe_difference

NAME = ".{}.rows"
"""Of the file, from the part's name."""

ANY = NAME.format("part-*.parquet")


class Journal:
    """Rows by their numbers, each a JSON object; a line that was cut short is none.

    `made` is what decides them. Raises `UserError` where there are rows that were made otherwise,
    unless they are to be made `anew`.
    """

    def __init__(self, part: Path, made: Metadata, anew: bool = False) -> None:
        self.path = part.with_name(NAME.format(part.name))
        self._made = json.loads(json.dumps(made))
        self._stream: BinaryIO | None = None
        self.rows = {} if anew else self._read()

    def add(self, number: int, row: dict[str, Any]) -> None:
        """Keep a row, now; `UserError` where it cannot be written."""
        try:
            stream = self._stream = self._stream or self._opened()
            # The break stands before the line: one that was cut short before stays on its own.
            stream.write(b"\n" + json.dumps([number, row]).encode())
            stream.flush()
        except OSError as error:
            raise UserError(
                f"cannot write {self.path}: {error.strerror or error}; is the folder writable?"
            ) from error
        self.rows[number] = row

    def remove(self) -> None:
        """Forget the rows: the part is whole."""
        self.close()
        self.rows = {}
        self.path.unlink(missing_ok=True)

    def close(self) -> None:
        if self._stream is not None:
            self._stream.close()
            self._stream = None

    def _opened(self) -> BinaryIO:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        mode = os.O_APPEND if self.rows else os.O_TRUNC
        flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | mode
        stream = os.fdopen(os.open(self.path, flags, 0o666), "wb")
        if not self.rows:
            stream.write(json.dumps(self._made).encode())
        return stream

    def _read(self) -> dict[int, dict[str, Any]]:
        try:
            lines = regular(self.path).read_bytes().split(b"\n")
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise UserError(f"cannot read {self.path}: {error.strerror}; delete it") from error
        try:
            there = parse_metadata(lines[0])
        except ValueError:
            return {}
        if different := [key for key in self._made if there.get(key) != self._made[key]]:
            raise UserError(
                f"{self.path} was begun with {describe_difference(there, self._made, different)}; "
                "go on as it was begun, or add --overwrite to begin again"
            )
        rows: dict[int, dict[str, Any]] = {}
        for line in lines[1:]:
            match _parsed(line):
                case [int(number), dict(row)]:
                    rows[number] = row
        return rows


def _parsed(line: bytes) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None
