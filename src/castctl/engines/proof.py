"""The proof that an engine with weights of its own samples from the policy.

After every change of weights it completes the same few prompts with the same seeds, and the policy
scores what it drew. A head, a cache or an adapter that stayed old shows in the log-probs; weights
that never came show in completions equal to the last bit.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum

import numpy as np
from numpy.typing import NDArray

from castctl.engines import Completion, Request
from castctl.engines.sampling import row_key
from castctl.errors import UserError
from castctl.models.language_model import LanguageModel
from castctl.recipe.recipe import SamplingSettings

PROMPTS = 8
TOKENS = 32
"""How many prompts are completed, and by how many tokens each."""

EXACT, ROUNDED, COARSE = 1e-3, 0.05, 0.3
"""Nats a token, on average over all of them, that engine and scorer may be apart: where both
compute in float32 on the CPU, where one of them rounds more, and where the engine's weights or
cache are coarser still. Measured on the CPU: 3e-5 at most in float32, 0.007 on average in
bfloat16."""

GROWTH, SLACK = 5.0, 1e-4
"""Once the gap of the untouched weights is known, which is rounding alone, later ones may be so
many times as large, and so much more."""

SCORED_TOKENS = 16384
HEAD_TOKENS = 256
"""How the scorer's passes are cut up."""


@dataclass(frozen=True)
class Gap:
    """How far apart the log-probs of engine and scorer are, in nats: a token's on average, and at
    the most."""

    mean: float
    largest: float
    tokens: int


class Cause(Enum):
    """Why an engine samples from other weights than the policy's, in words."""

    UNMOVED = (
        "its completions are those of before the update to the last bit: the new weights never "
        "reached it"
    )
    CACHE = "with an empty prefix cache it is right: the cache held what the old weights had made"
    TIED = (
        "the output head is tied to the embeddings, and an engine that replaces weights in place "
        "keeps the old head where it is not written out"
    )
    OTHER = (
        "neither the prefix cache nor a tied head explains it: look into the engine's log for "
        "weights that were not loaded"
    )
    AT_START = (
        "nothing has been trained yet, so it computes this model otherwise: try engine.dtype="
        "float32, engine.enforce_eager=true or no engine.options, or engine.kind=transformers"
    )


class Proof:
    """The prompts that are completed, and the scorer that is asked."""

    def __init__(self, scorer: LanguageModel, bound: float) -> None:
        self._scorer = scorer
        self.bound = bound
        self.requests: list[Request] = []

    def choose(self, requests: Iterable[Request], room: int) -> None:
        """Take the longest prompts, whose keys and values a cache is most likely to keep, of those
        that leave enough of the `room`; they stay the same for all changes of weights."""
        if self.requests:
            return
        distinct = {request.prompt.tobytes(): request.prompt for request in requests}
        prompts = sorted(distinct.values(), key=len, reverse=True)
        roomy = [prompt for prompt in prompts if len(prompt) + TOKENS <= room]
        longest = (roomy or prompts[::-1])[:PROMPTS]
        chosen = [longest[n % len(longest)] for n in range(PROMPTS)] if longest else []
        self.requests = [Request(ids, row_key(0, 0, "proof", n)) for n, ids in enumerate(chosen)]

    def sampling(self, room: int) -> SamplingSettings:
        """How they are completed, where a prompt and its completion may have `room` tokens: from
        the whole distribution at a temperature of 1."""
        longest = max(len(request.prompt) for request in self.requests)
        return SamplingSettings(n=1, temperature=1, max_tokens=min(TOKENS, room - longest))

    def expect(self, gap: Gap) -> None:
        """Take the gap of weights that nobody has touched for what rounding makes."""
        self.bound = min(self.bound, GROWTH * gap.mean + SLACK)

    def gap(self, completions: Sequence[Completion]) -> Gap:
        """Engine against scorer on completions of the requests."""
        sampled = [_logprobs(each) for each in completions]
        scored, _ = self._scorer.score(
            [request.prompt for request in self.requests],
            [each.token_ids for each in completions],
            1.0, SCORED_TOKENS, HEAD_TOKENS, with_entropies=False,
        )  # fmt: skip
        apart = np.abs(np.concatenate(sampled) - scored.astype(np.float64))
        return Gap(float(apart.mean()), float(apart.max()), len(apart))


def equal(before: Sequence[Completion], now: Sequence[Completion]) -> bool:
    """Whether tokens and log-probs are the same to the last bit."""
    return all(
        np.array_equal(a.token_ids, b.token_ids) and np.array_equal(_logprobs(a), _logprobs(b))
        for a, b in zip(before, now, strict=True)
    )


def _logprobs(completion: Completion) -> NDArray[np.float32]:
    assert completion.logprobs is not None, "sampled at a temperature"
    return completion.logprobs


def refusal(gap: Gap, bound: float, cause: Cause) -> UserError:
    """What to say of an engine that fails the proof."""
    return UserError(
        f"the engine does not sample from the policy ({gap.mean:.2g} nats a token between its "
        f"log-probs and the scorer's on {gap.tokens} fresh tokens, at most {bound:g} by rounding): "
        f"{cause.value}. Nothing was trained on its completions"
    )
