"""Where a model or a data set is: a path or a hub id, and `owner/name@REVISION`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

_AT = re.compile(r"(?P<path>[\w-][\w.-]*(?:/[\w.-]+)?)@(?P<revision>[\w][\w./-]*)")
_FILE = re.compile(r"\.(?:parquet|jsonl|json|csv|ya?ml)(?:\.\w+)?\Z")

BESIDE = {"model": ("revision",), "data": ("revision", "mix")}
"""What belongs to the path of a section, and not to another path."""


def at_revision(name: str) -> tuple[str, str | None]:
    """A hub id or a benchmark's name, and the revision behind its `@`; a file or a folder with an
    `@` in its name is itself."""
    found = _AT.fullmatch(name)
    if found is None or _FILE.search(name) or Path(name).exists():
        return name, None
    return found["path"], found["revision"]


def separated(values: Any) -> Any:
    """A section's settings, with a path at a revision as two of them.

    Raises `ValueError` where another revision stands beside it.
    """
    if not isinstance(values, dict) or not isinstance(values.get("path"), str):
        return values
    path, revision = at_revision(values["path"])
    if revision is None:
        return values
    if (beside := values.get("revision")) not in (None, revision):
        raise ValueError(f"{values['path']} names one revision, and revision={beside} another; "
                         "leave one out")  # fmt: skip
    return {**values, "path": path, "revision": revision}


def without_address(base: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    """A recipe's settings without what belongs to a path, where `own` settings over it name another
    path; without all that says where data is, where they name a mixture."""
    for section, beside in BESIDE.items():
        said, below = own.get(section), base.get(section)
        if not isinstance(said, dict) or not isinstance(below, dict):
            continue
        if said.get("mix"):
            beside = ("path", "config", "split", "revision", "limit", "problem_column",
                      "answer_column", "solution_column")  # fmt: skip
        elif "path" not in said or said["path"] == below.get("path"):
            continue
        base = {**base, section: {key: below[key] for key in below if key not in beside}}
    return base
