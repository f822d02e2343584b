"""The second half of the score stage: what models say of every token."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from castctl.errors import UserError
from castctl.methods.schedule import Moment
from castctl.progress import Advance, Progress
from castctl.shards.part import Metadata, Part, content_hash, write_part
from castctl.shards.schema import PEER, PROMPT_SIGNALS, SIGNALS, TOKEN_SIGNALS
from castctl.shards.stage import (
    WHOLE,
    Shard,
    StepFolder,
    check_aligned,
    describe_difference,
    mark_foreign,
)
from castctl.stages.score.part import PASSES, Budget, PartScorer
from castctl.stages.score.rewards import owned_parts
from castctl.stages.score.sampler import check_sampler
from castctl.stages.score.scorers import Scorers
from castctl.stages.score.selection import EVERY, Selection
from castctl.stages.signals import LEFT_OUT, lacking_R

FOREIGN = "foreign"
"""Stands in the metadata for the making of a signal that came from elsewhere."""

TOLD = "teacher_prompt_token_ids"

TOGETHER = {
    "teacher_logprobs": TOLD,
    "bilateral_logprobs": "bilateral_prompt_token_ids",
}
"""Log-probs and the prompts they were taken under: the first never without the second."""


def score_signals(
    folder: StepFolder,
    wanted: Iterable[str],
    scorers: Scorers,
    *,
    temperature: float,
    budget: Budget,
    selection: Selection = EVERY,
    progress: Progress,
    shard: Shard = WHOLE,
    overwrite: bool = False,
) -> dict[str, float]:
    """Add the `wanted` signals to `signals/`, part by part, which may be none; `rewards/` must be
    there for some. The seconds of each pass that was made. The rows that `selection` leaves out are
    null, and the metadata has their number.

    Signals that are there, made alike, are kept; made otherwise they are refused unless
    `overwrite` is set. Raises `UserError` where the parts contradict one another.
    """
    asked = set(wanted)
    asked |= {TOGETHER[name] for name in asked if name in TOGETHER}
    if TOLD in asked and scorers.told.told_by_peers:
        asked.add(PEER)
    parts = owned_parts(folder, shard)
    passes = len({PASSES[name] for name in asked if name in PASSES})
    total = passes * folder.rows("rollouts", parts)
    done = 0
    seconds: dict[str, float] = defaultdict(float)
    with progress.task("score", total, "completions") as advance:

        def count(rows: int) -> None:
            nonlocal done
            done += rows
            advance(rows)

        for place, number in enumerate(parts, 1):
            spent = _score_part(
                folder, number, asked, scorers, temperature, budget, selection, count, overwrite
            )
            for name, value in spent.items():
                seconds[name] += value
            # What was there already, or cost no pass of its own, counts as done.
            count(passes * folder.rows("rollouts", parts[:place]) - done)
    return dict(seconds)


def _score_part(
    folder: StepFolder,
    number: int,
    asked: set[str],
    scorers: Scorers,
    temperature: float,
    budget: Budget,
    selection: Selection,
    advance: Advance,
    overwrite: bool,
) -> dict[str, float]:
    """Score one part where signals are missing; the seconds of each pass."""
    rollouts = folder.read("rollouts", number)
    selected = asked & selection.signals
    judges = bool(selected) or any(map(scorers.reads_rewards, asked))
    rewards = _rewards(folder, number, rollouts) if judges else None
    there = folder.read("signals", number) if folder.has("signals", number) else None
    if there is not None and not _belongs(there, rollouts, overwrite):
        there = None
    judged = None if rewards is None else content_hash(rewards.table)
    made = {name: scorers.provenance(name, temperature, judged) for name in sorted(asked)}
    left_out = {}
    if rewards is not None and selected:
        moment = Moment(folder.step, folder.total_steps)
        read_R = selection.read_R({"rollouts": rollouts, "rewards": rewards}, moment)
        left_out = dict.fromkeys(selected, ~read_R)
    missing = _missing(there, made, left_out, scorers.told.told_by_peers, overwrite)
    if there is not None and not missing:
        return {}
    scorer = PartScorer(
        rollouts.table, None if rewards is None else rewards.table, scorers, folder.step,
        temperature, budget, advance,
    )  # fmt: skip
    for name, left_R in left_out.items():
        if left_R.any():
            made[name] |= {LEFT_OUT: int(left_R.sum())}
    columns = scorer.columns(missing, left_out)
    table, provenance = _merge(rollouts.table, there, columns, made)
    if "policy_logprobs" in missing:
        check_sampler(rollouts, table, scorers.policy)
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
    return scorer.seconds


def _rewards(folder: StepFolder, number: int, rollouts: Part) -> Part:
    rewards = folder.read("rewards", number)
    check_aligned(rollouts, [("rewards", rewards)], "rollouts")
    return rewards


def _belongs(signals: Part, rollouts: Part, overwrite: bool) -> bool:
    """Whether the signals there are of these rollouts; if not, `UserError` without `overwrite`."""
    try:
        check_aligned(rollouts, [("signals", signals)], "rollouts")
    except UserError:
        if not overwrite:
            raise
        return False
    return True


def _missing(
    there: Part | None,
    made: Mapping[str, Metadata],
    left_out: Mapping[str, NDArray[np.bool_]],
    told_by_peers: bool,
    overwrite: bool,
) -> list[str]:
    if there is None or overwrite:
        return list(made)
    recorded = dict((there.metadata or {}).get("signals", {}))
    missing = []
    for name, provenance in made.items():
        column = there.table[name]
        old = recorded.get(name)
        if isinstance(old, dict) and LEFT_OUT in old:
            read_R = ~left_out.get(name, np.zeros(len(column), np.bool_))
            lacking = lacking_R(there.table, name, read_R, told_by_peers).sum()
            if lacking:
                raise UserError(
                    f"{there.path}: {name} is there without {lacking} of the completions that are "
                    "read; add --overwrite to compute it again"
                )
            recorded[name] = {key: value for key, value in old.items() if key != LEFT_OUT}
        if recorded.get(name) == provenance:
            continue
        if column.null_count == len(column) and name not in recorded:
            missing.append(name)
            continue
        old = recorded.get(name, FOREIGN)
        if old == FOREIGN:
            continue
        different = [key for key in {**provenance, **old} if old.get(key) != provenance.get(key)]
        raise UserError(
            f"{there.path}: {name} is there with "
            f"{describe_difference(old, provenance, different)}; "
            "add --overwrite to compute it again"
        )
    for logprobs, prompts in TOGETHER.items():
        # Whoever made the log-probs knows the prompts they were taken under; we do not.
        if prompts in missing and logprobs in made and logprobs not in missing:
            if logprobs == "bilateral_logprobs":
                raise UserError(
                    f"{there.path} has bilateral_logprobs made elsewhere, without their prompts; "
                    "add --overwrite to compute both"
                )
            missing.remove(prompts)
            missing = [name for name in missing if name != PEER]
    return missing


def _merge(
    rollouts: pa.Table,
    there: Part | None,
    fresh: Mapping[str, pa.Array],
    made: Mapping[str, Metadata],
) -> tuple[pa.Table, Metadata]:
    columns = {"prompt_id": rollouts["prompt_id"], "sample": rollouts["sample"]}
    provenance: Metadata = {}
    for name in SIGNALS.names[2:]:
        recorded = {} if there is None else (there.metadata or {}).get("signals", {})
        if name in fresh:
            columns[name], provenance[name] = fresh[name], made[name]
        elif there is not None and not (name == PEER and TOLD in fresh):  # of other prompts
            columns[name] = there.table[name]
            if name in recorded or columns[name].null_count < rollouts.num_rows:
                provenance[name] = recorded.get(name, FOREIGN)
        else:
            kind = SIGNALS.field(name).type
            columns[name] = pa.nulls(rollouts.num_rows, kind)
    return pa.table(columns, schema=SIGNALS), provenance


def check_signal_names(names: Iterable[str]) -> None:
    """Raise `UserError` for a signal that is unknown."""
    known = [*TOKEN_SIGNALS, *PROMPT_SIGNALS]
    for name in names:
        if name not in known:
            raise UserError(f"no signal {name!r}; there are {', '.join(known)}")
