"""Engines turn prompts into completions; each keeps its padding and caches to itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:  # a child process of an engine starts without them
    import numpy as np
    from numpy.typing import NDArray

    from castctl.models.policy import Policy
    from castctl.progress import Advance
    from castctl.recipe.recipe import EngineSettings, SamplingSettings
    from castctl.shards.part import Metadata


@dataclass(frozen=True)
class Request:
    """One completion to sample: its prompt and the key of its randomness."""

    prompt: NDArray[np.int32]
    key: int


@dataclass(frozen=True)
class Completion:
    """Sampled tokens with those that stopped it, and each one's log-prob under the sampler.

    `logprobs` (nats) is None for greedy decoding, which samples from nothing.
    """

    token_ids: NDArray[np.int32]
    logprobs: NDArray[np.float32] | None
    finish_reason: str


class Engine(Protocol):
    """What loop, stages and evaluation ask of an engine."""

    @property
    def identity(self) -> Metadata:
        """What decides a draw beside the weights, the request and the sampling settings: `kind`,
        `version` and `dtype`."""

    def generate(
        self, requests: Sequence[Request], sampling: SamplingSettings, advance: Advance
    ) -> list[Completion]:
        """One completion a request, in order; `advance` is told of finished completions.

        Each ends with the first token that is a stop token, or after which its own text holds one
        of `sampling.stop`; `finish_reason` is then `stop`, and `length` where there is none.
        """

    def sync(self) -> None:
        """Take over the policy's weights, which have changed; nothing may be sampled before."""

    def close(self) -> None:
        """Give back what the engine holds; nothing is sampled after."""


def make_engine(settings: EngineSettings, policy: Policy) -> Engine:
    """The engine of a recipe, sampling from a policy's weights as they are."""
    from castctl.engines.transformers_engine import TransformersEngine

    makers = {"transformers": TransformersEngine}
    return makers[settings.kind](policy.model)
