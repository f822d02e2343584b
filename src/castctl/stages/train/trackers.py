"""Experiment trackers, through Accelerate."""

from __future__ import annotations

import importlib.util
from typing import Any

from castctl.errors import UserError
from castctl.runs.run import Run


class NoTracker:
    """Writes nowhere."""

    def log(self, row: dict[str, Any], step: int) -> None:
        """Take note of nothing."""

    def close(self) -> None:
        """Nothing to close."""


class AccelerateTracker:
    """Sends the numbers of each row to the trackers that the recipe names."""

    def __init__(self, run: Run) -> None:
        from accelerate import Accelerator

        settings = run.recipe.logging
        for name in settings.trackers:  # Accelerate leaves out, silently, what is not installed
            if importlib.util.find_spec(name) is None:
                raise UserError(f"tracker {name} is not installed; pip install 'castctl[{name}]'")
        self._accelerator = Accelerator(
            cpu=True, log_with=list(settings.trackers), project_dir=str(run.path / "trackers")
        )
        self._accelerator.init_trackers(settings.project, config={"run": run.name})

    def log(self, row: dict[str, Any], step: int) -> None:
        numbers = {k: v for k, v in row.items() if isinstance(v, int | float) and k != "step"}
        self._accelerator.log(numbers, step=step)

    def close(self) -> None:
        for tracker in self._accelerator.trackers:  # end_training would end the process group too
            tracker.finish()


def start_tracker(run: Run) -> NoTracker | AccelerateTracker:
    """The run's trackers, or one that does nothing."""
    return AccelerateTracker(run) if run.recipe.logging.trackers else NoTracker()
