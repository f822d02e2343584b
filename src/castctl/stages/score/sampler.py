"""The guard between sampler and scorer: what trains must come from the policy that is trained."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from castctl.errors import UserError
from castctl.ragged import row_of_value, sums
from castctl.recipe.engine import coarser
from castctl.shards.columns import ragged_column
from castctl.shards.part import Metadata, Part
from castctl.stages.sampled import alteration, sampler_logprobs
from castctl.stages.score.scorers import Scorer

if TYPE_CHECKING:
    import torch

BOUNDS = {"float32": 0.01, "bfloat16": 0.3}
"""Nats a token, on average over a completion, that sampler and scorer may be apart at a temperature
of 1 and above; below it their logits are divided by less than 1, and so is the bound. Measured on
the CPU: 2e-6 in float32 and 0.02 in bfloat16 at most; a wrong window or rotation makes 0.1 to 7."""

FEWEST = 16
"""Tokens that a completion counts as at least: one alone may be 0.3 nats off in bfloat16."""


def check_sampler(rollouts: Part, signals: pa.Table, policy: Scorer) -> None:
    """Raise `UserError` where a completion's log-probs under the sampler are not the policy's.

    Nothing can be said of rollouts that were made elsewhere or by another model, and where
    truncation or penalties made them log-probs of another distribution.
    """
    made = rollouts.metadata or {}
    if made.get("model") != policy.fingerprint or alteration(made):
        return
    scored_N, offsets = ragged_column(signals, "policy_logprobs")
    sampled_N = sampler_logprobs(rollouts, offsets)
    if sampled_N is not None:
        refuse_apart(scored_N, sampled_N, offsets, made, policy.model.dtype, str(rollouts.path))


def refuse_apart(
    scored_N: NDArray[np.floating],
    sampled_N: NDArray[np.floating],
    offsets: NDArray[np.int64],
    made: Metadata,
    dtype: torch.dtype,
    where: str,
) -> None:
    """Raise `UserError` where a completion's log-probs (N, nats) under its sampler, which `made`
    tells of, and under the policy in its `dtype` are further apart than rounding makes.

    Completions that are NaN throughout on either side, which one of the two has not read, are
    passed over.
    """
    lengths, owner = np.diff(offsets), row_of_value(offsets)
    gap_R = sums(np.abs(scored_N - sampled_N), owner, len(lengths)) / np.maximum(lengths, FEWEST)
    told_R = [sums(~np.isnan(side), owner, len(lengths)) > 0 for side in (scored_N, sampled_N)]
    engine = made.get("engine") or {}
    dtypes = {str(dtype).removeprefix("torch."), str(engine.get("dtype"))}
    coarse = coarser(engine.get("kv_cache_dtype", "auto"), engine.get("options", {}))
    bound = BOUNDS["float32" if dtypes == {"float32"} and not coarse else "bfloat16"]
    bound /= min(1.0, float(made.get("temperature", 1)))
    worst = float(gap_R[told_R[0] & told_R[1]].max(initial=0))
    if worst <= bound:
        return
    raise UserError(
        f"{where}: a completion's log-probs under the sampler are {worst:.2g} nats a token "
        f"from the scorer's, and {bound:.2g} is the most that rounding makes; training on them "
        "would follow another policy. Try float32 for both (model.dtype, engine.dtype); if it "
        f"stays, this version of {engine.get('kind', 'the engine')} decodes the model otherwise "
        "than it is trained: take another engine.kind, or another model"
    )
