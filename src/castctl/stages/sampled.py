"""What rollouts say of the distribution they were drawn from."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from castctl.errors import UserError
from castctl.recipe.recipe import alterations
from castctl.shards.columns import nullable_floats
from castctl.shards.part import Metadata, Part

WHY = (
    "the sampler drew from another distribution than the policy's, and the ratios of training "
    "divide by the policy's"
)


def alteration(made: Metadata | None) -> str | None:
    """How the metadata of rollouts says that they were drawn from another distribution than the
    policy's, such as `top_p=0.9`; None where it does not, as of parts made elsewhere."""
    altering = alterations((made or {}).get("sampling", {}))
    return ", ".join(f"{name}={value:g}" for name, value in altering.items()) or None


def refuse_altered(rollouts: Part, remedy: str) -> None:
    """Raise `UserError` with the `remedy` where rollouts were drawn from another distribution than
    the policy's."""
    if told := alteration(rollouts.metadata):
        raise UserError(f"{rollouts.path} was sampled with {told}: {WHY}; {remedy}")


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
