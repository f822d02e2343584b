"""Evaluations set side by side: found by what was typed, and paired problem by problem."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from castctl.comparison.entries import untaken
from castctl.errors import UserError, one_line
from castctl.recipe.recipe import ALTERING, alterations
from castctl.runs.run import is_run, open_run, read_manifest
from castctl.shards.part import read_json
from castctl.stages.evaluate.results import Result, variant_of
from castctl.stages.evaluate.statistics import (
    Estimate,
    detectable_difference,
    difference,
    paired_difference,
    sign_flip_p_value,
)

RESULTS = "results.json"

NEEDED = ("task", "problems", "k", "avg", "pass", "maj", "grader", "by_problem")
"""What a result must say to be compared."""


@dataclass(frozen=True)
class Evaluation:
    """One entry: `source` is what was typed for it."""

    name: str
    source: str
    file: Path
    result: Result


@dataclass(frozen=True)
class Paired:
    """An entry against the first, over the same problems.

    `difference` is of mean accuracy, with Student's 95 % interval; `p_value` is of a two-sided
    sign-flip test; `detectable` is the smallest true difference that this many problems would
    find four times in five, None where no problem differs. `gained` and `lost` are the problems
    solved more and less often.
    """

    difference: Estimate
    p_value: float
    detectable: float | None
    gained: list[str]
    lost: list[str]


@dataclass(frozen=True)
class EvaluationNumbers:
    """One row. pass@k is of the comparison's `pass_k`, maj@k of the entry's own `k`."""

    name: str
    source: str
    file: str
    model: str | None
    step: int | None
    k: int
    temperature: float | None
    avg: Estimate
    pass_at: Estimate
    maj: Estimate
    against_first: Paired | None
    """None for the first entry itself."""


@dataclass(frozen=True)
class EvaluationComparison:
    """Evaluations of the same problems by the same grader.

    `pass_k` is the greatest k that every entry has samples for. `unequal` says in words what
    else the entries differ in.
    """

    task: str
    problems: int
    grader: str
    pass_k: int
    unequal: list[str]
    entries: list[EvaluationNumbers]
    kind: str = "evaluations"


def find_evaluations(sources: Sequence[str]) -> list[Evaluation] | None:
    """The evaluations named, in that order; None where none of the sources is one.

    An entry is a `results.json`, the folder that holds it or one above, or a run that holds one
    evaluation and nothing else. Raises `UserError` where only some entries are evaluations.
    """
    files = [_file(source) for source in sources]
    if not any(files):
        return None
    if None in files:
        other = sources[files.index(None)]
        one = next(s for s, file in zip(sources, files, strict=True) if file)
        lacks = "none" if Path(other).exists() else "not there"
        raise UserError(
            f"{one} is an evaluation and {other} is {lacks}; name an evaluation's folder for "
            "each entry, such as RUN/eval/TASK/step-00050, or recipes and finished runs alone"
        )
    found: list[Evaluation] = []
    for source, file in zip(sources, files, strict=True):
        assert file is not None
        result = _read(file)
        name = untaken(_name(file, result), {each.name.casefold() for each in found})
        found.append(Evaluation(name, source, file, result))
    return found


def _file(source: str) -> Path | None:
    """The results that `source` names; None where it is no evaluation."""
    path = Path(source)
    try:
        if path.name == RESULTS and path.is_file():
            return path
        if (path / RESULTS).is_file():
            return path / RESULTS
        files = sorted(path.glob(f"step-*/{RESULTS}"))
        if is_run(source) and _only_evaluated(run := open_run(source).path):
            files = sorted(run.glob(f"eval/*/step-*/{RESULTS}"))
        elif not files:
            return None
    except OSError:
        return None
    if len(files) != 1:
        names = ", ".join(str(file.parent) for file in files) or "none that is done"
        raise UserError(f"{source} holds {len(files)} evaluations ({names}); name one of them")
    return files[0]


def _only_evaluated(run: Path) -> bool:
    """Whether a run was made for its evaluations: nothing was trained or sampled in it."""
    if read_manifest(run).get("state") == "finished" or any(run.glob("step-*")):
        return False
    return not (run / "checkpoints").exists() and (run / "eval").is_dir()


def _name(file: Path, result: Result) -> str:
    """An entry's name: its run's, where that was trained the step, and what it was made with
    other than the run's own settings."""
    step = file.absolute().parent
    if step.parent.parent.name != "eval":
        return step.name
    run = step.parent.parent.parent
    at_step = step.name if (run / "checkpoints").exists() else ""
    return " ".join(filter(None, (run.name, at_step, variant_of(result))))


def _read(file: Path) -> Result:
    result: Result = read_json(file)
    if missing := [key for key in NEEDED if key not in result]:
        raise UserError(
            f"{file} lacks {', '.join(missing)}; make it again with castctl eval --overwrite"
        )
    try:
        for estimate in (result["avg"], result["maj"], result["pass"][str(result["k"])]):
            Estimate(**estimate)
        dict(result["by_problem"])
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{file} is not as castctl eval writes it ({one_line(error, named=True)}); make it "
            "again with --overwrite"
        ) from None
    return result


def compare_evaluations(entries: Sequence[Evaluation]) -> EvaluationComparison:
    """The numbers of each entry, and of each against the first.

    Raises `UserError` where they are not of the same problems or not by the same grader.
    """
    first = entries[0]
    for entry in entries[1:]:
        _require_alike(first, entry)
    problems = sorted(first.result["by_problem"])
    pass_k = min(entry.result["k"] for entry in entries)
    reference_P = _accuracy(first, problems)
    rows = [
        EvaluationNumbers(
            name=entry.name,
            source=entry.source,
            file=str(entry.file),
            model=entry.result.get("model"),
            step=entry.result.get("step"),
            k=entry.result["k"],
            temperature=(entry.result.get("sampling") or {}).get("temperature"),
            avg=Estimate(**entry.result["avg"]),
            pass_at=Estimate(**entry.result["pass"][str(pass_k)]),
            maj=Estimate(**entry.result["maj"]),
            against_first=None
            if entry is first
            else _paired(reference_P, _accuracy(entry, problems), problems),
        )
        for entry in entries
    ]
    return EvaluationComparison(
        task=first.result["task"],
        problems=len(problems),
        grader=first.result["grader"],
        pass_k=pass_k,
        unequal=_unequal(entries),
        entries=rows,
    )


def _require_alike(first: Evaluation, entry: Evaluation) -> None:
    ours, theirs = (set(each.result["by_problem"]) for each in (first, entry))
    if ours != theirs:
        raise UserError(
            f"{first.source} and {entry.source} are not of the same problems ({len(ours)} and "
            f"{len(theirs)}, {len(ours & theirs)} in both); evaluate one again on the other's task "
            "and limit"
        )
    before, after = first.result["grader"], entry.result["grader"]
    if before != after:
        raise UserError(
            f"{first.source} and {entry.source} were graded by {before} and {after}; grade the "
            f"older again: castctl eval --rescore {first.file.parent} --overwrite, or the other's "
            "folder likewise"
        )


def _accuracy(entry: Evaluation, problems: list[str]) -> NDArray[np.float64]:
    """Each problem's mean reward over its samples (P)."""
    return np.array([entry.result["by_problem"][p] for p in problems], np.float64)


def _paired(
    before_P: NDArray[np.float64], after_P: NDArray[np.float64], problems: list[str]
) -> Paired:
    difference_P = difference(before_P, after_P)
    return Paired(
        difference=paired_difference(before_P, after_P),
        p_value=sign_flip_p_value(difference_P),
        detectable=detectable_difference(difference_P),
        gained=[p for p, d in zip(problems, difference_P, strict=True) if d > 0],
        lost=[p for p, d in zip(problems, difference_P, strict=True) if d < 0],
    )


def _altered(name: str, result: Result) -> float | None:
    """The value of a setting that altered the sampling distribution, None where it was off."""
    return alterations(result.get("sampling") or {}).get(name)


def _unequal(entries: Sequence[Evaluation]) -> list[str]:
    """Where entries differ in how they were made, each entry's own in a line."""
    facts: dict[str, Callable[[Result], object]] = {
        "samples of each problem": lambda r: r["k"],
        "temperature": lambda r: (r.get("sampling") or {}).get("temperature"),
        "top_p": lambda r: (r.get("sampling") or {}).get("top_p"),
        **{name: partial(_altered, name) for name in ALTERING if name != "top_p"},
        "max_tokens": lambda r: (r.get("sampling") or {}).get("max_tokens"),
        "stop": lambda r: (r.get("sampling") or {}).get("stop") or None,
        "prompt": lambda r: r.get("template"),
        "date in the prompt": lambda r: r.get("date"),
        "seed": lambda r: r.get("seed"),
        "server": lambda r: (r.get("endpoint") or {}).get("url"),
    }
    said = []
    for fact, read in facts.items():
        values = [read(entry.result) for entry in entries]
        if len(set(map(str, values))) > 1:
            each = (f"{e.name} {v}" for e, v in zip(entries, values, strict=True))
            said.append(f"{fact}: {', '.join(each)}")
    return said
