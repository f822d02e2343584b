"""The rollout stage: prompts in, sampled completions out."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from castctl.data.conversation import earlier_in
from castctl.data.templates import PromptTemplate
from castctl.engines import Completion, Engine, Request
from castctl.engines.sampling import row_key
from castctl.engines.stops import check_stops
from castctl.models.packing import flattened
from castctl.progress import Progress
from castctl.recipe.recipe import SamplingSettings
from castctl.shards.columns import list_column
from castctl.shards.part import Metadata
from castctl.shards.stage import WHOLE, Shard, StepFolder


class Rolled(NamedTuple):
    """What a rollout came to: the number of the part after the last, and how many tokens were
    sampled now, those of parts that were there already left out."""

    next_part: int
    tokens: int


def rollout_step(
    folder: StepFolder,
    prompts: pa.Table,
    engine: Engine,
    template: PromptTemplate,
    tokenizer: Any,
    sampling: SamplingSettings,
    *,
    seed: int,
    part_size: int,
    model_fingerprint: str,
    progress: Progress,
    first_part: int = 0,
    shard: Shard = WHOLE,
    overwrite: bool = False,
) -> Rolled:
    """Sample `sampling.n` completions of each prompt into `rollouts/`, part by part.

    `prompts` has the schema of the `prompts` stage; a prompt's part is its position divided
    by `part_size`, counted from `first_part`. Each completion's randomness comes from (seed, step,
    prompt, sample). Parts that are there with the same settings are kept. Raises `UserError` where
    the step has parts that were sampled otherwise, and where the engine goes on after a stop.
    """
    provenance = rollout_provenance(engine, sampling, template, seed, model_fingerprint)
    if not overwrite:
        folder.refuse_mixed("rollouts", provenance)
    count = part_count(prompts, part_size)
    rows_of = {
        first_part + part: prompts.slice(part * part_size, part_size)
        for part in range(count)
        if shard.owns(first_part + part)
    }
    lacking = {
        number: rows
        for number, rows in rows_of.items()
        if folder.lacks("rollouts", number, {"prompts": rows}, provenance, overwrite)
    }
    batches = {
        number: [
            Request(ids, row_key(seed, folder.step, prompt_id, sample))
            for prompt_id, ids in zip(
                rows["prompt_id"].to_pylist(), _render(rows, template), strict=True
            )
            for sample in range(sampling.n)
        ]
        for number, rows in lacking.items()
    }
    total, tokens = sum(map(len, rows_of.values())) * sampling.n, 0
    with progress.task("rollout", total, "completions") as advance:
        advance(total - sum(map(len, batches.values())))
        for number, completions in engine.generate(batches, sampling, advance):
            check_stops(completions, sampling.stop, tokenizer)
            rows = lacking.pop(number)
            tokens += sum(len(completion.token_ids) for completion in completions)

            def table(
                rows: pa.Table = rows,
                requests: list[Request] = batches[number],
                completions: list[Completion] = completions,
            ) -> pa.Table:
                return _table(rows, requests, completions, sampling.n, tokenizer)

            folder.make("rollouts", number, {"prompts": rows}, provenance, table, overwrite)
    assert not lacking, f"the engine left out parts {sorted(lacking)}"
    return Rolled(first_part + count, tokens)


def part_count(prompts: pa.Table, part_size: int) -> int:
    """How many parts these prompts make."""
    return -(-prompts.num_rows // part_size)


def rollout_provenance(
    engine: Engine,
    sampling: SamplingSettings,
    template: PromptTemplate,
    seed: int,
    model_fingerprint: str,
) -> Metadata:
    """What decides a rollout besides its prompts, as stored with each part."""
    settings = sampling.model_dump(mode="json", exclude={"temperature"})
    return {
        "model": model_fingerprint,
        "engine": engine.identity,
        "templates": {"prompt": template.version},
        "temperature": sampling.temperature,
        "sampling": settings,
        "seed": seed,
    }


def _render(rows: pa.Table, template: PromptTemplate) -> list[np.ndarray]:
    columns = (rows[name].to_pylist() for name in ("problem", "earlier"))
    asked = [(problem, earlier_in(cell)) for problem, cell in zip(*columns, strict=True)]
    return [np.array(ids, np.int32) for ids in template.render_all(asked)]


def _table(
    prompts: pa.Table,
    requests: list[Request],
    completions: list[Completion],
    n: int,
    tokenizer: Any,
) -> pa.Table:
    owner = pa.array(np.repeat(np.arange(prompts.num_rows), n))
    prompt_ids, prompt_offsets = flattened([request.prompt for request in requests])
    token_ids, offsets = flattened([completion.token_ids for completion in completions])
    sampled = [c.logprobs for c in completions if c.logprobs is not None]
    logprobs = np.concatenate(sampled) if len(sampled) == len(completions) else None
    columns = {
        "prompt_id": prompts["prompt_id"].take(owner),
        "sample": pa.array(np.tile(np.arange(n), prompts.num_rows), pa.int32()),
        "problem": prompts["problem"].take(owner),
        "answer": prompts["answer"].take(owner),
        "solution": prompts["solution"].take(owner),
        "prompt_token_ids": list_column(prompt_ids, prompt_offsets, pa.int32()),
        "completion_token_ids": list_column(token_ids, offsets, pa.int32()),
        "completion": pa.array(
            [tokenizer.decode(c.token_ids, skip_special_tokens=True) for c in completions]
        ),
        "sampler_logprobs": list_column(logprobs, offsets, pa.float32()),
        "finish_reason": pa.array([completion.finish_reason for completion in completions]),
        "earlier": prompts["earlier"].take(owner),
    }
    return pa.table(columns)
