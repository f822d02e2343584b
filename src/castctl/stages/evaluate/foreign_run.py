"""Completions made elsewhere as an evaluation of a run, which other commands read."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from castctl.errors import UserError
from castctl.ragged import offsets_of
from castctl.recipe.recipe import Recipe
from castctl.shards.columns import list_column
from castctl.shards.part import content_hash, write_json
from castctl.shards.schema import ROLLOUTS
from castctl.shards.stage import StepFolder
from castctl.stages.evaluate.foreign import Completions, numbered
from castctl.stages.evaluate.results import Result
from castctl.stages.evaluate.statistics import pass_at_k, problem_share
from castctl.stages.evaluate.stored import Stored
from castctl.stages.evaluate.summary import correct, summarise
from castctl.stages.groups import group_numbers
from castctl.verify.judge import Judgement, made_by
from castctl.verify.pool import CheckPool
from castctl.versions import library_versions


def write_evaluation(
    folder: StepFolder,
    made: Completions,
    stored: Stored,
    judged: Sequence[Judgement],
    recipe: Recipe,
    pool: CheckPool,
) -> list[str]:
    """Write `rollouts/` without tokens, `rewards/` and `results.json`; what must be said of them.

    A problem's mean is over all of its completions that were judged. Where problems have more and
    fewer, pass@k goes up to the smallest number and maj@k takes so many of each.
    """
    rollouts, rewards = _rollouts(stored, made), _rewards(stored, judged)
    digest = hashlib.sha256(made.path.read_bytes()).hexdigest()[:16]
    source = {"source": {"file": made.path.name, "content": digest}}
    grader = made_by(recipe.verifier.correctness)
    known = rewards.filter(pc.is_valid(rewards["reward"]))
    failed = rewards.num_rows - known.num_rows
    notes = [f"{failed} completions could not be judged and count for nothing"] if failed else []
    if not known.num_rows:
        raise UserError(f"{made.path}: no completion could be judged; has every row an answer?")
    numbers = _numbers(known, made.name, pool)
    folder.make("rollouts", 0, {}, source, lambda: rollouts)
    folder.make("rewards", 0, {"rollouts": rollouts}, source | grader, lambda: rewards)
    if numbers["samples"][0] != numbers["samples"][1]:
        fewest, most = numbers["samples"]
        notes.append(
            f"problems have {fewest} to {most} completions: avg is the mean over problems of their "
            f"means, pass@k goes up to {fewest}, maj@{fewest} takes the first {fewest} of each"
        )
    finish = np.array([row.finish_reason for row in stored.rows])
    cut = float((finish == "length").mean()) if (finish == "length").any() else None
    result = {
        "name": made.name,
        "task": made.name,
        "data": {"path": made.path.name, "content": content_hash(_problems(rollouts))},
        "model": None,
        "step": 0,
        "template": None,
        "date": None,
        "sampling": {"n": numbers["k"]},
        "seed": None,
        **grader,
        "libraries": library_versions(),
        **numbers,
        "truncated_share": cut,
    }
    write_json(folder.path / "results.json", result)
    return notes


def _problems(rollouts: pa.Table) -> pa.Table:
    first = np.unique(group_numbers(rollouts["prompt_id"]), return_index=True)[1]
    return rollouts.select(["problem", "answer", "earlier"]).take(pa.array(first))


def _numbers(rewards: pa.Table, task: str, pool: CheckPool) -> Result:
    """The summary of samples that were all judged, more or fewer of a problem."""
    of_R = group_numbers(rewards["prompt_id"])
    counts_P = np.bincount(of_R)
    k = int(counts_P.min())
    starts_P = offsets_of(counts_P)[:-1]
    number_R = np.arange(len(of_R)) - np.repeat(starts_P, counts_P)
    result = summarise(rewards.filter(number_R < k), None, None, k, pool, task)
    result["samples"] = [k, int(counts_P.max())]
    if k == counts_P.max():
        return result
    rewards_R = rewards["reward"].to_numpy(zero_copy_only=False).astype(np.float64)
    means_P = np.bincount(of_R, weights=rewards_R) / counts_P
    correct_P = np.bincount(of_R, weights=correct(rewards)).astype(np.int64)

    def pass_P(m: int) -> np.ndarray:
        return np.concatenate(
            [pass_at_k(np.array([c]), int(n), m) for c, n in zip(correct_P, counts_P, strict=True)]
        )

    return result | {
        "avg": asdict(problem_share(means_P)),
        "pass": {str(m): asdict(problem_share(pass_P(m))) for m in range(1, k + 1)},
        "by_problem": dict(zip(result["by_problem"], means_P.tolist(), strict=True)),
    }


def _rollouts(stored: Stored, made: Completions) -> pa.Table:
    none = list_column(np.zeros(0), np.zeros(len(stored.rows) + 1, np.int64), pa.int32())
    return pa.table(
        {
            **_keys(stored),
            "problem": [row.problem for row in stored.rows],
            "answer": pa.array([row.answer for row in stored.rows], pa.string()),
            "solution": pa.nulls(len(stored.rows), pa.string()),
            "prompt_token_ids": none,
            "completion_token_ids": none,
            "completion": [row.completion for row in stored.rows],
            "sampler_logprobs": pa.nulls(len(stored.rows), pa.list_(pa.float32())),
            "finish_reason": [row.finish_reason for row in stored.rows],
            "earlier": pa.array(
                [
                    [message._asdict() for message in sample.earlier] or None
                    for _, _, sample in numbered(made.samples)
                ],
                ROLLOUTS.field("earlier").type,
            ),
        }
    )


def _rewards(stored: Stored, judged: Sequence[Judgement]) -> pa.Table:
    return pa.table(
        {
            **_keys(stored),
            "reward": pa.array([each.reward for each in judged], pa.float32()),
            "verdict": [each.verdict for each in judged],
            "extracted": pa.array([each.extracted for each in judged], pa.string()),
            "answer_start": pa.nulls(len(judged), pa.int32()),
            "answer_end": pa.nulls(len(judged), pa.int32()),
            "seconds": pa.array([each.seconds for each in judged], pa.float32()),
        }
    )


def _keys(stored: Stored) -> dict[str, Any]:
    return {
        "prompt_id": [key for key, _ in stored.keys],
        "sample": pa.array([number for _, number in stored.keys], pa.int32()),
    }
