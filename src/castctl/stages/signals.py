"""A part's signals as the mathematics reads them, refused where a method cannot use them."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from castctl.errors import UserError
from castctl.methods import MethodSettings
from castctl.methods.signals import TokenSignals
from castctl.methods.teacher import Teacher
from castctl.ragged import spread
from castctl.shards.columns import nullable_floats, ragged_column
from castctl.shards.part import Metadata, Part
from castctl.shards.schema import PROMPT_SIGNALS
from castctl.shards.stage import describe_difference

Floats = NDArray[np.float64]


READ = (
    "policy_logprobs",
    "teacher_logprobs",
    "ref_logprobs",
    "entropies",
    "importance_perturb",
    "importance_grad",
)
"""The signals that shaping may read."""

LEFT_OUT = "left_out"
"""Stands in a signal's metadata for the number of completions that were not scored."""


@dataclass(frozen=True)
class StepSignals:
    """The policy's log-probs (N, nats), None where it has not read the completions, and what is
    told of the tokens.

    `skipped_N` is the gap at the first tokens that are left out of `tokens`, 0 elsewhere; None
    without a teacher.
    """

    policy_N: Floats | None
    tokens: TokenSignals
    skipped_N: Floats | None


def read_signals(
    signals: Part,
    skip_tokens: int = 0,
    taught: bool = False,
    offsets: NDArray[np.int64] | None = None,
) -> StepSignals:
    """Every signal of a part that is there; the gap of the first `skip_tokens` is not read. See
    `signals_of` for `taught`, which the metadata may say too, and for `offsets`.

    Raises `UserError` for lists of other lengths than the completions, for numbers that are not
    finite, and where neither the policy's log-probs nor `offsets` are there.
    """
    _require_finite(signals)
    if offsets is None and not policy_read(signals.table):
        raise UserError(f"{signals.path}: policy_logprobs are null; score them")
    try:
        scored = set(_recorded(signals)) | ({"teacher_logprobs"} if taught else set())
        return signals_of(signals.table, skip_tokens, scored, offsets)
    except ValueError as error:
        raise UserError(f"{signals.path}: {error}") from None


def policy_read(signals: pa.Table) -> bool:
    """Whether the policy has read every completion of these signals."""
    return bool(signals["policy_logprobs"].null_count == 0)


def signals_of(
    table: pa.Table,
    skip_tokens: int = 0,
    scored: Collection[str] = (),
    offsets: NDArray[np.int64] | None = None,
) -> StepSignals:
    """Every signal of a table, finite or not. What has been `scored` where there was something to
    score is NaN where every row is null, and not None. `offsets` (R + 1) cut the tokens into
    completions, where the policy has read none of them.

    Raises `ValueError` for lists of other lengths than the completions.
    """
    policy = None
    if policy_read(table):
        flat, cut = ragged_column(table, "policy_logprobs")
        if offsets is not None and not np.array_equal(cut, offsets):
            raise ValueError("policy_logprobs has not one value a completion token")
        policy, offsets = flat.astype(np.float64), cut
    assert offsets is not None, "nothing says how long the completions are"
    tokens_N = int(offsets[-1])

    def floats(name: str) -> Floats | None:
        flat = nullable_floats(table, name, offsets)
        return np.full(tokens_N, np.nan) if flat is None and name in scored else flat

    teacher = floats("teacher_logprobs")
    reference = nullable_floats(table, "ref_logprobs", offsets)
    gap, skipped = None, None
    if teacher is not None and policy is not None:
        gap = teacher - policy
        index = np.arange(tokens_N) - spread(offsets[:-1], offsets)
        heard = index >= skip_tokens
        skipped = np.where(heard | np.isnan(gap), 0.0, gap)
        gap = np.where(heard, gap, np.nan)
    tokens = TokenSignals(
        offsets,
        gap_N=gap,
        drift_N=None if reference is None or policy is None else policy - reference,
        perturb_N=floats("importance_perturb"),
        grad_N=floats("importance_grad"),
        entropies_N=nullable_floats(table, "entropies", offsets),
        logprobs_N=policy,
    )
    return StepSignals(policy, tokens, skipped)


def require_signals(signals: Part, method: MethodSettings, peers: bool = True) -> None:
    """Raise `UserError`, naming the command, where a method lacks a signal or has another's.

    Without `peers` no completion has one, so that a teacher told peers has nothing to say.
    """
    step = signals.path.parent.parent
    command = f"castctl score --run {step} --method {method.name}"
    needed = sorted(method.needs - set(PROMPT_SIGNALS))
    columns = {name: signals.table[name] for name in needed}
    absent = [
        name
        for name, column in columns.items()
        if 0 < len(column) == column.null_count and not rows_left_out(signals.metadata, name)
    ]
    if _may_be_silent(signals, method, "teacher_logprobs", peers):
        absent = [name for name in absent if name != "teacher_logprobs"]
    if absent:
        raise UserError(
            f"{method.name} needs {' and '.join(absent)}, which {signals.path} does not have; "
            f"run `{command}`"
        )
    for name, column in columns.items():
        # A completion without an answer has no influence on one, and without a gap keeps its base.
        partial = name in ("teacher_logprobs", "importance_perturb", "importance_grad")
        if column.null_count and not partial:
            raise UserError(
                f"{signals.path}: {name} has {column.null_count} null rows; run `{command}`"
            )
    if method.listens:
        _require_teacher(signals, method, command, peers)


def _may_be_silent(signals: Part, method: MethodSettings, name: str, peers: bool) -> bool:
    """Whether a teacher that was asked may have nothing to say of any completion."""
    return method.told_by_peers and (not peers or name in _recorded(signals))


def _require_teacher(signals: Part, method: MethodSettings, command: str, peers: bool) -> None:
    """The teacher that scored must be the method's, asked what the method asks it."""
    recorded = _recorded(signals)
    scores = "teacher_logprobs" in method.needs
    name = "teacher_logprobs" if scores else "teacher_prompt_token_ids"
    absent = signals.table[name].null_count
    if method.told_by_peers:  # some may have no peer, and be none of its pupils
        silent = _may_be_silent(signals, method, name, peers)
        absent = 0 if silent or absent < signals.table.num_rows else absent
    if not scores and method.teacher.own_prompt and absent:
        raise UserError(
            f"{method.name} needs {name}, which {signals.path} does not have for every row; "
            f"run `{command}`"
        )
    made = recorded.get(name)
    if not isinstance(made, dict):  # made elsewhere
        return
    asked = method.teacher.identity if scores else method.teacher.asked
    context = {"context": made.get("context", "none")}
    found = Teacher().asked | context | made.get("teacher", {})
    if different := [key for key in asked if found.get(key) != asked[key]]:
        raise UserError(
            f"{signals.path}: {name} is of a teacher with "
            f"{describe_difference(found, asked, different)}; run `{command} --overwrite`"
        )


def taught_rows(signals: Part, method: MethodSettings) -> NDArray[np.bool_] | None:
    """Which completions (R) have a teacher to be distilled from; None where all have."""
    if not method.told_by_peers:
        return None
    scores = "teacher_logprobs" in method.needs
    name = "teacher_logprobs" if scores else "teacher_prompt_token_ids"
    return signals.table[name].is_valid().to_numpy()


def rows_left_out(metadata: Metadata | None, name: str) -> int:
    """How many rows of a signal were not scored, since nothing reads them."""
    made = (metadata or {}).get("signals", {}).get(name)
    return int(made.get(LEFT_OUT, 0)) if isinstance(made, dict) else 0


def lacking_R(
    signals: pa.Table, name: str, read_R: NDArray[np.bool_], told_by_peers: bool
) -> NDArray[np.bool_]:
    """Which completions (R) of those that are read have no value of a signal. A teacher that is
    `told_by_peers` has nothing to say of one that it has no prompt for."""
    lacking = signals[name].is_null().to_numpy() & read_R
    if told_by_peers and name == "teacher_logprobs":
        lacking &= signals["teacher_prompt_token_ids"].is_valid().to_numpy()
    return lacking


def _recorded(signals: Part) -> dict[str, Any]:
    """What the metadata says of each signal."""
    return dict((signals.metadata or {}).get("signals", {}))


def _require_finite(signals: Part) -> None:
    """Raise `UserError` where a number is none; NaN says of an influence that it was not scored."""
    policy = signals.table["policy_logprobs"]
    if 0 < policy.null_count < len(policy):
        raise UserError(
            f"{signals.path}: policy_logprobs has {policy.null_count} null rows; score them"
        )
    for name in READ:
        present = signals.table[name].combine_chunks().flatten().to_numpy(zero_copy_only=False)
        influence = name.startswith("importance_")
        broken = np.isinf(present) if influence else ~np.isfinite(present)
        if broken.any():
            raise UserError(
                f"{signals.path}: {name} are not all finite, so the method's mathematics is not; "
                "score again with sound models"
            )
