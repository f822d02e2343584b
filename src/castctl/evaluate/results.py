"""Results of evaluations on disk: where they are, and reading them back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from castctl.shards.part import read_json
from castctl.shards.stage import StepFolder

Result = dict[str, Any]


def task_name(task: str) -> str:
    """The folder name of an evaluation task: a benchmark's name, or a file's without its ending."""
    return Path(task).stem if Path(task).suffix else task.replace("/", "--")


def read_result(folder: StepFolder) -> Result | None:
    """The result that `evaluate` wrote, None where it is not done; `UserError` if it is broken."""
    file = folder.path / "results.json"
    return read_json(file) if file.is_file() else None
