"""Which steps a diagnostic reads, and from where."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from castctl.diagnosis.data import StepData, read_step
from castctl.diagnosis.diagnosis import Diagnostic
from castctl.diagnosis.needs import Need, teacher_context
from castctl.errors import UserError
from castctl.methods import MethodSettings
from castctl.progress import Progress
from castctl.recipe.model import ModelSettings
from castctl.recipe.reader import load_recipe
from castctl.runs.run import Run
from castctl.shards.part import count_values, read_metadata
from castctl.shards.stage import StepFolder
from castctl.stages.train.metrics import OF_SCORING, Metrics

if TYPE_CHECKING:
    from castctl.stages.policies import PolicySource

TOKENS_AT_ONCE = 30_000_000
"""Tokens read for one diagnosis, about 3 GB; of a longer run steps are taken evenly."""


@dataclass(frozen=True)
class Subject:
    """What a name stands for: the step folders of `path`, and the run that they are of, if any.

    `weights` are those named by hand, to score policy and teacher with; `retaught` says that
    another teacher than the run's own was asked for, and `others` that it is told what another
    problem's answer is.
    """

    path: Path
    steps: list[StepFolder]
    run: Run | None
    weights: PolicySource | None = None
    retaught: bool = False
    others: bool = False

    @property
    def home(self) -> Path:
        """Where `diagnose/` belongs: the run, for its own steps; else beside the shards."""
        run = self.run
        own = run is not None and all(
            step.path.absolute() == run.step(step.step).path.absolute() for step in self.steps
        )
        return run.path if run is not None and own else self.path

    @property
    def began(self) -> ModelSettings:
        """The initial model of the run, whatever model was named for this diagnosis."""
        assert self.run is not None, "nothing is computed without a run"
        recipe = self.run.path / "recipe.yaml"
        return (load_recipe(recipe) if recipe.is_file() else self.run.recipe).model


@dataclass(frozen=True)
class ChosenStep:
    """A step to read: its folder, with what was computed for it, its whole parts, the tokens at
    the start of each completion that its teacher is not heard at, and the seconds of its scoring
    passes, where they are known."""

    folder: StepFolder
    parts: list[int]
    skip_tokens: int
    seconds: dict[str, float]

    def facts(self) -> dict[str, Any]:
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
            "skip_tokens": self.skip_tokens,
            "computed": sorted(self.folder.elsewhere),
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

    With weights or a teacher named by hand signals are computed whatever is there, with weights for
    the last step unless others are asked for. Raises `UserError` where there is nothing to read or
    to compute with.
    """
    scores = bool(diagnostic.need.signals)
    named = scores and subject.weights is not None
    retaught = scores and subject.retaught and diagnostic.need.teacher is not None
    folders = _asked(subject, asked)
    ready = {} if named or retaught else _ready(diagnostic, subject, folders)
    if not asked:
        if ready:
            folders = [folder for folder in folders if folder.step in ready]
        elif named:
            folders = folders[-1:]
        elif scores:
            folders = _with_checkpoint(diagnostic, subject, folders)
        folders = _thinned(folders)
    chosen = []
    for folder in folders:
        try:
            chosen.append(
                ready.get(folder.step)
                or _computed(
                    diagnostic, subject, folder, out, progress, overwrite, named or retaught
                )
            )
        except UserError:
            if asked or not _vanished(subject, folder) or (folder is folders[-1] and not chosen):
                raise
    return chosen


def _vanished(subject: Subject, folder: StepFolder) -> bool:
    """Whether a step's checkpoint is gone: a run that trains removes those it does not keep."""
    run = subject.run
    return run is not None and folder.step > 0 and not run.checkpoint(folder.step).is_dir()


def _ready(
    diagnostic: Diagnostic, subject: Subject, folders: list[StepFolder]
) -> dict[int, ChosenStep]:
    """The steps that have what is needed, in some of their parts at least; none where completions
    were left out of any of them, since those that need no more are no fair sample."""
    if any(diagnostic.need.lacks_rows(folder) for folder in folders):
        return {}
    seconds = _seconds(subject.run)
    skip = 0 if subject.run is None else subject.run.recipe.method.teacher.skip_tokens
    found = {folder.step: (folder, diagnostic.need.parts_of(folder)) for folder in folders}
    return {
        step: ChosenStep(folder, parts, skip, seconds.get(step, {}))
        for step, (folder, parts) in found.items()
        if parts
    }


def _asked(subject: Subject, asked: list[int]) -> list[StepFolder]:
    folders = [folder for folder in subject.steps if folder.parts("rollouts")]
    if missing := sorted(set(asked) - {folder.step for folder in folders}):
        there = ", ".join(str(folder.step) for folder in folders) or "none"
        raise UserError(
            f"{subject.path} has no rollouts at step {missing[0]}; steps that have: {there}"
        )
    if not folders:
        raise UserError(
            f"{subject.path} has no step with rollouts; name another run, or make some with "
            "castctl rollout"
        )
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
    rescore: bool,
) -> ChosenStep:
    run = subject.run
    if run is None:
        raise UserError(
            f"{folder.path} lacks what {diagnostic.name} reads, and no run says which model made "
            "it; name one with --model"
        )
    named = subject.weights is not None
    method = diagnostic.method(run.recipe, subject.began, named)
    if subject.others:
        method = _told_by_data(method)
    from castctl.diagnosis.missing import compute_missing  # torch and the models, only for this

    done = compute_missing(
        run, folder, diagnostic.need, out / f"step-{folder.step:05d}",
        method=method, source=subject.weights, rescore=rescore, others=subject.others,
        progress=progress, overwrite=overwrite,
    )  # fmt: skip
    parts = diagnostic.need.parts_of(done.folder)
    if not parts:
        raise UserError(
            f"{folder.path} still lacks what {diagnostic.name} reads; look at it with "
            f"castctl inspect {folder.path} --verify"
        )
    return ChosenStep(done.folder, parts, method.teacher.skip_tokens, done.seconds)


def _told_by_data(method: MethodSettings) -> MethodSettings:
    """A method whose teacher is told what the data has, so that it can be told another's."""
    if not method.teacher.told_by_peers:
        return method
    told = {"context": "solution_or_answer", "template": None}
    return method.model_copy(update={"teacher": method.teacher.model_copy(update=told)})


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


def _thinned(folders: list[StepFolder]) -> list[StepFolder]:
    """As many steps, evenly over the run and with its last, as memory holds."""
    tokens = sum(map(_tokens, folders))
    keep = max(1, min(len(folders), len(folders) * TOKENS_AT_ONCE // max(tokens, 1)))
    places = {len(folders) - 1 - round(n * len(folders) / keep) for n in range(keep)}
    return [folders[place] for place in sorted(places)]


def _tokens(folder: StepFolder) -> int:
    """Completion tokens of a step, by its files' headers."""
    paths = (folder.part_path("rollouts", part) for part in folder.parts("rollouts"))
    return sum(count_values(path, "completion_token_ids") for path in paths)


def read_chosen(steps: list[ChosenStep], need: Need, progress: Progress) -> Iterator[StepData]:
    """The chosen steps one after the other, so that only one need be in memory."""
    with progress.task("diagnose", len(steps), "steps") as advance:
        for step in steps:
            skip = step.skip_tokens if need.teacher else 0
            yield read_step(step.folder, need.stages, step.parts, skip)
            advance(1)
