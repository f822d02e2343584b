"""Evaluate a model on held-out problems with the stages of training, and the same grader."""

from __future__ import annotations

import itertools
from dataclasses import asdict
from typing import Any

import numpy as np
import pyarrow as pa

from castctl.data.benchmarks import task_source
from castctl.data.templates import PromptTemplate
from castctl.engines import Engine
from castctl.errors import UserError
from castctl.evaluate.results import Result
from castctl.evaluate.statistics import Estimate, majority, pass_at_k, problem_mean
from castctl.progress import Progress
from castctl.prompts import usable_prompts
from castctl.recipe import DataSettings, EvalSettings, Recipe, SamplingSettings
from castctl.rollout import part_count, rollout_step
from castctl.score.rewards import score_rewards
from castctl.shape import group_numbers
from castctl.shards.part import write_json
from castctl.shards.stage import WHOLE, Shard, StepFolder
from castctl.verify.judge import equivalent, grader_name
from castctl.verify.pool import CheckPool

PART_SIZE = 32
"""Problems in one part of an evaluation."""


def eval_sampling(recipe: Recipe) -> SamplingSettings:
    """How an evaluation samples: `eval.k` completions, never top_k or min_p."""
    settings = recipe.eval
    return SamplingSettings(
        n=settings.k,
        temperature=settings.temperature,
        top_p=settings.top_p,
        max_tokens=settings.max_tokens or recipe.sampling.max_tokens,
        max_rows=recipe.sampling.max_rows,
    )


def evaluate(
    folder: StepFolder,
    recipe: Recipe,
    engine: Engine,
    tokenizer: Any,
    pool: CheckPool,
    *,
    model_fingerprint: str,
    progress: Progress,
    source: DataSettings | None = None,
    shard: Shard = WHOLE,
    overwrite: bool = False,
) -> Result | None:
    """Sample, judge and summarise `recipe.eval`; writes `results.json` beside the parts.

    `source` names the problems where they are not the task's own. Returns None where this
    shard is done but others are not. Raises `UserError` rather than report on fewer than
    `eval.k` samples of any problem.
    """
    settings = recipe.eval
    data = source or task_source(settings.task, recipe.data)
    data = data.model_copy(update={"limit": settings.limit or data.limit})
    template = PromptTemplate(tokenizer, data)
    prompts = usable_prompts(data, recipe.verifier, template, progress)
    if prompts.dropped.num_rows:
        raise UserError(
            f"{settings.task}: {prompts.dropped.num_rows} problems cannot be posed "
            f"({prompts.dropped['reason'][0]}); an evaluation leaves none out. "
            "Raise data.max_prompt_tokens or mend the data"
        )
    sampling = eval_sampling(recipe)
    parts = part_count(prompts.table, PART_SIZE)
    folder.keep_first(parts, shard, overwrite)
    rollout_step(
        folder, prompts.table, engine, template, tokenizer, sampling,
        seed=recipe.seed, part_size=PART_SIZE, model_fingerprint=model_fingerprint,
        progress=progress, shard=shard, overwrite=overwrite,
    )  # fmt: skip
    score_rewards(
        folder,
        recipe.verifier,
        pool,
        tokenizer,
        progress=progress,
        shard=shard,
        overwrite=overwrite,
    )
    if len(folder.parts("rewards")) < parts:
        return None
    result = {
        "task": settings.task,
        "data": {"path": data.path, "revision": prompts.revision},
        "model": model_fingerprint,
        "step": folder.step,
        "template": template.version,
        "sampling": sampling.model_dump(mode="json"),
        "seed": recipe.seed,
        "grader": grader_name(recipe.verifier),
        **summarise(folder.read_all("rollouts"), folder.read_all("rewards"), settings, pool),
    }
    write_json(folder.path / "results.json", result)
    return result


def summarise(
    rollouts: pa.Table, rewards: pa.Table, settings: EvalSettings, pool: CheckPool
) -> Result:
    """avg@k, pass@1..k and maj@k with intervals over problems, truncation and length."""
    problems = group_numbers(rewards["prompt_id"])
    count = int(problems.max()) + 1
    samples = np.bincount(problems, minlength=count)
    scores = rewards["reward"].to_numpy(zero_copy_only=False).astype(np.float64)
    if (samples != settings.k).any() or np.isnan(scores).any():
        raise UserError(
            f"{settings.task}: a problem has {samples.min()} to {samples.max()} samples and "
            f"{int(np.isnan(scores).sum())} were not judged, so there is no avg@{settings.k}; "
            "run it again with --overwrite"
        )
    table = scores.reshape(count, settings.k)  # a problem's samples stand together
    correct = (table > 0).sum(1)
    lengths = rollouts["completion_token_ids"].combine_chunks().value_lengths().to_numpy()
    truncated = np.array(rollouts["finish_reason"].to_pylist()) == "length"
    prompt_ids = rewards["prompt_id"].to_pylist()[:: settings.k]
    return {
        "problems": count,
        "k": settings.k,
        "avg": asdict(problem_mean(table.mean(1))),
        "pass": {
            str(k): asdict(problem_mean(pass_at_k(correct, settings.k, k)))
            for k in range(1, settings.k + 1)
        },
        "maj": asdict(_majority_accuracy(rewards, table, pool)),
        "truncated_share": float(truncated.mean()),
        "length_mean": float(lengths.mean()),
        "by_problem": dict(zip(prompt_ids, table.mean(1).tolist(), strict=True)),
    }


def _majority_accuracy(rewards: pa.Table, table: np.ndarray, pool: CheckPool) -> Estimate:
    answers = np.array(rewards["extracted"].to_pylist(), object).reshape(table.shape)
    same = _equivalences(answers, table > 0, pool)
    hits = []
    for row, scores in zip(answers, table, strict=True):
        winner = majority(row.tolist(), lambda a, b: (a, b) in same)
        hits.append(0.0 if winner is None else float(scores[winner] > 0))
    return problem_mean(np.array(hits))


def _equivalences(
    answers: np.ndarray, correct: np.ndarray, pool: CheckPool
) -> set[tuple[str, str]]:
    """Pairs of different texts that mean the same answer to some problem.

    Right answers all equal the gold; only wrong ones are compared with one another.
    """
    same: set[tuple[str, str]] = set()
    pairs: set[tuple[str, str]] = set()
    for row, right in zip(answers, correct, strict=True):
        golds = {text for text, ok in zip(row, right, strict=True) if ok and text is not None}
        same |= set(itertools.product(golds, golds))
        others = dict.fromkeys(
            text for text, ok in zip(row, right, strict=True) if not ok and text is not None
        )
        pairs |= set(itertools.combinations(others, 2))
    ordered = sorted(pairs)
    verdicts = equivalent(pool, ordered)
    same |= {pair for pair, equal in zip(ordered, verdicts, strict=True) if equal}
    return same
