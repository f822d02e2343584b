"""What must not leave this machine: its places and its secrets."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

from castctl.errors import UserError
from castctl.runs.run import Run

CHECKED = ("README.md", "*.yaml", "*config.json")
"""Files that castctl or a library writes; a tokenizer's vocabulary may hold any text."""

SECRET = re.compile(r"TOKEN|SECRET|PASSWORD|API_?KEY", re.IGNORECASE)
SHORTEST = 8
"""Characters of a secret: shorter ones are found in any text."""


def refuse_private(folder: Path, run: Run) -> None:
    """Raise `UserError` where a file names a folder of this machine that strangers need not know,
    or holds a secret: nothing else may find it before the whole world does."""
    for pattern in CHECKED:
        for file in sorted(folder.rglob(pattern)):
            text = file.read_text(encoding="utf-8")
            for what, needle in _private(run):
                if re.search(rf"{re.escape(needle)}(?![\w.-])", text):
                    raise UserError(
                        f"{file.name} would hold {what}, which stands in {run.path / 'recipe.yaml'}"
                        " or beside it, and nothing was pushed; take it out there"
                    )


def _private(run: Run) -> Iterator[tuple[str, str]]:
    from huggingface_hub import get_token

    places = {Path.home(), Path.cwd(), run.path.absolute(), run.path.resolve()}
    for place in sorted(map(str, places)):
        if place != "/":
            yield f"the folder {place}", place
    if token := get_token():
        yield "the hub's token", token
    for name, value in os.environ.items():
        if SECRET.search(name) and len(value) >= SHORTEST:
            yield f"the value of {name}", value
