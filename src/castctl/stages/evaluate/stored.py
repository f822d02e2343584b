"""Completions that castctl has stored with their verdicts, read and judged again in place."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from castctl.errors import UserError
from castctl.progress import Progress
from castctl.recipe.recipe import Recipe
from castctl.shards.columns import completion_lengths, correctness, has_tokens
from castctl.shards.part import write_json
from castctl.shards.schema import reward_weights
from castctl.shards.stage import StepFolder, agreed
from castctl.stages.evaluate.results import read_result
from castctl.stages.evaluate.summary import summarise
from castctl.stages.score.rewards import rows_to_judge, score_rewards
from castctl.verify.judge import Row, grader_name
from castctl.verify.pool import CheckPool
from castctl.versions import library_versions


@dataclass(frozen=True)
class Stored:
    """Completions (R) and what was thought of them; None where that is not known."""

    keys: list[tuple[str, int]]
    """Prompt id and sample."""
    rows: list[Row]
    old: list[str | None]
    """Verdicts."""
    old_rewards: list[float | None]
    grader: str | None
    verdicts_differ: bool
    """Whether the old verdicts tell one way to be wrong from another."""


def read_stored(folder: StepFolder, recipe: Recipe) -> Stored:
    """The rollouts of a folder with their rewards.

    Raises `UserError` where there are no rollouts, and where the tokenizer of `recipe.model` is
    not that of their tokens.
    """
    folder.require_parts("rollouts", "there is nothing to judge again")
    rollouts = folder.table("rollouts")
    keys = list(zip(*(rollouts[name].to_pylist() for name in ("prompt_id", "sample")), strict=True))
    known: dict[tuple[str, int], tuple[str, float | None]] = {}
    graders = []
    for number in folder.parts("rewards"):
        part = folder.read("rewards", number)
        graders.append(part.metadata)
        known |= {
            (id, sample): (verdict, None if np.isnan(reward) else float(reward))
            for id, sample, verdict, reward in zip(
                *(part.table[name].to_pylist() for name in ("prompt_id", "sample", "verdict")),
                correctness(part.table),
                strict=True,
            )
        }
    unjudged: tuple[str | None, float | None] = (None, None)
    old = [known.get(key, unjudged) for key in keys]
    return Stored(
        keys=keys,
        rows=_rows(folder, rollouts, recipe),
        old=[verdict for verdict, _ in old],
        old_rewards=[reward for _, reward in old],
        grader=agreed(graders, "grader", None),
        verdicts_differ=True,
    )


def _rows(folder: StepFolder, rollouts: pa.Table, recipe: Recipe) -> list[Row]:
    tokenizer = _tokenizer(rollouts, recipe)
    if tokenizer is None:
        return rows_to_judge(rollouts, None, recipe.verifier)
    require_own_tokens(folder, rollouts, tokenizer, recipe)
    return rows_to_judge(rollouts, tokenizer, recipe.verifier)


def require_own_tokens(
    folder: StepFolder, rollouts: pa.Table, tokenizer: Any, recipe: Recipe
) -> None:
    """Raise `UserError` where the tokenizer, of `recipe.model`, is not that of the completions."""
    for row in rollouts.select(["completion_token_ids", "completion"]).slice(0, 8).to_pylist():
        ids, text = row.values()
        if tokenizer.decode(ids, skip_special_tokens=True) != text:
            raise UserError(
                f"the tokens of {folder.path} are not those of model.path={recipe.model.path}; "
                "name the model that made them: --set model.path=..."
            )


def _tokenizer(rollouts: pa.Table, recipe: Recipe) -> Any | None:
    """The tokenizer of the completions' tokens; None where a server or a file gave text alone."""
    if not has_tokens(rollouts):
        return None
    from castctl.models.loading import load_tokenizer, locate_model

    model = recipe.model
    return load_tokenizer(locate_model(model.path, model.revision), model)


def refuse_another_verifier(folder: StepFolder, recipe: Recipe) -> None:
    """Raise `UserError` where the stored rewards are another verifier's than the recipe's, or of a
    step other sums: the folder's name and the run's recipe would speak of one and its rewards be
    the other's."""
    parts = [folder.read("rewards", number) for number in folder.parts("rewards")]
    verifier = agreed((part.metadata for part in parts), "verifier", None)
    if verifier is None:
        return
    stored, asked = verifier.get("function"), recipe.verifier.function
    if stored != asked:
        raise UserError(
            f"{folder.path} was judged by {stored or 'math-verify'}, and --overwrite would put the "
            f"rewards of {asked or 'math-verify'} there; say --set verifier.function="
            f"{stored or 'null'}, or leave --overwrite out"
        )
    weights = {} if read_result(folder) else recipe.verifier.weights
    if any(reward_weights(part.table.schema) != weights for part in parts):
        raise UserError(
            f"{folder.path} has other rewards or other weights than verifier.rewards, and "
            "--overwrite would put these there; name the recipe that it was made with by --recipe, "
            "or leave --overwrite out"
        )


def write_again(folder: StepFolder, recipe: Recipe, pool: CheckPool, progress: Progress) -> None:
    """Make `rewards/` again and, of an evaluation, the numbers in `results.json`.

    The pool remembers what it has judged before. `results.json` is replaced last and at once, so
    that an interruption leaves the old one; the same call makes both agree again.

    Raises `UserError` for completions that came from a file, which is to be judged into another
    run.
    """
    rollouts = folder.table("rollouts")
    first = folder.read("rollouts", folder.parts("rollouts")[0]).metadata or {}
    if "source" in first:
        raise UserError(f"{folder.path} came from a file; judge that file again with another --run")
    folder = StepFolder(folder.path, first.get("step", folder.step), first.get("total_steps"))
    result = read_result(folder)
    tokenizer = _tokenizer(rollouts, recipe)
    settings = recipe.verifier if result is None else recipe.verifier.correctness
    score_rewards(folder, settings, pool, tokenizer, progress=progress, overwrite=True)
    if result is None:
        return
    truncated = np.array(rollouts["finish_reason"].to_pylist()) == "length"
    rewards = folder.table("rewards")
    try:
        lengths = completion_lengths(rollouts)
        numbers = summarise(rewards, lengths, truncated, result["k"], pool, result["task"])
    except UserError:
        (folder.path / "results.json").unlink()  # it speaks of other rewards
        raise
    made = {"grader": grader_name(recipe.verifier), "libraries": library_versions()}
    write_json(folder.path / "results.json", {**result, **made, **numbers})
