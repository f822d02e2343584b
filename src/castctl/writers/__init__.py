"""Results as other tools write them, a file a tool: its `write(run, step, folder)` fills a folder
that is there and empty, with one step of the run or with all."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from castctl.errors import UserError

if TYPE_CHECKING:
    from castctl.runs.run import Run

Format = Literal["model", "trl", "verl", "lighteval", "inspect"]
"""What a run can be exported as."""

FORMATS: dict[Format, str] = {
    "model": "a checkpoint, or its adapter",
    "trl": "rollouts as TRL's log_completions",
    "verl": "rollouts as verl's rollout_data_dir",
    "lighteval": "evaluations as lighteval's details and results",
    "inspect": "evaluations as logs of Inspect, which inspect view opens",
}


def known_format(name: str) -> Format:
    """A format by its name; `UserError` where there is none."""
    for known in FORMATS:
        if known == name:
            return known
    raise UserError(f"there is no format {name}; write one of {', '.join(FORMATS)}")


Write = Callable[["Run", int | None, Path], None]


def writer(name: Format) -> Write:
    """The `write` of a format of another tool."""
    write: Write = importlib.import_module(f"castctl.writers.{name}").write
    return write
