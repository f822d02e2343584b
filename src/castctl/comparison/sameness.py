"""What must be the same for numbers to compare: evaluation, problems and prompts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyarrow as pa

from castctl.comparison.entries import Entry, Planned
from castctl.errors import UserError
from castctl.progress import Progress
from castctl.recipe.recipe import Recipe
from castctl.recipe.split import holds_out, task_of
from castctl.recipe.task import about
from castctl.runs.run import Run
from castctl.shards.part import content_hash

Facts = dict[str, Any]

SAMPLING = (
    "temperature", "top_p", "top_k", "min_p", "presence_penalty", "repetition_penalty",
    "max_tokens", "stop",
)  # fmt: skip
"""What, beside k, decides how an evaluation samples."""


def require_same_evaluation(entries: list[Entry]) -> None:
    """Refuse, before anything is trained, entries whose evaluations would not compare.

    A run that is finished is taken by its results, one to train by its recipe. Raises
    `UserError` with the first difference.
    """
    _require_same(entries, _evaluation, "their evaluations do not compare")


def require_same_problems(entries: list[Entry]) -> None:
    """Refuse finished runs that were not evaluated on the same problems; others are passed over."""
    _require_same(entries, _problems, "their evaluations do not compare")


def require_same_prompts(entries: list[Entry], progress: Progress) -> None:
    """Refuse entries that do not train on the same prompts, in the same order.

    A run that has its prompts is taken by them; of another the data is read, and nothing
    written. Solutions count, the data's name does not.
    """
    known: dict[str, Facts] = {}

    def prompts(planned: Planned) -> Facts:
        recipe = planned.recipe
        method = recipe.method
        told = method.teacher if method.told_by_data else None
        split = recipe.eval.held_out if holds_out(recipe) else None
        key = f"{recipe.data!r} {recipe.model!r} {recipe.verifier.function} {told!r} {split}"
        if planned.run.prompts_folder.has("prompts", 0):
            return _fingerprint(*_stored_prompts(planned.run))
        if key not in known:
            known[key] = _fingerprint(*_load_prompts(recipe, progress))
        return known[key]

    _require_same(entries, prompts, "they do not train on the same prompts")


def _require_same(
    entries: list[Entry], facts_of: Callable[[Planned], Facts | None], verdict: str
) -> None:
    first, expected = "", Facts()
    for entry in entries:
        for facts in filter(None, map(facts_of, entry.runs)):
            first, expected = first or entry.source, expected or facts
            for key in expected:
                if facts[key] != expected[key]:
                    raise UserError(
                        f"{first} and {entry.source} differ in {key} ({expected[key]} and "
                        f"{facts[key]}), so {verdict}; make them equal"
                    )


def _evaluation(planned: Planned) -> Facts:
    if not planned.finished:
        return _evaluation_asked(planned.recipe)
    steps = planned.recipe.train.steps
    before, after = _evaluation_made(planned, 0), _evaluation_made(planned, steps)
    for key in before:
        if before[key] != after[key]:
            raise UserError(
                f"the evaluations of {planned.path} before and after training differ in {key} "
                f"({before[key]} and {after[key]}); make one again with castctl eval --run "
                f"{planned.path} --checkpoint 0 --overwrite"
            )
    return after


def _evaluation_made(planned: Planned, step: int) -> Facts:
    result = planned.result(step)
    try:
        sampling = result["sampling"]
        return {
            "the evaluation's task": result["task"],
            "k": result["k"],
            **{f"the evaluation's {key}": sampling[key] for key in SAMPLING},
            "the grader": result["grader"],
        }
    except (KeyError, TypeError):
        raise UserError(
            f"the evaluation of {planned.path} at step {step} does not say how it was made; make "
            f"it again with castctl eval --run {planned.path} --checkpoint {step} --overwrite"
        ) from None


def _evaluation_asked(recipe: Recipe) -> Facts:
    from castctl.stages.evaluate.runner import eval_sampling
    from castctl.verify.judge import grader_name

    recipe = about(recipe, task_of(recipe))
    sampling = eval_sampling(recipe).model_dump(mode="json")
    return {
        "the evaluation's task": task_of(recipe),
        "k": recipe.eval.k,
        **{f"the evaluation's {key}": sampling[key] for key in SAMPLING},
        "the grader": grader_name(recipe.verifier),
    }


def _problems(planned: Planned) -> Facts | None:
    if not planned.finished:
        return None
    first, last = (planned.result(step)["by_problem"] for step in (0, planned.recipe.train.steps))
    if first.keys() != last.keys():
        raise UserError(
            f"the evaluations of {planned.path} before and after training pose other problems; "
            f"make one again with castctl eval --run {planned.path} --checkpoint 0 --overwrite"
        )
    return {
        "the number of problems evaluated": len(first),
        "the problems evaluated": _hash(sorted(first)),
    }


def _hash(texts: list[str]) -> str:
    """Sixteen hex digits over texts in their order."""
    return content_hash(pa.table({"text": pa.array(texts, pa.string())}))


def _fingerprint(prompts: pa.Table, held: pa.Table | None) -> Facts:
    ids = None if held is None else sorted(held["prompt_id"].to_pylist())
    return {
        "the number of prompts": prompts.num_rows,
        "the prompts' content": content_hash(prompts.drop_columns(["source"])),
        "the problems held out": None if ids is None else _hash(ids),
    }


def _stored_prompts(run: Run) -> tuple[pa.Table, pa.Table | None]:
    """The prompts in a run's folder, and those it holds out."""
    held = run.held_out_folder
    return (
        run.prompts_folder.read("prompts", 0).table,
        held.read("prompts", 0).table if held.has("prompts", 0) else None,
    )


def _load_prompts(recipe: Recipe, progress: Progress) -> tuple[pa.Table, pa.Table | None]:
    from castctl.models.loading import load_tokenizer, locate_model
    from castctl.runs.prompts import divided_prompts

    folder = locate_model(recipe.model.path, recipe.model.revision)
    prompts, held = divided_prompts(recipe, load_tokenizer(folder, recipe.model), progress)
    return prompts.table, held
