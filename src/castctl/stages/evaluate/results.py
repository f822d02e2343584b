"""Results of evaluations on disk: where they are, reading them back, and what made them."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from castctl.data.benchmarks import RENDERING
from castctl.data.files import SUFFIXES, split_name
from castctl.errors import UserError, one_line
from castctl.recipe.recipe import Recipe
from castctl.recipe.task import file_and_digest, is_task_file
from castctl.runs.names import require_name
from castctl.shards.part import read_json
from castctl.shards.stage import StepFolder
from castctl.stages.evaluate.statistics import Estimate

Result = dict[str, Any]

WITHOUT = {"stop": [], "presence_penalty": 0.0, "repetition_penalty": 1.0}
"""What older evaluations sampled without, and do not say."""

KINDS: dict[str, Any] = {
    "name": str, "task": str, "grader": str, "step": int, "k": int, "problems": int,
    "avg": dict, "maj": dict, "pass": dict, "by_problem": dict,
    "truncated_share": int | float | None, "length_mean": int | float | None, "endpoint": dict,
}  # fmt: skip
"""What a result says, and of which kind it is."""


def task_name(task: str) -> str:
    """The folder name of an evaluation task: a benchmark's name, or a file's without its ending; of
    a task's file with its digest behind it."""
    if is_task_file(task):
        return "-".join(filter(None, file_and_digest(task)))
    name, suffix = split_name(Path(task))
    return name if suffix in SUFFIXES else task.replace("/", "--")


def require_folder(name: str) -> str:
    """The name of an evaluation's folder; `UserError` where no folder may be called so."""
    return require_name(name, "an evaluation")


def variant(own: Recipe, asked: Recipe) -> str:
    """What tells an evaluation from one by the run's own settings: `k16-t0.6`, or nothing.

    It stands in the folder's name after the task's, so that the two never share one. What fits
    no name (the prompt, the user's verifier) is there by eight digits of its hash.
    """
    before, now = _choices(own), _choices(asked)
    return "-".join(f"{label}{now[label]}" for label in now if now[label] != before[label])


def variant_of(result: Result) -> str:
    """The same of a result that was made; nothing where it does not say."""
    task = task_name(result["task"])
    return str(result.get("name", task)).removeprefix(task).removeprefix("-")


def kind_of(result: Result) -> tuple[str, int]:
    """What results of one run have in common that differ in the step alone: the name of their
    folder, and k for those that do not say it."""
    return str(result.get("name", result["task"])), result["k"]


def _choices(recipe: Recipe) -> dict[str, str]:
    settings, data = recipe.eval, recipe.data
    return {
        "k": str(settings.k),
        "t": f"{settings.temperature:g}",
        "top-p": f"{settings.top_p:g}",
        "top-k": str(settings.top_k),
        "min-p": f"{settings.min_p:g}",
        "presence": f"{settings.presence_penalty:g}",
        "repetition": f"{settings.repetition_penalty:g}",
        "max": str(settings.max_tokens or recipe.sampling.max_tokens),
        "stop-": _digits(recipe.sampling.stop),
        "limit": str(settings.limit or "-none"),
        "seed": str(recipe.seed),
        "dtype-": recipe.model.dtype,
        "prompt-": _digits([getattr(data, name) for name in RENDERING]),
        "verifier-": _digits(recipe.verifier.function),
        "correct-from-": f"{recipe.verifier.correct_from:g}",
    }


def _digits(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:8]


def read_result(folder: StepFolder) -> Result | None:
    """The result that `evaluate` wrote, None where it is not done; `UserError` if it is broken."""
    file = folder.path / "results.json"
    if not file.is_file():
        return None
    result: Result = read_json(file)
    try:
        said = result.keys() & KINDS.keys()
        if odd := sorted(key for key in said if not isinstance(result[key], KINDS[key])):
            raise TypeError(", ".join(odd))
        estimates = [result.get("avg"), result.get("maj"), *(result.get("pass") or {}).values()]
        for told in filter(None, estimates):
            Estimate(told["mean"], told.get("low"), told.get("high"))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{file} is not as castctl eval writes it ({one_line(error, named=True)}); make it "
            "again with --overwrite"
        ) from None
    if isinstance(sampling := result.get("sampling"), dict) and "temperature" in sampling:
        result["sampling"] = WITHOUT | sampling
    return result
