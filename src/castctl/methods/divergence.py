"""How far a student's next-token distribution is from a teacher's, with the gradient by hand.

The generalised Jensen-Shannon divergence of on-policy distillation (GKD, arXiv 2306.13649;
OPSD, arXiv 2601.18734): with m = beta q + (1 - beta) p, teacher q and student p,

    L = beta KL(q || m) + (1 - beta) KL(p || m),

which tends to 0 at both ends; there the ends are defined as KL(q || p) (beta 0) and
KL(p || q) (beta 1). All in nats, over softmax(logits / T).

L is a sum over the vocabulary, and OPSD's clip bounds each of its terms before they are summed: a
token loses the gradient of its few largest entries and keeps that of the others. A term below the
bound stays as it is, so a clipped sum may be negative, as single terms are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

BLOCK, CPU_BLOCK, SCRATCH = 2**22, 2**18, 4
"""Elements that are worked on at once, on the CPU few enough to stay in its cache, and how many
buffers of as many there are beyond those handed in: fresh memory costs more than the arithmetic."""


@dataclass(frozen=True)
class Divergence:
    """Which divergence, and over which tokens.

    `beta`: 0 is KL(teacher || student), 1 is KL(student || teacher), between them the
    generalised JSD. `top_k`: over the teacher's k most likely tokens only, both sides
    restricted to them and renormalised, or with `tail` the rest of the vocabulary as one
    more bucket on both sides; a k of the vocabulary's size or more is the full vocabulary.
    `clip`: upper bound, in nats, of each term of the sum (a token of the vocabulary, of the k, or
    the tail's bucket); None bounds none.
    Raises `ValueError` for a beta outside [0, 1], a top_k below 1, a tail without top_k, and a
    clip that is not above 0.
    """

    beta: float
    top_k: int | None = None
    tail: bool = False
    clip: float | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.beta <= 1:
            raise ValueError(f"beta is {self.beta}, and lies in [0, 1]")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k is {self.top_k}, and is 1 or more")
        if self.tail and self.top_k is None:
            raise ValueError("a tail is what top_k leaves out; without top_k there is none")
        if self.clip is not None and not self.clip > 0:
            raise ValueError(f"clip is {self.clip}, and is above 0")


def divergences(
    divergence: Divergence, logprobs_NV: Tensor, teacher_logits_NV: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Divergence of each token (N), the same with its terms clipped (N), and the slope (N, V) of
    the latter in the student's logits over T.

    Without a clip the first two are one. `logprobs_NV` is the student's log-softmax and is only
    read; `teacher_logits_NV`, the teacher's logits over T, is overwritten, and the slope is the
    same memory. Both of one dtype, float32 or float64, which is the results' too. Nothing is
    summed across tokens.
    """
    count, vocabulary = logprobs_NV.shape
    values_N = logprobs_NV.new_empty(count)
    clipped_N = values_N if divergence.clip is None else logprobs_NV.new_empty(count)
    elements = CPU_BLOCK if logprobs_NV.device.type == "cpu" else BLOCK
    size = min(max(elements // vocabulary, 1), count)
    scratch = logprobs_NV.new_empty(SCRATCH, size, vocabulary)
    for start in range(0, count, max(size, 1)):
        rows = slice(start, start + size)
        logp, teacher = logprobs_NV[rows], teacher_logits_NV[rows]
        values_N[rows], clipped_N[rows] = _block(divergence, logp, teacher, scratch[:, : len(logp)])
    return values_N, clipped_N, teacher_logits_NV


def _block(
    divergence: Divergence, logp: Tensor, teacher: Tensor, scratch: Tensor
) -> tuple[Tensor, Tensor]:
    """Values, whole and clipped (n); `teacher` (n, V) holds its logits and then the slope."""
    k = divergence.top_k
    if k is None or k >= logp.shape[1]:
        return _compare(divergence, logp, _log_softmax_(teacher, scratch[0]), scratch)
    slope, tokens = teacher.topk(k, sorted=False)
    if divergence.tail:
        return _with_tail(divergence, logp, teacher, tokens, scratch)
    logp = logp.gather(1, tokens)
    few = logp.new_empty(SCRATCH, *logp.shape)
    values = _compare(divergence, _log_softmax_(logp, few[0]), _log_softmax_(slope, few[0]), few)
    # The student's mass outside the k cancels in the renormalisation, so no gradient is there.
    teacher.zero_().scatter_(1, tokens, slope)
    return values


def _with_tail(
    divergence: Divergence, logp: Tensor, teacher: Tensor, tokens: Tensor, scratch: Tensor
) -> tuple[Tensor, Tensor]:
    """Over the buckets {token 1}, ..., {token k}, the rest; a token of the rest has its share
    of that bucket's slope."""
    import torch

    buckets = logp.new_empty(2 + SCRATCH, len(tokens), tokens.shape[1] + 1)
    (p, slope), few = buckets[:2], buckets[2:]
    rest = scratch[0].copy_(logp)
    for bucket, logprobs in ((p, rest), (slope, _log_softmax_(teacher, scratch[1]))):
        bucket[:, :-1] = logprobs.gather(1, tokens)
        logprobs.scatter_(1, tokens, -torch.inf)
        # Summed as it is: 1 - sum of the k would lose a small rest to rounding.
        bucket[:, -1:] = _logsumexp(logprobs, scratch[1])
    values = _compare(divergence, p, slope, few)
    torch.mul(rest.sub_(p[:, -1:]).exp_(), slope[:, -1:], out=teacher)
    teacher.scatter_(1, tokens, slope[:, :-1])
    return values


def _compare(
    divergence: Divergence, logp: Tensor, logq: Tensor, scratch: Tensor
) -> tuple[Tensor, Tensor]:
    """Values, whole and clipped (n), of distributions over C outcomes (n, C); `logq` becomes the
    slopes.

    With g = dL/dp the slope in the logits of p is p (g - E_p g). Here g is log(p/q) for
    KL(p || q), -q/p for KL(q || p), and (1 - beta) log(p/m) between: what m adds cancels.
    A clipped term has g = 0. Of KL(p || q) g is really log(p/q) + 1: as the 1 of every term cancels
    in the slope, it is left out of all, and a clipped term is left with -1.
    """
    import torch

    beta, clip = divergence.beta, divergence.clip
    a, b, c, d = scratch
    if beta == 0:
        q = torch.exp(logq, out=a)
        values, clipped, over = _sums_(logq.sub_(logp).mul_(q), clip)
        p = torch.exp(logp, out=logq)
        if over is not None:
            p.mul_(1 - torch.mul(q, over, out=b).sum(1, keepdim=True))
            q.masked_fill_(over, 0)
        p.sub_(q)
        return values, clipped
    if beta == 1:
        p, g = torch.exp(logp, out=a), torch.sub(logp, logq, out=logq)
        values, clipped, over = _sums_(torch.mul(p, g, out=b), clip)
        if over is not None:
            g.masked_fill_(over, -1)
        _centre_(g, p, b)
        return values, clipped
    q = torch.exp(logq, out=a)
    p_over_m, q_over_m = _over_mean_(beta, torch.sub(logp, logq, out=logq), (b, c, d))
    of_teacher = q_over_m.mul_(q).mul_(beta)
    p = torch.exp(logp, out=a)
    g = p_over_m.mul_(1 - beta)
    values, clipped, over = _sums_(of_teacher.addcmul_(p, g), clip)
    if over is not None:
        g.masked_fill_(over, 0)
    _centre_(g, p, c)
    return values, clipped


def _sums_(terms: Tensor, clip: float | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """Sums of each row's terms (n, C), of the terms no greater than `clip` allows, and which are
    greater, if any bound is set; the terms are overwritten."""
    values = terms.sum(1)
    if clip is None:
        return values, values, None
    over = terms > clip
    return values, terms.clamp_(max=clip).sum(1), over


def _centre_(g: Tensor, p: Tensor, scratch: Tensor) -> None:
    """`g` becomes p (g - E_p g)."""
    import torch

    g.sub_(torch.mul(p, g, out=scratch).sum(1, keepdim=True)).mul_(p)


def _over_mean_(
    beta: float, log_ratio: Tensor, scratch: tuple[Tensor, Tensor, Tensor]
) -> tuple[Tensor, Tensor]:
    """log(p/m), where r = log(p/q) was, and log(q/m), in the first of the scratch.

    m over the larger of p and q is 1 + beta (e^-max(r, 0) - 1) + (1 - beta) (e^min(r, 0) - 1),
    one of the two terms being 0: no exponential overflows, and equal ones give exactly 0.
    """
    import torch

    above, mean, other = scratch
    torch.clamp(log_ratio, min=0, out=above)
    below = log_ratio.clamp_(max=0)
    torch.expm1(below, out=mean).mul_(1 - beta)
    mean.add_(torch.neg(above, out=other).expm1_(), alpha=beta).log1p_()
    return below.sub_(mean), above.add_(mean).neg_()


def _log_softmax_(logits: Tensor, scratch: Tensor) -> Tensor:
    """In place; torch's own is three times less exact in float32 at 151,936 tokens: 7e-6."""
    logits.sub_(logits.amax(1, keepdim=True))  # apart, or large logits would round the rest away
    return logits.sub_(_logsumexp(logits, scratch))


def _logsumexp(logits: Tensor, scratch: Tensor) -> Tensor:
    """(n, 1)"""
    import torch

    highest = logits.amax(1, keepdim=True)
    return torch.sub(logits, highest, out=scratch).exp_().sum(1, keepdim=True).log_().add_(highest)
