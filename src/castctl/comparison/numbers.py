"""The numbers of a comparison, from what its runs left on disk."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from castctl.comparison.entries import Entry, Planned
from castctl.errors import UserError
from castctl.recipe.split import task_of
from castctl.stages.evaluate.results import Result, read_result, task_name
from castctl.stages.evaluate.statistics import (
    Estimate,
    difference,
    paired_difference,
    pass_at_k,
    problem_share,
    seed_mean,
)
from castctl.stages.train.metrics import Metrics, Row, correctness_mean

STAGES = {
    "rollout": ("seconds_rollout",),
    "score": ("seconds_verify", "seconds_score"),
    "shape": ("seconds_shape",),
    "train": ("seconds_train",),
}
"""The stages whose time is told, and the columns of the metrics that hold it."""

ZERO_VARIANCE = ("groups_all_correct", "groups_all_wrong")


@dataclass(frozen=True)
class SeedNumbers:
    """One run: its avg@k before and after, and the mean reward of each of its steps, for
    correctness alone."""

    path: str
    seed: int
    avg_before: float
    avg_after: float
    rewards: list[float | None]


@dataclass(frozen=True)
class OverSeeds:
    """What other seeds would change: means of the seeds' own avg@k with Student's interval over
    seeds. `difference` is after minus the first entry's, paired by the seeds that both have; None
    for the first entry itself, and where fewer than two are in both."""

    avg_before: Estimate
    avg_after: Estimate
    difference: Estimate | None


@dataclass(frozen=True)
class EntryNumbers:
    """One row. Shares are of 1; seconds are means over steps and seeds; tokens are of all runs.

    The value of a problem is its mean over seeds and samples; every interval but those of
    `over_seeds` is over problems, as an evaluation's own. pass@k is None where rewards are not
    just right or wrong. `difference` is avg@k after minus the first entry's, paired by problem;
    None for the first entry itself. `over_seeds` is None where there is one seed.
    """

    name: str
    source: str
    trained: bool
    method: str
    steps: int
    seeds: list[int]
    avg_before: Estimate
    avg_after: Estimate
    pass_before: Estimate | None
    pass_after: Estimate | None
    difference: Estimate | None
    zero_variance_share: float | None
    seconds_per_step: dict[str, float | None]
    generated_tokens: int
    evaluations: dict[int, Estimate]
    """avg@k by the steps that are done, where all seeds were evaluated."""
    runs: list[SeedNumbers]
    over_seeds: OverSeeds | None = None


@dataclass(frozen=True)
class Comparison:
    """All that is known of the entries. `machines` counts those the runs were made on."""

    task: str
    k: int
    temperature: float
    problems: int
    prompts: int
    machines: int
    entries: list[EntryNumbers]


def compare(entries: list[Entry]) -> Comparison:
    """The numbers of finished entries that are evaluated on the same problems.

    Raises `UserError` for a run whose files do not hold all of its steps.
    """
    first = entries[0].runs[0]
    result = first.result(first.recipe.train.steps)
    problems = sorted(result["by_problem"])
    rows = [_entry(entry, problems, None if n == 0 else entries[0])
            for n, entry in enumerate(entries)]  # fmt: skip
    machines = {
        json.dumps(planned.run.manifest.get("machine"), sort_keys=True)
        for entry in entries
        for planned in entry.runs
    }
    return Comparison(
        task=result["task"],
        k=result["k"],
        temperature=result["sampling"]["temperature"],
        problems=len(problems),
        prompts=first.run.prompts_folder.rows("prompts", [0]),
        machines=len(machines),
        entries=rows,
    )


def _entry(entry: Entry, problems: list[str], first: Entry | None) -> EntryNumbers:
    steps = entry.runs[0].recipe.train.steps
    before = [planned.result(0) for planned in entry.runs]
    after = [planned.result(steps) for planned in entry.runs]
    metrics = [_metrics(planned) for planned in entry.runs]
    rows = [row for each in metrics for row in each]
    return EntryNumbers(
        name=entry.name,
        source=entry.source,
        trained=entry.trained,
        method=entry.runs[0].recipe.method.name,
        steps=steps,
        seeds=[planned.recipe.seed for planned in entry.runs],
        avg_before=problem_share(_accuracy(before, problems)),
        avg_after=problem_share(_accuracy(after, problems)),
        pass_before=_pass(before, problems),
        pass_after=_pass(after, problems),
        difference=None
        if first is None
        else paired_difference(
            np.mean(list(_after(first, problems).values()), axis=0), _accuracy(after, problems)
        ),
        zero_variance_share=_mean_sum(rows, ZERO_VARIANCE),
        seconds_per_step={
            **{stage: _mean_sum(rows, columns) for stage, columns in STAGES.items()},
            "all": _mean_sum(rows, ("seconds",)),
        },
        generated_tokens=sum(row.get("completion_tokens") or 0 for row in rows),
        evaluations=_evaluations(entry, problems),
        runs=[
            SeedNumbers(
                path=str(planned.path),
                seed=planned.recipe.seed,
                avg_before=start["avg"]["mean"],
                avg_after=last["avg"]["mean"],
                rewards=[_known(correctness_mean(row)) for row in each],
            )
            for planned, start, last, each in zip(entry.runs, before, after, metrics, strict=True)
        ],
        over_seeds=None if len(entry.runs) < 2 else _over_seeds(entry, problems, first),
    )


def _over_seeds(entry: Entry, problems: list[str], first: Entry | None) -> OverSeeds:
    own, theirs = _after(entry, problems), {} if first is None else _after(first, problems)
    moved = [difference(theirs[seed], own[seed]) for seed in own if seed in theirs]
    return OverSeeds(
        avg_before=seed_mean(_means([planned.result(0) for planned in entry.runs], problems)),
        avg_after=seed_mean(np.array(list(own.values()))),
        difference=seed_mean(np.array(moved), least=-1) if len(moved) > 1 else None,
    )


def _after(entry: Entry, problems: list[str]) -> dict[int, NDArray[np.float64]]:
    """Each seed's accuracy by problem (P) after training."""
    results = [planned.result(planned.recipe.train.steps) for planned in entry.runs]
    seeds = (planned.recipe.seed for planned in entry.runs)
    return dict(zip(seeds, _means(results, problems), strict=True))


def _means(results: list[Result], problems: list[str]) -> NDArray[np.float64]:
    """Each problem's mean over samples, a row a result (S, P)."""
    return np.array([[result["by_problem"][p] for p in problems] for result in results], np.float64)


def _accuracy(results: list[Result], problems: list[str]) -> NDArray[np.float64]:
    """A problem's mean over seeds and samples (P); every seed has k samples, so means of means."""
    return np.mean(_means(results, problems), axis=0)


def _pass(results: list[Result], problems: list[str]) -> Estimate | None:
    """pass@k, a problem's value its mean over seeds; None where correct samples cannot be
    counted from a problem's mean reward."""
    values = []
    for result in results:
        k = result["k"]
        means = np.array([result["by_problem"][p] for p in problems], np.float64)
        correct = np.rint(means * k).astype(np.int64)
        one_seed = pass_at_k(correct, k, k)
        recorded = result["pass"][str(k)]["mean"]
        if not np.allclose(correct, means * k, atol=1e-6) or abs(one_seed.mean() - recorded) > 1e-9:
            return None
        values.append(one_seed)
    return problem_share(np.mean(values, axis=0))


def _evaluations(entry: Entry, problems: list[str]) -> dict[int, Estimate]:
    """avg@k at every step that all seeds were evaluated at alike."""
    found = {}
    steps = entry.runs[0].recipe.train.steps
    last = entry.runs[0].result(steps)
    for step in range(steps + 1):
        results = [_result(planned, step) for planned in entry.runs]
        alike = [result for result in results if result and _alike(result, last)]
        if len(alike) == len(results):
            found[step] = problem_share(_accuracy(alike, problems))
    return found


def _result(planned: Planned, step: int) -> Result | None:
    return read_result(planned.run.eval_folder(task_name(task_of(planned.recipe)), step))


def _alike(result: Result, other: Result) -> bool:
    """Whether two evaluations sampled and judged the same problems in the same way."""
    same = all(result.get(key) == other[key] for key in ("k", "sampling", "grader"))
    return same and result["by_problem"].keys() == other["by_problem"].keys()


def _metrics(planned: Planned) -> list[Row]:
    file, steps = planned.path / "metrics.parquet", planned.recipe.train.steps
    rows = Metrics(file).rows
    if [row.get("step") for row in rows] != list(range(steps)):
        raise UserError(
            f"{file} holds {len(rows)} of {steps} steps; without them the run cannot be compared"
        )
    return rows


def _mean_sum(rows: list[Row], columns: Iterable[str]) -> float | None:
    """The mean over rows of the sum of some columns; None where a row lacks one."""
    columns = tuple(columns)
    values = [[_known(row.get(name)) for name in columns] for row in rows]
    if any(value is None for row in values for value in row):
        return None
    return _known(float(np.mean(np.sum(np.array(values, np.float64), axis=1))))


def _known(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None
