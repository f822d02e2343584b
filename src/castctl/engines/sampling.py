"""Drawing the next token: exact inverse-CDF sampling from one uniform number a token."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import (
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

BLOCK = 512

SEED_BITS = 63
"""What fits the signed 64-bit seed of a request to another sampler; one of more makes vLLM hang."""


class RowUniforms:
    """Uniform numbers in [0, 1) of many rows, each from its own counter-based stream.

    Row `r`'s number at position `t` depends on its key and `t` alone, never on the batch.
    """

    def __init__(self, keys: list[int], block: int = 64) -> None:
        self._streams = [np.random.Generator(np.random.Philox(key=key)) for key in keys]
        self._block = block
        self._numbers = np.zeros((len(keys), 0))

    def at(self, position: int, rows: NDArray[np.int64]) -> NDArray[np.float64]:
        """The numbers of these rows at `position`; positions are asked for in ascending order."""
        offset = position % self._block
        if offset == 0:
            self._numbers = np.stack([stream.random(self._block) for stream in self._streams])
        return self._numbers[rows, offset]


def row_key(seed: int, step: int, prompt_id: str, sample: int) -> int:
    """The 128-bit key of one completion's randomness."""
    text = f"{seed}/{step}/{prompt_id}/{sample}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:16], "little")


def request_seed(key: int) -> int:
    """The seed of a request to another sampler, from the key of its completion."""
    return key % 2**SEED_BITS


class Penalties:
    """Penalties on the tokens that rows hold already, as vLLM has them (0.32): the repetition
    penalty on those of prompt and completion (Keskar et al., arXiv 1909.05858; logits above 0 are
    divided by it, the others multiplied), then the presence penalty on those of the completion,
    however often they occur in it."""

    def __init__(
        self,
        prompts: Sequence[NDArray[np.int32]],
        presence: float,
        repetition: float,
        device: torch.device,
    ) -> None:
        longest = max(map(len, prompts))
        # What fills a shorter prompt up is its own first token, which a row holds anyway.
        filled = [np.pad(prompt, (longest - len(prompt), 0), "edge") for prompt in prompts]
        self._prompts = torch.from_numpy(np.stack(filled)).to(device, torch.int64)
        self._presence, self._repetition = presence, repetition

    def __call__(
        self, logits_BV: Tensor, rows_B: NDArray[np.int64], sampled_BT: NDArray[np.int32]
    ) -> Tensor:
        """The logits (B, V, float32) of these rows' next tokens, of which T are sampled; before
        temperature and truncation, and what greedy decoding takes the highest of."""
        scores = logits_BV.float()
        sampled = torch.from_numpy(sampled_BT).to(scores.device, torch.int64)
        if self._repetition != 1:
            prompts = self._prompts[torch.from_numpy(rows_B).to(scores.device)]
            penalise = RepetitionPenaltyLogitsProcessor(float(self._repetition))
            scores = penalise(torch.cat([prompts, sampled], dim=1), scores)
        if self._presence:
            scores = scores.scatter(1, sampled, scores.gather(1, sampled) - self._presence)
        return scores


def next_token_scores(
    logits_BV: Tensor, temperature: float, top_p: float, top_k: int, min_p: float
) -> Tensor:
    """Scores (B, V) whose softmax is the distribution to draw from: logits / T, truncated."""
    scores = logits_BV.float() if temperature == 1 else logits_BV.float() / temperature
    no_ids = torch.LongTensor(len(scores), 0)  # the warpers do not look at them
    if top_k > 0:
        scores = TopKLogitsWarper(top_k)(no_ids, scores)
    if top_p < 1:
        scores = TopPLogitsWarper(top_p)(no_ids, scores)
    if min_p > 0:
        scores = MinPLogitsWarper(min_p)(no_ids, scores)
    return scores


def draw(scores_BV: Tensor, uniforms_B: Tensor) -> tuple[Tensor, Tensor]:
    """One token a row (B) and its log-prob: the first whose cumulative probability exceeds the
    row's uniform.

    Two levels, blocks of tokens and then the tokens of one block, over probabilities that
    are not normalised: at V = 151,936 three passes over the scores, where log-softmax, exp
    and one cumulative sum would take eight.
    """
    highest = scores_BV.amax(-1, keepdim=True)
    rows, vocabulary = scores_BV.shape
    weights = scores_BV.new_zeros(rows, vocabulary + -vocabulary % BLOCK)
    torch.sub(scores_BV, highest, out=weights[:, :vocabulary]).exp_()
    blocks = weights.view(rows, -1, BLOCK)
    # A block's sum is as exact in float32 as its terms, and twenty times as fast as in float64.
    reached = blocks.sum(-1).double().cumsum(-1)
    total = reached[:, -1:]
    wanted = uniforms_B[:, None] * total
    block = torch.searchsorted(reached, wanted, right=True).clamp_(max=reached.shape[1] - 1)
    before = torch.where(block > 0, reached.gather(1, (block - 1).clamp(min=0)), 0.0)
    inside = blocks.gather(1, block[:, :, None].expand(-1, -1, BLOCK))[:, 0].double()
    place = torch.searchsorted(inside.cumsum(-1), wanted - before, right=True)
    # Rounding may carry the search past the block's last possible token.
    last = BLOCK - 1 - (inside > 0).flip(-1).int().argmax(-1, keepdim=True)
    # Scores that are not numbers find no token; whoever asked sees it by the log-prob.
    token = (block * BLOCK + torch.minimum(place, last)).clamp_(max=scores_BV.shape[1] - 1)
    logprobs = scores_BV.gather(1, token) - highest - total.log().float()
    return token[:, 0], logprobs[:, 0]
