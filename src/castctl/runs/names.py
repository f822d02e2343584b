"""What a run, a comparison or an evaluation may be called: what is one folder's name anywhere."""

from __future__ import annotations

from pathlib import Path

from castctl.errors import UserError

LONGEST = 200
"""Bytes of UTF-8: file systems take 255, and what is written beside a folder has a longer name."""

RULE = (
    f"a name has at most {LONGEST} bytes, printable characters alone, no slash, no dot, hyphen or "
    "space at its start, and no space at its end"
)


def require_name(name: str, what: str) -> str:
    """The name itself; `UserError` with the rule where it is none for a folder."""
    try:
        fits = 0 < len(name.encode()) <= LONGEST
    except UnicodeEncodeError:
        fits = False
    if fits and name.isprintable() and "/" not in name and name[0] not in ".- " and name[-1] != " ":
        return name
    raise UserError(f"{what} cannot be called {_shown(name)}: {RULE}")


def require_path(path: Path, what: str) -> Path:
    """The path itself; `UserError` where its last piece is no name, or where it climbs out of a
    folder that it names (`a/../../x`)."""
    require_name(path.name or path.absolute().name, what)  # `.` goes by the name of the folder
    pieces = list(path.parts)
    while pieces and pieces[0] in ("..", path.anchor):
        del pieces[0]
    if ".." in pieces:
        raise UserError(f"{what} cannot be at {_shown(str(path))}: a path has .. only at its start")
    return path


def _shown(name: str) -> str:
    short = name if len(name) <= 60 else f"{name[:60]}..."
    return repr(short)
