"""Judge completions again that are there already, and say what changed."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from castctl.errors import UserError
from castctl.progress import Progress
from castctl.recipe.problems import fitted
from castctl.recipe.recipe import Recipe
from castctl.recipe.task import TaskSettings, graded
from castctl.recipe.trust import require_trust
from castctl.recipe.verifier import VerifierSettings
from castctl.runs.run import Run, create_run, discarded_if_empty, is_run, open_run
from castctl.shards.stage import StepFolder
from castctl.stages.evaluate.foreign import Completions, numbered
from castctl.stages.evaluate.foreign_files import read_foreign
from castctl.stages.evaluate.foreign_run import write_evaluation
from castctl.stages.evaluate.results import read_result, require_folder
from castctl.stages.evaluate.statistics import Estimate, paired_difference, problem_share
from castctl.stages.evaluate.stored import Stored, read_stored, refuse_another_verifier, write_again
from castctl.verify.golds import gold_notes
from castctl.verify.judge import (
    Judgement,
    Row,
    check_error_share,
    grader_name,
    judge,
    judging_pool,
    reward_verdict,
)
from castctl.verify.pool import CheckPool

UNBOXED = ("no_answer", "truncated")
"""Verdicts on completions without a box."""


@dataclass(frozen=True)
class Move:
    """How many completions went from one verdict to another; `old` is None where none was known."""

    old: str | None
    new: str
    count: int


@dataclass(frozen=True)
class Change:
    """A completion that is worth something else now."""

    prompt_id: str
    sample: int
    problem: str
    answer: str | None
    extracted: str | None
    old: str
    new: str


@dataclass(frozen=True)
class Regraded:
    """One set of completions, judged again. `before`, `after` and `difference` are means over
    problems of their mean reward, over the completions that both graders judged."""

    path: Path
    problems: int
    completions: int
    samples: tuple[int, int]
    """The least and the most completions of a problem."""
    old_grader: str | None
    """None where nobody had judged them, or nobody says who."""
    new_grader: str
    moves: list[Move]
    before: Estimate | None
    after: Estimate
    difference: Estimate | None
    changes: list[Change]
    unboxed: int
    """Completions without a box, which the grader does not read."""
    written: bool
    """Whether rewards and results are those of the new grader."""
    notes: list[str]


@dataclass(frozen=True)
class Rescored:
    """What judging again found; `run` is the new run of completions made elsewhere."""

    source: Path
    run: Path | None
    parts: list[Regraded]


def rescore(
    source: Path,
    recipe: Recipe,
    *,
    progress: Progress,
    name: str | None = None,
    overwrite: bool = False,
    typed: Collection[str] = (),
) -> Rescored:
    """Judge stored or foreign completions with `recipe.verifier`; those of a task that says how it
    is graded as it says, but for the settings of the verifier that were `typed`.

    `source` is an evaluation's folder, a run's (all its evaluations) or a step's, in which nothing
    changes without `overwrite`; or a file of problems, completions and answers, or sample files of
    lm-evaluation-harness, which become evaluations of a new run called `name`.

    Raises `UserError` where there is nothing to judge, where too many checks fail, and where
    `overwrite` would put another verifier's rewards in the place of a verifier's own.
    """
    if not os.path.exists(source):
        raise UserError(f"{source}: no such file or folder; name a folder of an evaluation or a "
                        "file of completions")  # fmt: skip
    folders = _folders(source) if source.is_dir() else []
    with judging_pool(recipe.verifier) as pool:
        if not folders:
            return _foreign(source, recipe, pool, progress, name)
        if name is not None:
            raise UserError(f"--run names the run that completions from elsewhere become, and "
                            f"{source} is castctl's own; leave it out")  # fmt: skip
        own = [_of_task(folder, recipe, typed) for folder in folders]
        if overwrite:
            for folder, its in zip(folders, own, strict=True):
                refuse_another_verifier(folder, its)
        parts = []
        for folder, its in zip(folders, own, strict=True):
            stored = read_stored(folder, its)
            judged = _judge(stored.rows, its, pool, progress)
            if overwrite:
                write_again(folder, its, pool, progress)
            parts.append(_compared(folder.path, stored, judged, its, overwrite, []))
        return Rescored(source, None, parts)


def _of_task(folder: StepFolder, recipe: Recipe, typed: Collection[str]) -> Recipe:
    """The recipe, with the verifier that the task's file of an evaluation named."""
    result = read_result(folder) or {}
    said = result.get("task_file")
    if said is None:
        return recipe
    settings = fitted(TaskSettings, said, str(folder.path / "results.json"))
    verifier = graded(recipe, settings, Path(result["task"]), typed)
    require_trust(verifier)
    return recipe.model_copy(update={"verifier": verifier})


def _folders(source: Path) -> list[StepFolder]:
    """The folders with rollouts that a folder stands for; none where it is no folder of castctl."""
    if (source / "rollouts").is_dir():
        return [_step_folder(source)]
    below = sorted(source.glob("step-*")) if not (source / "manifest.json").is_file() else []
    found = below or sorted(source.glob("eval/*/step-*"))
    return [_step_folder(path) for path in found if (path / "rollouts").is_dir()]


def _step_folder(path: Path) -> StepFolder:
    match = re.fullmatch(r"step-(\d+)", path.absolute().name)
    return StepFolder(path, int(match[1]) if match else 0)


def _foreign(
    source: Path, recipe: Recipe, pool: CheckPool, progress: Progress, name: str | None
) -> Rescored:
    if name is not None and is_run(name):
        raise UserError(f"run {open_run(name).path} is there already; name another with --run")
    read = read_foreign(source, recipe.data)
    if recipe.verifier.function is None:
        read = [_answered(each) for each in read]
    run = create_run(recipe, name, "rescore")
    run.record(rescored=str(source))
    with discarded_if_empty(run):
        parts = [_graded(each, run, recipe, pool, progress) for each in read]
    return Rescored(source, run.path, parts)


def _graded(
    completions: Completions, run: Run, recipe: Recipe, pool: CheckPool, progress: Progress
) -> Regraded:
    numbered_samples = list(numbered(completions.samples))
    samples = [sample for _, _, sample in numbered_samples]
    old_rewards, scale = _on_our_scale([s.reward for s in samples], recipe.verifier)
    stored = Stored(
        keys=[(key, number) for key, number, _ in numbered_samples],
        rows=[Row(s.problem, s.completion, s.answer, s.finish_reason) for s in samples],
        old=[_verdict(s.reward, recipe.verifier) for s in samples],
        old_rewards=old_rewards,
        grader=completions.grader,
        verdicts_differ=False,
    )
    doubts = gold_notes([row.answer for row in stored.rows], recipe.verifier, progress)
    judged = _judge(stored.rows, recipe, pool, progress)
    folder = run.eval_folder(require_folder(completions.name), 0)
    notes = write_evaluation(folder, completions, stored, judged, recipe, pool)
    return _compared(
        folder.path, stored, judged, recipe, True, [*completions.notes, *doubts, *scale, *notes]
    )


def _on_our_scale(
    rewards: list[float | None], settings: VerifierSettings
) -> tuple[list[float | None], list[str]]:
    """A maker's rewards, as right or wrong where they are no shares of the credit (-1 and 1 are
    verl's of DAPO), since their mean is compared with ours; and what to say of that."""
    known = [reward for reward in rewards if reward is not None]
    if all(0 <= reward <= 1 for reward in known):
        return rewards, []
    verdicts = [None if r is None else float(reward_verdict(r, settings) == "correct")
                for r in rewards]  # fmt: skip
    return verdicts, [
        f"the old rewards go from {min(known):g} to {max(known):g}: each counts as right, from "
        f"{settings.correct_from:g} on, or wrong"
    ]


def _answered(made: Completions) -> Completions:
    """Without the completions for which there is nothing to compare with."""
    samples = [sample for sample in made.samples if sample.answer is not None]
    without = len(made.samples) - len(samples)
    if not samples:
        raise UserError(f"{made.path}: no answer in any row to judge its completions by; write "
                        "each problem's reference answer beside them")  # fmt: skip
    note = [f"{without} completions of problems without an answer left out"] if without else []
    return replace(made, samples=samples, notes=[*made.notes, *note])


def _judge(
    rows: Sequence[Row], recipe: Recipe, pool: CheckPool, progress: Progress
) -> list[Judgement]:
    with progress.task("verify", len(rows), "completions") as advance:
        judged = judge(pool, recipe.verifier, rows, lambda: advance(1))
    check_error_share(judged, recipe.verifier)
    return judged


def _verdict(reward: float | None, settings: VerifierSettings) -> str | None:
    return None if reward is None else reward_verdict(reward, settings)


def _compared(
    path: Path,
    stored: Stored,
    judged: Sequence[Judgement],
    recipe: Recipe,
    written: bool,
    notes: list[str],
) -> Regraded:
    of_problem = Counter(key for key, _ in stored.keys)
    pairs = Counter((old, new.verdict) for old, new in zip(stored.old, judged, strict=True))
    before, after, difference = _means(stored, judged)
    return Regraded(
        path=path,
        problems=len(of_problem),
        completions=len(judged),
        samples=(min(of_problem.values()), max(of_problem.values())),
        old_grader=stored.grader,
        new_grader=grader_name(recipe.verifier),
        moves=[Move(old, new, count) for (old, new), count in pairs.most_common()],
        before=before,
        after=after,
        difference=difference,
        changes=list(_changes(stored, judged)),
        unboxed=sum(each.verdict in UNBOXED for each in judged),
        written=written,
        notes=notes,
    )


def _means(
    stored: Stored, judged: Sequence[Judgement]
) -> tuple[Estimate | None, Estimate, Estimate | None]:
    new_R = np.array([_number(each.reward) for each in judged])
    old_R = np.array([_number(reward) for reward in stored.old_rewards])
    problems = {key: number for number, key in enumerate(dict.fromkeys(k for k, _ in stored.keys))}
    of_R = np.array([problems[key] for key, _ in stored.keys])
    both = ~np.isnan(new_R) & ~np.isnan(old_R)
    if not both.any():
        return None, problem_share(_by_problem(new_R, of_R, ~np.isnan(new_R))), None
    before_P, after_P = (_by_problem(values, of_R, both) for values in (old_R, new_R))
    return problem_share(before_P), problem_share(after_P), paired_difference(before_P, after_P)


def _by_problem(
    values_R: NDArray[np.float64], of_R: NDArray[np.int64], which_R: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """Mean of each problem that has any of the marked values (P)."""
    counts = np.bincount(of_R[which_R])
    sums = np.bincount(of_R[which_R], weights=values_R[which_R])
    return sums[counts > 0] / counts[counts > 0]


def _changes(stored: Stored, judged: Sequence[Judgement]) -> Iterator[Change]:
    """Where the verdict is another; of a maker who knew right and wrong alone, where that is."""
    for (key, number), row, old, was, new in zip(
        stored.keys, stored.rows, stored.old, stored.old_rewards, judged, strict=True
    ):
        if old is None:
            continue
        other = np.float32(was or 0.0) != np.float32(new.reward or 0.0)  # as shards store them
        if (stored.verdicts_differ and (old != new.verdict or other)) or (
            (new.verdict == "correct") != (old == "correct")
        ):
            yield Change(key, number, row.problem, row.answer, new.extracted, old, new.verdict)


def _number(reward: float | None) -> float:
    return np.nan if reward is None else reward
