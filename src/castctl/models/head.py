"""The output head, in chunks over tokens: (tokens x vocabulary) logits never exist at once.

All log-probs and entropies, in nats and float32, are of softmax(cap(W h + b) / T), the
soft-cap applied before the temperature T.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from castctl.methods.divergence import Divergence, divergences
from castctl.models.products import linear, linear_into

TokenLoss = Callable[[slice, Tensor, Tensor, Tensor], Tensor]
"""(which tokens, their log-probs, entropies and clipped divergences, in nats) -> their losses."""


@dataclass(frozen=True)
class OutputHead:
    """The map from hidden states (N, H) to logits: `weight` (V, H), `bias` (V) or None."""

    weight: Tensor
    bias: Tensor | None
    softcap: float | None
    temperature: float
    chunk_tokens: int

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits over T (..., V) of hidden states (..., H), in float32 at least, for autograd; the
        chunked functions below work in place instead."""
        logits = linear(hidden, self.weight)
        logits = logits.to(_wide(logits.dtype))
        if self.bias is not None:
            logits = logits + self.bias
        if self.softcap is not None:
            logits = self.softcap * (logits / self.softcap).tanh()
        return logits / self.temperature


@dataclass(frozen=True)
class TeacherSide:
    """What the student's distributions are compared with: a teacher's `head` over its hidden
    states of the same tokens (N, H'), and the divergence.

    The head has the student's vocabulary and a weight, bias, soft-cap and temperature of its
    own; the chunks are the student's. Where `wanted_N` (N, bool) is given, the divergence of
    the other tokens is 0 without gradient, and a chunk of none but those costs nothing.
    """

    head: OutputHead
    hidden_NH: Tensor
    divergence: Divergence
    wanted_N: Tensor | None = None


def score_tokens(
    head: OutputHead, hidden_NH: Tensor, targets_N: Tensor, with_entropies: bool = True
) -> tuple[Tensor, Tensor | None]:
    """Log-prob of each target (N) and, if asked for, entropy of its distribution (N); no gradient.

    Entropies take a third of the arithmetic.
    """
    count = len(targets_N)
    logprobs = torch.empty(count, device=hidden_NH.device)
    entropies = torch.empty_like(logprobs) if with_entropies else None
    with torch.no_grad():
        room = _Room(head, head.weight.to(hidden_NH.dtype), count)
        for part in _chunks(count, head.chunk_tokens):
            scaled, _ = room.logits(hidden_NH[part])
            mass, total = _masses(scaled, room.of("masses", scaled))
            logprobs[part] = _at(scaled, targets_N[part]) - total.log()
            if entropies is not None:
                entropies[part] = total.log() - mass.mul_(scaled).sum(-1) / total
            del scaled  # may not be a buffer of the room's, but of this chunk's alone
    return logprobs, entropies


def fused_loss(
    head: OutputHead,
    hidden_NH: Tensor,
    targets_N: Tensor,
    token_loss: TokenLoss,
    with_entropies: bool = False,
    teacher: TeacherSide | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Sum of the token losses (scalar, differentiable), log-probs and divergences (N, detached).

    `token_loss` is handed the divergences with their terms clipped, where the divergence has a
    clip; those that come back are whole.

    One pass: the gradient with respect to hidden states, weight and bias is formed while a
    chunk's probabilities are there, for 6 T H V multiply-adds instead of the 8 of
    recomputing them in the backward pass; a teacher takes 2 T H' V more, and has no
    gradient even where its weight is the student's. So `token_loss` may not look across
    chunks. `with_entropies` off hands it zeros and saves their cost, as no teacher does with
    the divergences. Raises `ValueError` for a teacher of another vocabulary or token count.
    """
    if teacher is not None:
        _check(head, targets_N, teacher)
    return _FusedHead.apply(
        hidden_NH, head.weight, head.bias, head, targets_N, token_loss, with_entropies, teacher
    )


def _check(head: OutputHead, targets_N: Tensor, teacher: TeacherSide) -> None:
    ours, theirs = len(head.weight), len(teacher.head.weight)
    if ours != theirs:
        raise ValueError(f"the teacher's vocabulary is {theirs} tokens, the student's {ours}")
    if len(teacher.hidden_NH) != len(targets_N):
        raise ValueError(
            f"the teacher has hidden states of {len(teacher.hidden_NH)} tokens, "
            f"the student of {len(targets_N)}"
        )


class _FusedHead(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_NH: Tensor,
        weight_VH: Tensor,
        bias_V: Tensor | None,
        head: OutputHead,
        targets_N: Tensor,
        token_loss: TokenLoss,
        with_entropies: bool,
        teacher: TeacherSide | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        low = weight_VH.to(hidden_NH.dtype)
        versus = None if teacher is None else _Versus(teacher)
        total = torch.zeros((), device=hidden_NH.device, dtype=torch.float64)
        logprobs = torch.empty(
            len(targets_N), device=hidden_NH.device, dtype=_wide(hidden_NH.dtype)
        )
        distances = torch.zeros_like(logprobs)
        grad_hidden = torch.zeros_like(hidden_NH) if ctx.needs_input_grad[0] else None
        grad_weight = (
            torch.zeros_like(weight_VH, dtype=logprobs.dtype) if ctx.needs_input_grad[1] else None
        )
        grad_bias = None if bias_V is None else torch.zeros_like(bias_V)
        room = _Room(head, low, len(targets_N))
        for part in _chunks(len(targets_N), head.chunk_tokens):
            hidden, targets = hidden_NH[part], targets_N[part]
            scaled, slope = room.logits(hidden)
            mass, total_n = _masses(scaled, room.of("masses", scaled))
            normaliser = total_n.log()
            logprobs[part] = _at(scaled, targets) - normaliser
            entropy = torch.zeros_like(normaliser)
            clipped, divergence_slope = distances[part], None
            if with_entropies:
                # Two terms that are never below 0. A float32 matrix product would be off by 4e-4
                # nats at 151,936 tokens; this is by 2e-7.
                terms = torch.mul(mass, scaled, out=room.of("terms", scaled))
                entropy = normaliser - terms.sum(-1) / total_n
            if versus is not None:
                scaled.sub_(normaliser[:, None])
                distances[part], clipped, divergence_slope = versus(part, scaled)
            with torch.enable_grad():
                numbers = [n.detach().requires_grad_() for n in (logprobs[part], entropy, clipped)]
                loss = token_loss(part, *numbers).sum()
                by_logprob, by_entropy, by_divergence = torch.autograd.grad(
                    loss, numbers, allow_unused=True
                )
            total += loss.detach()
            if by_logprob is None:
                by_logprob = torch.zeros_like(normaliser)
            # What is one number a token multiplies those, and never the whole vocabulary again.
            at_once = slope if slope.numel() == 1 else torch.ones_like(slope[:1, :1])
            by_logprob_n1 = by_logprob[:, None] * at_once
            if by_entropy is None or not with_entropies:
                grad = mass.mul_(-by_logprob_n1 / total_n[:, None])
            else:  # dH/dz = -p (log p + H), and dlog p_y/dz = 1_y - p
                if versus is None:
                    scaled.sub_(normaliser[:, None])
                by_entropy_n1 = by_entropy[:, None] * at_once / total_n[:, None]
                surprise = scaled.add_(entropy[:, None]).mul_(-by_entropy_n1)
                grad = mass.mul_(surprise.sub_(by_logprob_n1 / total_n[:, None]))
            if divergence_slope is not None and by_divergence is not None:
                grad.addcmul_(divergence_slope, by_divergence[:, None] * at_once)
            grad.scatter_add_(1, targets[:, None], by_logprob_n1)
            if slope.numel() > 1:
                grad.mul_(slope)
            if grad_bias is not None:
                grad_bias += grad.sum(0)
            grad = grad.to(hidden.dtype)
            if grad_hidden is not None:
                grad_hidden[part] = linear(grad, low.T)
            if grad_weight is not None:
                if grad.dtype == grad_weight.dtype:
                    grad_weight.addmm_(grad.T, hidden)
                else:
                    grad_weight += grad.T @ hidden
            del scaled  # may not be a buffer of the room's, but of this chunk's alone
        ctx.save_for_backward(grad_hidden, grad_weight, grad_bias)
        ctx.mark_non_differentiable(logprobs, distances)
        return total, logprobs, distances

    @staticmethod
    def backward(ctx: Any, grad_total: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        grads = (None if grad is None else grad * grad_total for grad in ctx.saved_tensors)
        return (*grads, None, None, None, None, None)


class _Versus:
    """The teacher's side of each chunk, its weight cast once."""

    def __init__(self, teacher: TeacherSide) -> None:
        self.teacher = teacher
        weight = teacher.head.weight.to(teacher.hidden_NH.dtype)
        self.room = _Room(teacher.head, weight, len(teacher.hidden_NH))
        self.wanted = None if teacher.wanted_N is None else teacher.wanted_N.cpu()

    def __call__(self, part: slice, logprobs_nV: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Divergences, whole and clipped (n), and the slope of the clipped ones in the student's
        logits over T (n, V) if any."""
        wanted = None if self.wanted is None else self.wanted[part]
        if wanted is not None and not wanted.any():
            none_n = logprobs_nV.new_zeros(len(logprobs_nV))
            return none_n, none_n, None
        logits, _ = self.room.logits(self.teacher.hidden_NH[part])
        compared = divergences(self.teacher.divergence, logprobs_nV, logits.to(logprobs_nV))
        if wanted is not None:
            for numbers in compared:
                numbers[~wanted] = 0
        return compared


class _Room:
    """Buffers (chunk x vocabulary) that serve every chunk: fresh ones cost as much as the
    arithmetic on a CPU. `weight` (V, H) is the head's in the dtype of the hidden states."""

    def __init__(self, head: OutputHead, weight: Tensor, tokens: int) -> None:
        self.head, self.weight = head, weight
        self._shape = min(head.chunk_tokens, tokens), len(weight)
        self._buffers: dict[str, Tensor] = {}

    def logits(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Logits over T (n, V) in float32 at least, until the next chunk's, and their slope with
        respect to the raw logits."""
        product = linear_into(lambda: self.of("product", hidden), hidden, self.weight)
        if product.dtype != _wide(product.dtype):
            wide = self.of("logits", hidden, _wide(product.dtype))
            product = wide.copy_(product)
        return product, _scale(self.head, product)

    def of(self, name: str, like: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """The first rows of the buffer of that name, as many as `like` has, and in its dtype unless
        another is given."""
        buffer = self._buffers.get(name)
        if buffer is None:
            buffer = torch.empty(self._shape, device=like.device, dtype=dtype or like.dtype)
            self._buffers[name] = buffer
        return buffer[: len(like)]


def _scale(head: OutputHead, logits: Tensor) -> Tensor:
    """Turn raw logits (n, V) in place into those over T; the slope of the one in the other."""
    if head.bias is not None:
        logits += head.bias
    slope = torch.full((1, 1), 1 / head.temperature, device=logits.device, dtype=logits.dtype)
    if head.softcap is not None:
        logits.div_(head.softcap).tanh_()
        slope = (1 - logits * logits) / head.temperature
        logits.mul_(head.softcap)
    if head.temperature != 1:
        logits.div_(head.temperature)
    return slope


def _masses(scaled: Tensor, out: Tensor) -> tuple[Tensor, Tensor]:
    """exp of logits (n, V), into the buffer `out`, and its sum (n); the logits are shifted in place
    so that each row's highest is 0: one buffer and one exp, where softmax and logsumexp would take
    three and two, and entropies that do not cancel."""
    mass = torch.exp(scaled.sub_(scaled.amax(-1, keepdim=True)), out=out)
    return mass, mass.sum(-1)


def _at(logits: Tensor, targets: Tensor) -> Tensor:
    return logits.gather(1, targets[:, None])[:, 0]


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _chunks(count: int, size: int) -> list[slice]:
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]
