"""The answers of completions, and how far a perturbation moves their distribution."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import reduce

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from castctl.methods.oar import AnswerScore
from castctl.models.head import OutputHead
from castctl.models.packing import Ids
from castctl.verify.spans import AnswerSpan

ONE_TOKEN = {"first": slice(0, 1), "last": slice(-1, None)}
"""Of which of the answer's tokens alone the distributions are compared."""


@dataclass(frozen=True)
class AnsweredRow:
    """A completion that reasons and answers; what follows the answer is left out."""

    number: int
    """Its place among all rows."""
    prompt: Ids
    completion: Ids
    span: AnswerSpan

    @property
    def answer(self) -> Ids:
        return self.completion[self.span.answer_start :]


def answered_rows(
    prompts: Sequence[Ids], completions: Sequence[Ids], spans: Sequence[AnswerSpan | None]
) -> list[AnsweredRow]:
    """The rows that have reasoning to score."""
    rows = enumerate(zip(prompts, completions, spans, strict=True))
    return [
        AnsweredRow(number, prompt, completion[: span.answer_end], span)
        for number, (prompt, completion, span) in rows
        if span is not None and span.reasoning_end > 0
    ]


class AnswerDivergence:
    """How far perturbed distributions of an answer are from the clean one (arXiv 2601.07408).

    - `first`, `last`: KL(clean || perturbed) of the position that predicts the answer's first, or
      last, token;
    - `answer_mean`: the KL of the softmaxes of the logits' means over the answer's tokens;
    - `answer_joint`: log p_clean(answer) - log p_perturbed(answer), summed over its tokens.

    Everything is of softmax(cap(W h + b) / T), in nats. Logits exist for `chunk_tokens`
    positions at a time, in the backward pass too.
    """

    def __init__(self, head: OutputHead, dtype: torch.dtype, score: AnswerScore) -> None:
        bias = None if head.bias is None else head.bias.detach()
        self._head = replace(head, weight=head.weight.detach().to(dtype), bias=bias)
        self._score = score

    def __call__(self, clean_AH: Tensor, perturbed_CAH: Tensor, answer_A: Tensor) -> Tensor:
        """Divergences (C), differentiable in the perturbed hidden states (C, A, H) of `dtype`.

        `answer_A` are the tokens that the states predict.
        """
        if self._score in ONE_TOKEN:  # a mean over one position
            one = ONE_TOKEN[self._score]
            clean_AH, perturbed_CAH, answer_A = clean_AH[one], perturbed_CAH[:, one], answer_A[one]
        with torch.no_grad():
            clean = self._logprobs(clean_AH[None], answer_A)
        at_once = max(1, self._head.chunk_tokens // len(answer_A))
        perturbed = (self._logprobs(part, answer_A) for part in perturbed_CAH.split(at_once))
        if self._score == "answer_joint":
            return torch.cat([clean - part for part in perturbed])
        return torch.cat([_kl(clean, part) for part in perturbed])

    def _logprobs(self, states_CAH: Tensor, answer_A: Tensor) -> Tensor:
        """Joint log-prob of the answer (C), or log-softmax of the mean logits (C, V)."""
        size = self._head.chunk_tokens
        total = reduce(
            torch.add,
            (
                checkpoint(self._sum, *chunk, use_reentrant=False, preserve_rng_state=False)
                for chunk in zip(states_CAH.split(size, dim=1), answer_A.split(size), strict=True)
            ),
        )
        if self._score == "answer_joint":
            return total
        return (total / len(answer_A)).log_softmax(-1)

    def _sum(self, states_CAH: Tensor, answer_A: Tensor) -> Tensor:
        """Log-probs of the tokens (C), or logits (C, V), summed over positions."""
        logits = self._head.logits(states_CAH)
        if self._score != "answer_joint":
            return logits.sum(1)
        picked = logits.gather(2, answer_A.expand(len(logits), -1)[:, :, None])[:, :, 0]
        return (picked - logits.logsumexp(-1)).sum(1)


def _kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(p || q) over the last axis.

    The sum of q - p is zero but for rounding; with it, an error that all of a distribution's
    log-probs share drops out to first order.
    """
    p, q = log_p.exp(), log_q.exp()
    return (p * (log_p - log_q) + (q - p)).sum(-1)
