"""How far the policy has moved from the initial one, at a sample of a step's completions."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from castctl.methods.correction import divergence_terms
from castctl.models.packing import by_prompt, rows_of
from castctl.progress import Advance, Progress
from castctl.recipe.recipe import Recipe
from castctl.shards.columns import ragged_column
from castctl.shards.stage import Shard, StepFolder
from castctl.stages.draws import token_draws
from castctl.stages.score.scorers import Scorer

Measures = dict[str, float | None]


def measure_reference(
    folder: StepFolder,
    recipe: Recipe,
    reference: Scorer | None,
    shard: Shard,
    sums: Callable[[list[NDArray[np.float64]]], list[NDArray[np.float64]]],
    progress: Progress,
) -> Measures:
    """`kl_reference`: KL(policy || reference) in nats a token, by k3 over the tokens of completions
    drawn at random until they have `train.reference_kl_tokens`, or all. Nothing where the recipe
    asks for none, or the signals tell it of every token.

    Each shard scores what is drawn of its own parts, and `sums` adds up what the shards have.
    """
    if not recipe.samples_reference:
        return {}
    assert reference is not None, "no reference at hand"
    drawn = drawn_rows(folder, recipe)
    own = {part: rows for part, rows in drawn.items() if shard.owns(part)}
    with progress.task("reference", sum(map(len, own.values())), "completions") as advance:
        scored = [_terms(folder, part, rows, recipe, reference, advance)
                  for part, rows in own.items()]  # fmt: skip
    terms_N = np.concatenate([np.zeros(0), *scored])
    [[total, tokens]] = sums([np.array([terms_N.sum(), len(terms_N)], np.float64)])
    return {"kl_reference": float(total / tokens) if tokens else None}


def _terms(
    folder: StepFolder,
    part: int,
    rows: NDArray[np.int64],
    recipe: Recipe,
    reference: Scorer,
    advance: Advance,
) -> NDArray[np.float64]:
    """k3's term of each token of some rows of a part."""
    rollouts, signals = (folder.read(stage, part).table for stage in ("rollouts", "signals"))
    prompts = rows_of(*ragged_column(rollouts, "prompt_token_ids"))
    completions = rows_of(*ragged_column(rollouts, "completion_token_ids"))
    policy = rows_of(*ragged_column(signals, "policy_logprobs"))
    rows = rows[by_prompt([prompts[row] for row in rows])]
    scored_N, _ = reference.model.score(
        [prompts[row] for row in rows], [completions[row] for row in rows],
        recipe.sampling.temperature, recipe.train.microbatch_tokens,
        recipe.train.head_chunk_tokens, advance, with_entropies=False,
    )  # fmt: skip
    policy_N = np.concatenate([policy[row] for row in rows])
    return divergence_terms(scored_N.astype(np.float64) - policy_N.astype(np.float64))


def drawn_rows(folder: StepFolder, recipe: Recipe) -> dict[int, NDArray[np.int64]]:
    """The rows of each part that are drawn, by parts: those with the smallest random numbers, which
    belong to their completions."""
    keys, lengths = [], []
    for part in folder.parts("rollouts"):
        table = folder.read("rollouts", part).table
        ids, samples = (table[name].to_pylist() for name in ("prompt_id", "sample"))
        keys += [(part, row, *key) for row, key in enumerate(zip(ids, samples, strict=True))]
        lengths.append(np.diff(ragged_column(table, "completion_token_ids")[1]))
    length_R = np.concatenate([np.zeros(0, np.int64), *lengths])
    ids, samples = [key[2] for key in keys], [key[3] for key in keys]
    one_R = np.ones(len(keys), np.int64)
    draws = token_draws(ids, samples, one_R, recipe.seed, folder.step, "reference_kl")
    order = np.argsort(draws, kind="stable")
    before_R = np.cumsum(length_R[order]) - length_R[order]
    chosen = order[before_R < recipe.train.reference_kl_tokens]
    drawn: dict[int, list[int]] = {}
    for part, row, *_ in (keys[each] for each in np.sort(chosen)):
        drawn.setdefault(part, []).append(row)
    return {part: np.array(rows, np.int64) for part, rows in drawn.items()}
