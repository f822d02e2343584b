"""The one class for mistakes a user can mend, and other errors made fit for its one line."""

from __future__ import annotations

import unicodedata


class UserError(Exception):
    """Something the user asked for cannot be done.

    The message is one line: what is wrong, where, and what to do. The command
    line prints it without a traceback and exits with code 2. Every other
    exception is a bug and keeps its traceback.
    """


def one_line(error: BaseException | str, limit: int = 300, *, named: bool = False) -> str:
    """What an error says, at most `limit` characters, fit for the middle of a line.

    Its kind goes before where `named`, and stands alone where it says nothing.
    """
    said = " ".join(str(error).split()).rstrip(".")[:limit]
    kind = type(error).__name__
    return f"{kind}: {said}" if named and said else said or kind


def printable(text: str) -> str:
    """Untrusted text as one line, with what is no visible character or space escaped."""
    return "".join(
        char.encode("unicode_escape").decode()
        if unicodedata.category(char) in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")
        else char
        for char in text
    )
