"""Experiment trackers, through Accelerate."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from typing import Any

import pyarrow as pa

from castctl.errors import UserError, printable
from castctl.runs.run import Run
from castctl.shards.stage import StepFolder
from castctl.stages.groups import group_numbers

Sample = dict[str, Any]
"""A completion by the columns of `SAMPLE`."""

SAMPLE = ("problem", "answer", "completion", "verdict", "reward", "advantage")
LONGEST_TEXT = 4000
"""Characters of a text that a tracker is sent."""

TABLE = "samples"
"""What a table goes by; `completions` is a number of each step."""


class NoTracker:
    """Writes nowhere."""

    def log(self, row: dict[str, Any], step: int) -> None:
        """Take note of nothing."""

    def show(self, folder: StepFolder, step: int) -> None:
        """Show nothing."""

    def close(self) -> None:
        """Nothing to close."""


class AccelerateTracker:
    """Sends the numbers of each row, and a few completions, to the trackers that the recipe names.

    `step` counts the steps that are done: 0 is before training.
    """

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
        self._completions = settings.completions

    def log(self, row: dict[str, Any], step: int) -> None:
        numbers = {k: v for k, v in row.items() if isinstance(v, int | float) and k != "step"}
        self._accelerator.log(numbers, step=step)

    def show(self, folder: StepFolder, step: int) -> None:
        """Send `logging.completions` of a shaped step."""
        if samples := shown_samples(folder, self._completions):
            for tracker in self._accelerator.trackers:
                SHOW[tracker.name](tracker, samples, step)

    def close(self) -> None:
        for tracker in self._accelerator.trackers:  # end_training would end the process group too
            tracker.finish()


def start_tracker(run: Run) -> NoTracker | AccelerateTracker:
    """The run's trackers, or one that does nothing."""
    return AccelerateTracker(run) if run.recipe.logging.trackers else NoTracker()


def shown_samples(folder: StepFolder, most: int) -> list[Sample]:
    """Up to so many completions of the step's first part: of one prompt after the other, in their
    order, the one with the greatest advantage and the one with the least."""
    if not most:
        return []
    number = folder.parts("rollouts")[0]
    rollouts, rewards, shaped = (
        folder.read(stage, number).table for stage in ("rollouts", "rewards", "advantages")
    )
    base = shaped["base"].to_pylist()
    rows: dict[int, list[int]] = {}
    for row, prompt in enumerate(group_numbers(rollouts["prompt_id"]).tolist()):
        rows.setdefault(prompt, []).append(row)
    ends = [dict.fromkeys([max(own, key=base.__getitem__), min(own, key=base.__getitem__)])
            for own in rows.values()]  # fmt: skip
    chosen = [row for pair in ends for row in pair][:most]
    return [
        {
            **{name: _cut(rollouts[name][row].as_py()) for name in SAMPLE[:3]},
            "verdict": rewards["verdict"][row].as_py(),
            "reward": rewards["reward"][row].as_py(),
            "advantage": base[row],
        }
        for row in chosen
    ]


def _cut(text: str | None) -> str | None:
    if text is None or len(text) <= LONGEST_TEXT:
        return text
    return f"{text[:LONGEST_TEXT]}… ({len(text) - LONGEST_TEXT:,} more characters)"


def _on_tensorboard(tracker: Any, samples: list[Sample], step: int) -> None:
    tracker.tracker.add_text(TABLE, "\n\n".join(map(_markdown, samples)), global_step=step)


def _markdown(sample: Sample) -> str:
    """A sample for TensorBoard, which reads Markdown: texts are indented blocks, and so nothing in
    them is a mark."""
    reward = "no reward" if sample["reward"] is None else f"reward {sample['reward']:g}"
    head = f"**{sample['verdict']}**, {reward}, advantage {sample['advantage']:+.4g}"
    texts = [f"Problem: {sample['problem']}", f"Reference: {sample['answer']}", "",
             *sample["completion"].split("\n")]  # fmt: skip
    lines = [line for text in texts for line in text.split("\n")]
    return "\n".join([head, "", *(f"    {printable(line)}" for line in lines)])


def _on_wandb(tracker: Any, samples: list[Sample], step: int) -> None:
    data = [[sample[name] for name in SAMPLE] for sample in samples]
    tracker.log_table(TABLE, columns=list(SAMPLE), data=data, step=step)


def _on_trackio(tracker: Any, samples: list[Sample], step: int) -> None:
    trackio = importlib.import_module("trackio")
    table = trackio.Table(dataframe=pa.Table.from_pylist(samples).to_pandas())
    tracker.log({TABLE: table}, step=step)


SHOW: dict[str, Callable[[Any, list[Sample], int], None]] = {
    "tensorboard": _on_tensorboard,
    "wandb": _on_wandb,
    "trackio": _on_trackio,
}
"""How each tracker is sent a table."""
