"""The first half of the score stage: rewards from the verifier."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from castctl.errors import UserError
from castctl.models.packing import rows_of
from castctl.progress import Progress
from castctl.recipe.verifier import VerifierSettings
from castctl.shards.columns import completion_lengths, has_tokens, ragged_column
from castctl.shards.part import Part
from castctl.shards.schema import reward_field
from castctl.shards.stage import WHOLE, Shard, StepFolder, mark_foreign
from castctl.verify.judge import Judgement, Row, check_error_share, judge, made_by
from castctl.verify.pool import CheckPool
from castctl.verify.rewards import Rewarded, reward
from castctl.verify.spans import last_begins, token_span
from castctl.verify.visible import CLOSED, opens_thoughts

TAIL = 32
"""Tokens at the end of a prompt that show whether it ends inside thoughts."""


def score_rewards(
    folder: StepFolder,
    settings: VerifierSettings,
    pool: CheckPool,
    tokenizer: Any | None,
    *,
    progress: Progress,
    shard: Shard = WHOLE,
    overwrite: bool = False,
) -> None:
    """Judge every completion in `rollouts/` into `rewards/`, part by part.

    `tokenizer` is that of their tokens; None where they have text alone.

    Raises `UserError` when the share of `error` verdicts of all these parts passes its bound, as
    soon as it surely does; the parts judged before stay. Each shard judges by its own parts.
    """
    parts = owned_parts(folder, shard)
    provenance = made_by(settings)
    judgements: list[Judgement] = []
    total = folder.rows("rollouts", parts)
    with progress.task("verify", total, "completions") as advance:
        for number in parts:
            rollouts = folder.read("rollouts", number)
            _refuse_silence(rollouts)

            def work(table: pa.Table = rollouts.table) -> pa.Table:
                rows = rows_to_judge(table, tokenizer, settings)
                judged = judge(pool, settings, rows, lambda: advance(1))
                rewarded = reward(pool, settings, rows, judged)
                judgements.extend(each.judgement for each in rewarded)
                check_error_share(judgements, settings, total)
                return _rewards_table(table, rewarded, settings.weights, tokenizer)

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
    table = rollouts.table
    if table.num_rows and not has_tokens(table) and not any(table["completion"].to_pylist()):
        raise UserError(f"{rollouts.path}: every completion is empty; roll out again")


def rows_to_judge(
    rollouts: pa.Table, tokenizer: Any | None, settings: VerifierSettings
) -> list[Row]:
    """What the judge reads of rollouts, whose tokens are this tokenizer's. Where there are none, a
    thought that the prompt opened stands in the text."""
    names = ("problem", "completion", "answer", "finish_reason")
    columns = (rollouts[name].to_pylist() for name in names)
    lengths = completion_lengths(rollouts)
    tokens = [None] * rollouts.num_rows if lengths is None else lengths.tolist()
    if tokenizer is None:
        named = zip(tokens, *columns, strict=True)
        return [Row(*values)._replace(tokens=count) for count, *values in named]
    thinking = _thinking(rollouts, tokenizer)
    last_from = _last_from(rollouts, tokenizer, settings.box_within_last)
    boxed_from = _last_from(rollouts, tokenizer, settings.boxed_within_last)
    beside = (thinking, last_from, boxed_from, tokens)
    return [Row(*values) for values in zip(*columns, *beside, strict=True)]


def _last_from(rollouts: pa.Table, tokenizer: Any, share: float | None) -> list[int | None]:
    """Where the last share of each completion's tokens begins, in characters; None without a share
    or without tokens."""
    completions = rows_of(*ragged_column(rollouts, "completion_token_ids"))
    return [
        None if share is None or not len(ids) else last_begins(tokenizer, ids.tolist(), share)
        for ids in completions
    ]


def _thinking(rollouts: pa.Table, tokenizer: Any) -> list[bool]:
    """Whether each prompt ends inside thoughts that its completion goes on with."""
    prompts, completions = (
        rows_of(*ragged_column(rollouts, name))
        for name in ("prompt_token_ids", "completion_token_ids")
    )
    known = range(len(tokenizer))  # parts made elsewhere may hold any number
    tails = [tuple(id for id in ids[-TAIL:].tolist() if id in known) for ids in prompts]
    opened = {tail: opens_thoughts(tokenizer.decode(list(tail))) for tail in set(tails) if tail}
    end = tokenizer.get_added_vocab().get(CLOSED)
    # A `</think>` that is a special token is left out of the completion's text.
    unseen = end is not None and not tokenizer.decode([end], skip_special_tokens=True)
    return [
        opened.get(tail, False) and not (unseen and end in ids)
        for tail, ids in zip(tails, completions, strict=True)
    ]


def _rewards_table(
    rollouts: pa.Table,
    rewarded: list[Rewarded],
    weights: Mapping[str, float],
    tokenizer: Any | None,
) -> pa.Table:
    judged = [each.judgement for each in rewarded]
    ids, offsets = ragged_column(rollouts, "completion_token_ids")
    spans = [
        None
        if tokenizer is None or verdict.start is None or verdict.end is None
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
    table = pa.table(columns)
    for name, weight in weights.items():
        values = [each.parts.get(name) for each in rewarded]
        table = table.append_column(reward_field(name, weight), pa.array(values, pa.float32()))
    return table


def owned_parts(folder: StepFolder, shard: Shard) -> list[int]:
    """This shard's parts of the rollouts; `UserError` where they are of two kinds, or where there
    are none for all."""
    parts = folder.require_parts("rollouts", "run `castctl rollout` first", shard)
    folder.refuse_mixed("rollouts")
    return [part for part in parts if shard.owns(part)]
