"""Who of several ranks is heard: rank 0, and whoever has to end first."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import IO, TYPE_CHECKING

from castctl.errors import UserError

if TYPE_CHECKING:
    from castctl.ranks import Ranks

_heard = 2
_kept: IO[bytes] | None = None


def hush(ranks: Ranks) -> None:
    """Keep what a rank other than 0 prints from the terminal; `log_into` gives it a file."""
    global _heard, _kept
    if ranks.first or _kept is not None:
        return
    _heard, _kept = os.dup(2), tempfile.TemporaryFile()  # noqa: SIM115 - until the run has one
    _redirect(_kept)


def log_into(run: Path, ranks: Ranks) -> None:
    """Write what this rank prints, and has printed, into a file of the run."""
    if _kept is None:
        return
    log = run / f"rank-{ranks.rank.index}.log"
    try:
        with log.open("ab") as file:
            sys.stdout.flush()
            sys.stderr.flush()
            _kept.seek(0)
            shutil.copyfileobj(_kept, file)
            file.flush()
            _redirect(file)
    except OSError as error:
        raise UserError(
            f"rank {ranks.rank.index} cannot write {log}: {error.strerror}; does this machine see "
            "the run's folder?"
        ) from None


def speak(line: str, heard: bool) -> None:
    """Print a line, on the terminal if it is to be `heard`, whatever rank this is; else into this
    rank's log, which rank 0 has not."""
    if heard or _kept is not None:
        print(line, file=sys.stderr)
    if heard and _kept is not None:
        os.write(_heard, f"{line}\n".encode(errors="backslashreplace"))


def _redirect(file: IO[bytes]) -> None:
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
        os.dup2(file.fileno(), stream.fileno())
