"""Which steps a diagnostic reads, and from where."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq

from castctl.diagnose.data import StepData, read_step
from castctl.diagnose.diagnosis import Diagnostic
from castctl.diagnose.missing import compute_missing
from castctl.diagnose.needs import Need, teacher_context
from castctl.errors import UserError
from castctl.policies import PolicySource
from castctl.progress import Progress
from castctl.runs import Run
from castctl.shards.part import read_metadata
from castctl.shards.stage import StepFolder
from castctl.train.loop import OF_SCORING
from castctl.train.metrics import Metrics

TOKENS_AT_ONCE = 30_000_000
"""Tokens read for one diagnosis, about 3 GB; of a longer run steps are taken evenly."""


@dataclass(frozen=True)
class Subject:
    """What a name stands for: the step folders below `path`, and the run that they are of, if any.

    `weights` are those named by hand, to score policy and teacher with.
    """

    path: Path
    steps: list[StepFolder]
    run: Run | None
    weights: PolicySource | None = None


@dataclass(frozen=True)
class ChosenStep:
    """A step to read: its folder, with what was computed for it, its whole parts, the seconds of
    its scoring passes, and the weights that computed what it lacked."""

    folder: StepFolder
    parts: list[int]
    seconds: dict[str, float]
    computed_with: str | None = None

    def facts(self) -> dict[str, object]:
        """What is recorded of the step in a diagnosis."""
        made = {
            stage: read_metadata(self.folder.part_path(stage, self.parts[0]), stage) or {}
            for stage in ("rollouts", "signals")
            if self.folder.has(stage, self.parts[0])
        }
        scored = made.get("signals", {}).get("signals", {})
        teacher = scored.get("teacher_logprobs")
        return {
            "step": self.folder.step,
            "parts": len(self.parts),
            "of_parts": len(self.folder.parts("rollouts")),
            "sampler": made["rollouts"].get("model"),
            "policy": _model(scored.get("policy_logprobs")),
            "teacher": _model(teacher),
            "teacher_settings": teacher.get("teacher") if isinstance(teacher, dict) else None,
            "teacher_context": teacher_context(made.get("signals", {})),
            "computed_with": self.computed_with,
        }


def _model(made: object) -> object:
    return made.get("model") if isinstance(made, dict) else None


def choose_steps(
    diagnostic: Diagnostic,
    subject: Subject,
    asked: list[int],
    out: Path,
    *,
    progress: Progress,
    overwrite: bool = False,
) -> list[ChosenStep]:
    """The steps `asked` for; else those that have what is needed; else, computing it into `out`,
    those with a checkpoint at their start.

    With weights named by hand it is computed whatever is there, for the last step unless others
    are asked for. Raises `UserError` where there is nothing to read or to compute with.
    """
    need, named = diagnostic.need, subject.weights is not None and bool(diagnostic.need.signals)
    folders = _asked(subject, asked)
    if not named:
        seconds = _seconds(subject.run)
        ready = [
            ChosenStep(folder, parts, seconds.get(folder.step, {}))
            for folder in folders
            if (parts := need.parts_of(folder))
        ]
        if ready and (not asked or len(ready) == len(folders)):
            return _thinned(ready)
    if not asked:
        folders = folders[-1:] if named else _with_checkpoint(diagnostic, subject, folders)
    return [
        _computed(diagnostic, subject, folder, out, progress, overwrite, named)
        for folder in folders
    ]


def _asked(subject: Subject, asked: list[int]) -> list[StepFolder]:
    folders = [folder for folder in subject.steps if folder.parts("rollouts")]
    if missing := sorted(set(asked) - {folder.step for folder in folders}):
        there = ", ".join(str(folder.step) for folder in folders) or "none"
        raise UserError(
            f"{subject.path} has no rollouts at step {missing[0]}; steps that have: {there}"
        )
    if not folders:
        raise UserError(f"{subject.path} has no rollouts; run `castctl rollout` first")
    return [folder for folder in folders if not asked or folder.step in asked]


def _with_checkpoint(
    diagnostic: Diagnostic, subject: Subject, folders: list[StepFolder]
) -> list[StepFolder]:
    run = subject.run
    found = [
        f for f in folders if run is not None and (f.step == 0 or run.checkpoint(f.step).is_dir())
    ]
    if not found:
        lacking = ", ".join(sorted(diagnostic.need.signals)) or "rewards"
        raise UserError(
            f"no step of {subject.path} has what {diagnostic.name} reads ({lacking}), or a "
            "checkpoint at its start to compute it with; name weights with --model"
        )
    return found


def _computed(
    diagnostic: Diagnostic,
    subject: Subject,
    folder: StepFolder,
    out: Path,
    progress: Progress,
    overwrite: bool,
    named: bool,
) -> ChosenStep:
    run = subject.run
    if run is None:
        raise UserError(
            f"{folder.path} lacks what {diagnostic.name} reads, and no run says which model made "
            "it; name one with --model"
        )
    done = compute_missing(
        run, folder, diagnostic.need, out / f"step-{folder.step:05d}",
        method=diagnostic.method(run.recipe, named), source=subject.weights if named else None,
        progress=progress, overwrite=overwrite,
    )  # fmt: skip
    parts = diagnostic.need.parts_of(done.folder)
    return ChosenStep(done.folder, parts, done.seconds, done.source.fingerprint)


def _seconds(run: Run | None) -> dict[int, dict[str, float]]:
    """By step, the seconds of each scoring pass that a run's metrics hold."""
    if run is None or not (run.path / "metrics.parquet").is_file():
        return {}
    return {
        row["step"]: {
            name.removeprefix(OF_SCORING): value
            for name, value in row.items()
            if name.startswith(OF_SCORING) and value is not None
        }
        for row in Metrics(run.path / "metrics.parquet").rows
    }


def _thinned(steps: list[ChosenStep]) -> list[ChosenStep]:
    """As many steps, evenly over the run and with its last, as memory holds."""
    tokens = sum(_tokens(step) for step in steps)
    keep = max(1, min(len(steps), len(steps) * TOKENS_AT_ONCE // max(tokens, 1)))
    places = {len(steps) - 1 - round(n * len(steps) / keep) for n in range(keep)}
    return [steps[place] for place in sorted(places)]


def _tokens(step: ChosenStep) -> int:
    """Completion tokens of a step, by its files' headers."""
    total = 0
    for part in step.parts:
        metadata = pq.read_metadata(step.folder.part_path("rollouts", part))
        for group in range(metadata.num_row_groups):
            row_group = metadata.row_group(group)
            columns = (row_group.column(n) for n in range(row_group.num_columns))
            total += sum(
                column.num_values
                for column in columns
                if column.path_in_schema.startswith("completion_token_ids.")
            )
    return total


def read_chosen(steps: list[ChosenStep], need: Need, progress: Progress) -> Iterator[StepData]:
    """The chosen steps one after the other, so that only one need be in memory."""
    with progress.task("diagnose", len(steps), "steps") as advance:
        for step in steps:
            yield read_step(step.folder, need.stages, step.parts)
            advance(1)
