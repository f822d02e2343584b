"""The score stage: rewards from the verifier, token log-probs from the models."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from castctl.errors import UserError
from castctl.models.language_model import LanguageModel
from castctl.models.packing import rows_of
from castctl.progress import Advance, Progress
from castctl.recipe import VerifierSettings
from castctl.shards.columns import list_column, ragged_column
from castctl.shards.part import Metadata, Part, content_hash, write_part
from castctl.shards.schema import SIGNALS, TOKEN_SIGNALS
from castctl.shards.stage import (
    WHOLE,
    Shard,
    StepFolder,
    check_aligned,
    describe_difference,
    mark_foreign,
)
from castctl.verify.judge import Judgement, Row, check_error_share, grader_name, judge
from castctl.verify.pool import CheckPool
from castctl.verify.spans import token_span

COMPUTABLE = ("policy_logprobs", "teacher_logprobs", "ref_logprobs", "entropies")
"""Signals this stage knows how to compute."""

FOREIGN = "foreign"
"""Stands in the metadata for the making of a signal that came from elsewhere."""


def score_rewards(
    folder: StepFolder,
    settings: VerifierSettings,
    pool: CheckPool,
    tokenizer: Any,
    *,
    progress: Progress,
    shard: Shard = WHOLE,
    overwrite: bool = False,
) -> None:
    """Judge every completion in `rollouts/` into `rewards/`, part by part.

    Raises `UserError` when the share of `error` verdicts passes its bound; the parts judged
    before stay.
    """
    parts = _owned(folder, shard)
    provenance = {
        "verifier": settings.model_dump(mode="json", exclude={"workers", "max_error_share"}),
        "grader": grader_name(settings),
    }
    judgements: list[Judgement] = []
    total = folder.rows("rollouts", parts)
    with progress.task("verify", total, "completions") as advance:
        for number in parts:
            rollouts = folder.read("rollouts", number)
            _refuse_silence(rollouts)

            def work(table: pa.Table = rollouts.table) -> pa.Table:
                judged = judge(pool, settings, _check_rows(table), lambda: advance(1))
                judgements.extend(judged)
                check_error_share(judgements, settings)
                return _rewards_table(table, judged, tokenizer)

            made = provenance | mark_foreign({"rollouts": rollouts})
            inputs = {"rollouts": rollouts.table}
            if not folder.make("rewards", number, inputs, made, work, overwrite):
                judgements.extend(_judged(folder.read("rewards", number).table))
                advance(rollouts.table.num_rows)


def _judged(rewards: pa.Table) -> list[Judgement]:
    """The verdicts of a part made before, so that the share of errors is that of the whole."""
    columns = (rewards[name].to_pylist() for name in ("reward", "verdict"))
    return [
        Judgement(reward, verdict, message="judged before")
        for reward, verdict in zip(*columns, strict=True)
    ]


def _refuse_silence(rollouts: Part) -> None:
    """One empty completion is a wrong answer; nothing but empty ones is a broken part."""
    lengths = rollouts.table["completion_token_ids"].combine_chunks().value_lengths()
    if len(lengths) and not np.any(lengths):
        raise UserError(f"{rollouts.path}: every completion is empty; roll out again")


def _check_rows(table: pa.Table) -> list[Row]:
    columns = (
        table[name].to_pylist() for name in ("problem", "completion", "answer", "finish_reason")
    )
    return [Row(*values) for values in zip(*columns, strict=True)]


def _rewards_table(rollouts: pa.Table, judged: list[Judgement], tokenizer: Any) -> pa.Table:
    ids, offsets = ragged_column(rollouts, "completion_token_ids")
    spans = [
        None
        if verdict.start is None or verdict.end is None
        else token_span(tokenizer, row.tolist(), verdict.start, verdict.end)
        for row, verdict in zip(rows_of(ids, offsets), judged, strict=True)
    ]
    columns = {
        "prompt_id": rollouts["prompt_id"],
        "sample": rollouts["sample"],
        "reward": pa.array([verdict.reward for verdict in judged], pa.float32()),
        "verdict": pa.array([verdict.verdict for verdict in judged]),
        "extracted": pa.array([verdict.extracted for verdict in judged], pa.string()),
        "answer_start": pa.array([span and span[0] for span in spans], pa.int32()),
        "answer_end": pa.array([span and span[1] for span in spans], pa.int32()),
        "seconds": pa.array([verdict.seconds for verdict in judged], pa.float32()),
    }
    return pa.table(columns)


@dataclass(frozen=True)
class Scorer:
    """A model that scores, and the name its numbers go by in the metadata."""

    model: LanguageModel
    fingerprint: str


def score_signals(
    folder: StepFolder,
    wanted: Iterable[str],
    scorers: Mapping[str, Scorer],
    *,
    temperature: float,
    microbatch_tokens: int,
    chunk_tokens: int,
    progress: Progress,
    shard: Shard = WHOLE,
    overwrite: bool = False,
) -> None:
    """Add the `wanted` signals to `signals/`, part by part.

    `scorers` maps the log-prob signals to their models; `entropies` are the policy's.
    Signals that are there, made alike, are kept; made otherwise they are refused unless
    `overwrite` is set. Raises `UserError` where the parts contradict one another.
    """
    asked = set(wanted) | {"policy_logprobs"}
    parts = _owned(folder, shard)
    passes = len({id(scorers[_role(name)].model) for name in asked})
    total = passes * folder.rows("rollouts", parts)
    with progress.task("score", total, "completions") as advance:
        for number in parts:
            rollouts = folder.read("rollouts", number)
            there = folder.read("signals", number) if folder.has("signals", number) else None
            if there is not None and not _belongs(there, rollouts, overwrite):
                there = None
            made = {
                name: {"model": scorers[_role(name)].fingerprint, "temperature": temperature}
                for name in sorted(asked)
            }
            missing = _missing(there, made, overwrite)
            if not missing:
                advance(passes * rollouts.table.num_rows)
                continue
            fresh = _compute(
                rollouts.table,
                missing,
                scorers,
                temperature,
                microbatch_tokens,
                chunk_tokens,
                advance,
            )
            table, provenance = _merge(rollouts.table, there, fresh, made)
            metadata: Metadata = {
                "step": folder.step,
                "total_steps": folder.total_steps,
                "part": number,
                "temperature": temperature,
                "inputs": {"rollouts": content_hash(rollouts.table)},
                "signals": provenance,
                **mark_foreign({"rollouts": rollouts}),
            }
            write_part(folder.part_path("signals", number), "signals", table, metadata)


def _belongs(signals: Part, rollouts: Part, overwrite: bool) -> bool:
    """Whether the signals there are of these rollouts; if not, `UserError` without `overwrite`."""
    try:
        check_aligned(rollouts, [("signals", signals)], "rollouts")
    except UserError:
        if not overwrite:
            raise
        return False
    return True


def _role(signal: str) -> str:
    return "policy_logprobs" if signal == "entropies" else signal


def _missing(there: Part | None, made: Mapping[str, Metadata], overwrite: bool) -> list[str]:
    if there is None:
        return list(made)
    recorded = (there.metadata or {}).get("signals", {})
    missing = []
    for name, provenance in made.items():
        column = there.table[name]
        if column.null_count == len(column):
            missing.append(name)
            continue
        old = recorded.get(name, FOREIGN)
        if old in (FOREIGN, provenance):
            continue
        if not overwrite:
            different = [key for key in provenance if old.get(key) != provenance[key]]
            raise UserError(
                f"{there.path}: {name} is there with "
                f"{describe_difference(old, provenance, different)}; "
                "add --overwrite to compute it again"
            )
        missing.append(name)
    return missing


def _compute(
    rollouts: pa.Table,
    names: list[str],
    scorers: Mapping[str, Scorer],
    temperature: float,
    microbatch_tokens: int,
    chunk_tokens: int,
    advance: Advance,
) -> dict[str, pa.Array]:
    prompts = rows_of(*ragged_column(rollouts, "prompt_token_ids"))
    ids, offsets = ragged_column(rollouts, "completion_token_ids")
    completions = rows_of(ids, offsets)
    if any(len(prompt) == 0 for prompt in prompts):
        raise UserError(
            "a rollout has empty prompt_token_ids, and a model scores after a prompt only; roll "
            "out again, or write the prompt's tokens into the part"
        )
    scored: dict[int, tuple[NDArray[np.float32], NDArray[np.float32] | None]] = {}
    columns = {}
    for name in names:
        model = scorers[_role(name)].model
        _check_vocabulary(model, ids)
        if id(model) not in scored:  # a teacher that is the policy costs no second pass
            scored[id(model)] = model.score(
                prompts, completions, temperature, microbatch_tokens, chunk_tokens, advance,
                with_entropies="entropies" in names and model is scorers["policy_logprobs"].model,
            )  # fmt: skip
        logprobs, entropies = scored[id(model)]
        if not np.isfinite(logprobs).all():
            raise UserError(
                f"{name} of model {scorers[_role(name)].fingerprint} are not all finite; its "
                "weights are broken or have diverged: go back to an earlier checkpoint, or lower "
                "optimizer.lr"
            )
        flat = entropies if name == "entropies" else logprobs
        columns[name] = list_column(flat, offsets, pa.float32())
    return columns


def _check_vocabulary(model: LanguageModel, ids: NDArray[np.int32]) -> None:
    size = model.model.get_input_embeddings().weight.shape[0]
    if len(ids) and (ids.max() >= size or ids.min() < 0):
        raise UserError(
            f"a completion holds token {ids.max()}, but the model knows {size} tokens; "
            "score with the model that sampled (--model)"
        )


def _merge(
    rollouts: pa.Table,
    there: Part | None,
    fresh: Mapping[str, pa.Array],
    made: Mapping[str, Metadata],
) -> tuple[pa.Table, Metadata]:
    columns = {"prompt_id": rollouts["prompt_id"], "sample": rollouts["sample"]}
    provenance: Metadata = {}
    for name in SIGNALS.names[2:]:
        if name in fresh:
            columns[name], provenance[name] = fresh[name], made[name]
        elif there is not None:
            columns[name] = there.table[name]
            if columns[name].null_count < rollouts.num_rows:
                recorded = (there.metadata or {}).get("signals", {})
                provenance[name] = recorded.get(name, FOREIGN)
        else:
            kind = SIGNALS.field(name).type
            columns[name] = pa.nulls(rollouts.num_rows, kind)
    return pa.table(columns, schema=SIGNALS), provenance


def check_signal_names(names: Iterable[str]) -> None:
    """Raise `UserError` for a signal that is unknown or that nothing computes yet."""
    for name in names:
        if name not in TOKEN_SIGNALS:
            raise UserError(f"no signal {name!r}; there are {', '.join(COMPUTABLE)}")
        if name not in COMPUTABLE:
            raise UserError(
                f"signal {name} is not computed by this castctl; {', '.join(COMPUTABLE)} are"
            )


def _owned(folder: StepFolder, shard: Shard) -> list[int]:
    parts = folder.require_parts("rollouts", "run `castctl rollout` first")
    return [part for part in parts if shard.owns(part)]
