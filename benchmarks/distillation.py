"""CPU time and peak memory of full-vocabulary distillation in chunks, against public losses.

Those have whole (tokens x vocabulary) arrays of both sides: reverse KL as SDPG's code has it
(github.com/yifanzhang-pro/SDPG), the others as OPSD's (github.com/siyan-zhao/OPSD), which has them
from TRL's GKD.
"""

from __future__ import annotations

import multiprocessing
import resource
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import measure
import psutil
import torch
from torch import Tensor

from castctl.methods.divergence import Divergence
from castctl.models.head import OutputHead, TeacherSide, fused_loss

Size = tuple[int, int, int]
"""Tokens, hidden size, vocabulary."""

COPIES = 18
"""How many (tokens x vocabulary) float32 arrays a public form needs at its peak, with margin."""

FORMS = {
    "reverse_kl": Divergence(1.0),
    "jsd": Divergence(0.5),
    "jsd_clipped": Divergence(0.5, clip=0.05),
    "jsd_top_100": Divergence(0.5, top_k=100),
}


def main() -> None:
    parser = measure.options(__doc__, repeats=1)
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--vocabulary", type=int, default=151_936)
    parser.add_argument("--chunk", type=int, default=256, help="train.head_chunk_tokens")
    options = measure.parse(parser)
    if options.quick:
        options.tokens, options.hidden, options.vocabulary = 512, 32, 16_384

    size = options.tokens, options.hidden, options.vocabulary
    public_too = (
        COPIES * 4 * options.tokens * options.vocabulary < psutil.virtual_memory().available
    )
    runs: dict[str, dict[str, list[tuple[float, float]]]] = {
        form: {"fused": [], **({"public": []} if public_too else {})} for form in FORMS
    }
    for _ in range(options.repeats):
        for form, sides in runs.items():
            sides["fused"].append(alone(fused, size, options.chunk, form))
            if public_too:
                sides["public"].append(alone(public, size, form))
    for form in FORMS:
        check_equal((32, *size[1:]), options.chunk, form)
    cases = {form: case(**sides) for form, sides in runs.items()}
    if not public_too:
        cases["note"] = {"public": "left out: they do not fit into free memory"}
    measure.report(
        "distillation",
        options.repeats,
        **dict(zip(("tokens", "hidden", "vocabulary"), size, strict=True)),
        chunk=options.chunk,
        **cases,
    )


def case(
    fused: Sequence[tuple[float, float]], public: Sequence[tuple[float, float]] = ()
) -> dict[str, Any]:
    """Seconds and GiB of castctl's form; of the public one too, with the rounds' ratios of time and
    the ratio of memory."""
    seconds, peaks = zip(*fused, strict=True)
    found = {"seconds": measure.median(seconds), "extra_gb": max(peaks)}
    if public:
        public_seconds, public_peaks = zip(*public, strict=True)
        found |= {
            "public_seconds": measure.median(public_seconds),
            "public_extra_gb": max(public_peaks),
            "memory_ratio": max(public_peaks) / max(peaks),
            **measure.ratio(public_seconds, seconds),
        }
    return found


def alone(set_up: Callable[..., Callable[[], object]], *arguments: Any) -> tuple[float, float]:
    """CPU seconds of the work, and GiB by which it raises the memory, of a fresh process."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(_alone, set_up, arguments).result()


def _alone(
    set_up: Callable[..., Callable[[], object]], arguments: tuple[Any, ...]
) -> tuple[float, float]:
    size, *others = arguments
    set_up((1, *size[1:]), *others)()  # what happens only once happens before the clock starts
    work, before = set_up(*arguments), psutil.Process().memory_info().rss
    began = time.process_time()
    work()
    seconds = time.process_time() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return seconds, (peak * (1 if sys.platform == "darwin" else 1024) - before) / measure.GIB


class Inputs:
    """Both sides' hidden states and weights, the targets, and the weights of the two terms."""

    def __init__(self, size: Size) -> None:
        tokens, hidden, vocabulary = size
        torch.manual_seed(0)
        self.states, self.teacher_states = torch.randn(2, tokens, hidden).mul_(2).unbind()
        self.states.requires_grad_()
        self.weight = torch.nn.Parameter(torch.randn(vocabulary, hidden) / hidden**0.5)
        self.teacher_weight = torch.randn(vocabulary, hidden) / hidden**0.5
        self.targets = torch.randint(0, vocabulary, (tokens,))
        self.policy, self.distill = torch.randn(tokens) / tokens, torch.rand(tokens) / tokens

    def gradients(self, loss: Tensor) -> list[Tensor]:
        return list(torch.autograd.grad(loss, (self.states, self.weight)))


def fused(size: Size, chunk: int, form: str) -> Callable[[], list[Tensor]]:
    """castctl's head: a policy term and a divergence, the gradients of hidden states and weight."""
    given = Inputs(size)
    head = OutputHead(given.weight, None, None, temperature=1.0, chunk_tokens=chunk)
    teacher_head = OutputHead(given.teacher_weight, None, None, 1.0, chunk)
    teacher = TeacherSide(teacher_head, given.teacher_states, FORMS[form])

    def token_loss(part: slice, logprobs: Tensor, _: Tensor, divergences: Tensor) -> Tensor:
        return given.distill[part] * divergences - given.policy[part] * logprobs

    def work() -> list[Tensor]:
        loss, _, _ = fused_loss(head, given.states, given.targets, token_loss, teacher=teacher)
        return given.gradients(loss)

    return work


def public(size: Size, form: str) -> Callable[[], list[Tensor]]:
    """The same by whole logits of both sides and every array that autograd keeps of them."""
    given, divergence = Inputs(size), FORMS[form]

    def work() -> list[Tensor]:
        logits = given.states @ given.weight.T
        logp = torch.log_softmax(logits, dim=-1)
        logprobs = logp.gather(1, given.targets[:, None])[:, 0]
        with torch.no_grad():
            teacher_logits = given.teacher_states @ given.teacher_weight.T
        if divergence.top_k is not None:
            kept = teacher_logits.topk(divergence.top_k, dim=-1).indices
            logp, teacher_logits = logits.gather(1, kept), teacher_logits.gather(1, kept)
            logp = torch.log_softmax(logp, dim=-1)
        logq = torch.log_softmax(teacher_logits, dim=-1)
        if divergence.beta == 1:
            terms = logp.exp() * (logp - logq)
        else:
            beta = torch.tensor(divergence.beta)
            mixed = torch.stack([logp + torch.log1p(-beta), logq + torch.log(beta)]).logsumexp(0)
            to_teacher, to_student = (
                torch.nn.functional.kl_div(mixed, side, reduction="none", log_target=True)
                for side in (logq, logp)
            )
            terms = beta * to_teacher + (1 - beta) * to_student
        if divergence.clip is not None:
            terms = terms.clamp(max=divergence.clip)
        divergences = terms.sum(-1)
        return given.gradients((given.distill * divergences - given.policy * logprobs).sum())

    return work


def check_equal(size: Size, chunk: int, form: str) -> None:
    for one, other in zip(fused(size, chunk, form)(), public(size, form)(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5 * float(other.abs().max()))


if __name__ == "__main__":
    main()
