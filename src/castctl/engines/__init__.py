"""Engines turn prompts into completions; each keeps its padding and caches to itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:  # an engine's process needs none of this, and starts sooner without
    from castctl.models.policy import Policy
    from castctl.progress import Advance
    from castctl.recipe.recipe import Recipe, SamplingSettings
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


Measures = Mapping[str, float]

Batches = Mapping[int, Sequence[Request]]
"""Requests by the number of the part that they fill."""


class Engine(Protocol):
    """What loop, stages and evaluation ask of an engine."""

    @property
    def identity(self) -> Metadata:
        """What decides a draw beside the weights, the request and the sampling settings: `kind`,
        `version`, `dtype`, and `seeds`, how a request's key seeds its randomness."""

    def generate(
        self, batches: Batches, sampling: SamplingSettings, advance: Advance
    ) -> Iterator[tuple[int, list[Completion]]]:
        """Each batch's number and completions, one a request in order, as soon as it is whole, in
        whatever order; `advance` is told of finished completions.

        Each ends with the first token that is a stop token, or after which its own text holds one
        of `sampling.stop`; `finish_reason` is then `stop`, and `length` where there is none.
        """

    def rest(self) -> None:
        """Give back the memory that others may need, until more is asked."""

    def sync(self) -> Measures:
        """Take over the policy's weights, which have changed; nothing may be sampled before. What
        there is to say of it, for the step's metrics."""

    def close(self) -> None:
        """Give back what the engine holds; nothing is sampled after."""


@dataclass(frozen=True)
class Site:
    """Where an engine's policy comes from and where its logs go: the folder with the weights as
    they are, the run's, and how the names of the logs begin."""

    weights: Path
    run: Path
    name: str = "engine"

    def log(self, replica: int) -> Path:
        """The log of a replica."""
        return self.run / f"{self.name}-{replica}.log"


def make_engine(recipe: Recipe, policy: Policy, site: Site) -> Engine:
    """The engine of a recipe, sampling from a policy's weights as they are.

    Raises `UserError` where what it needs is not there.
    """
    from castctl.engines.transformers_engine import TransformersEngine
    from castctl.engines.vllm_engine import VllmEngine

    makers: dict[str, Callable[[], Engine]] = {
        "transformers": lambda: TransformersEngine(policy.model),
        "vllm": lambda: VllmEngine(recipe, policy, site),
    }
    return makers[recipe.engine.kind]()
