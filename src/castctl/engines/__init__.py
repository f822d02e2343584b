"""Engines turn prompts into completions; each keeps its padding and caches to itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from castctl.progress import Advance
from castctl.recipe.recipe import SamplingSettings


@dataclass(frozen=True)
class Request:
    """One completion to sample: its prompt and the key of its randomness."""

    prompt: NDArray[np.int32]
    key: int


@dataclass(frozen=True)
class Completion:
    """Sampled tokens with their stop token, and each one's log-prob under the sampler.

    `logprobs` (nats) is None for greedy decoding, which samples from nothing.
    """

    token_ids: NDArray[np.int32]
    logprobs: NDArray[np.float32] | None
    finish_reason: str


class Engine(Protocol):
    """What a rollout needs of an engine."""

    def generate(
        self, requests: Sequence[Request], sampling: SamplingSettings, advance: Advance
    ) -> list[Completion]:
        """One completion a request, in order; `advance` is told of finished completions."""
