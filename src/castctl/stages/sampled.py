"""What rollouts say of the distribution they were drawn from."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from castctl.errors import UserError
from castctl.shards.columns import nullable_floats
from castctl.shards.part import Metadata, Part

TRUNCATIONS = {"top_p": 1.0, "top_k": 0, "min_p": 0.0}
"""The settings that leave tokens out of the draw, and the values that leave none out."""

WHY = (
    "the sampler drew from a part of the vocabulary alone, and the ratios of training divide by "
    "the whole"
)


def truncation(made: Metadata | None) -> str | None:
    """How the metadata of rollouts says that they were truncated, such as `top_p=0.9`; None where
    it does not, as of parts made elsewhere."""
    sampling = (made or {}).get("sampling", {})
    cut = [f"{k}={sampling[k]:g}" for k, off in TRUNCATIONS.items() if sampling.get(k, off) != off]
    return ", ".join(cut) or None


def refuse_truncated(rollouts: Part, remedy: str) -> None:
    """Raise `UserError` with the `remedy` where rollouts were sampled from a part of the
    vocabulary."""
    if cut := truncation(rollouts.metadata):
        raise UserError(f"{rollouts.path} was sampled with {cut}: {WHY}; {remedy}")


def sampler_logprobs(rollouts: Part, offsets: NDArray[np.int64]) -> NDArray[np.float64] | None:
    """The sampler's log-probs (N, nats), NaN where it reported none; None without any.

    Raises `UserError` for lists of other lengths than the completions, and for an infinite chance.
    """
    try:
        found = nullable_floats(rollouts.table, "sampler_logprobs", offsets)
    except ValueError as error:
        raise UserError(f"{rollouts.path}: {error}") from None
    if found is not None and np.isposinf(found).any():
        raise UserError(
            f"{rollouts.path}: sampler_logprobs are infinite, which no log-prob is; write null "
            "where the sampler reported none"
        )
    return found
