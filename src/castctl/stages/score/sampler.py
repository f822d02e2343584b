"""The guard between sampler and scorer: what trains must come from the policy that is trained."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from castctl.errors import UserError
from castctl.ragged import row_of_value, sums
from castctl.recipe.engine import coarser
from castctl.shards.columns import ragged_column
from castctl.shards.part import Part
from castctl.stages.sampled import alteration, sampler_logprobs
from castctl.stages.score.scorers import Scorer

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
    if sampled_N is None or not len(sampled_N):
        return
    lengths = np.diff(offsets)
    gap_R = sums(np.abs(scored_N - sampled_N), row_of_value(offsets), len(lengths))
    gap_R /= np.maximum(lengths, FEWEST)
    there_R = rollouts.table["sampler_logprobs"].combine_chunks().is_valid()
    engine = made.get("engine") or {}
    dtypes = {str(policy.model.dtype).removeprefix("torch."), str(engine.get("dtype"))}
    coarse = coarser(engine.get("kv_cache_dtype", "auto"), engine.get("options", {}))
    bound = BOUNDS["float32" if dtypes == {"float32"} and not coarse else "bfloat16"]
    bound /= min(1.0, float(made.get("temperature", 1)))
    worst = float(gap_R[there_R.to_numpy(zero_copy_only=False)].max(initial=0))
    if worst <= bound:
        return
    raise UserError(
        f"{rollouts.path}: a completion's log-probs under the sampler are {worst:.2g} nats a token "
        f"from the scorer's, and {bound:.2g} is the most that rounding makes; training on them "
        "would follow another policy. Try float32 for both (model.dtype, engine.dtype); if it "
        f"stays, this version of {engine.get('kind', 'the engine')} decodes the model otherwise "
        "than it is trained: take another engine.kind, or another model"
    )
