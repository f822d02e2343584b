"""CPU time and peak memory of full-vocabulary distillation in chunks, against the naive form."""

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
from torch.utils.checkpoint import checkpoint

from castctl.methods.divergence import Divergence
from castctl.models.head import OutputHead, TeacherSide, fused_loss

Size = tuple[int, int, int]
"""Tokens, hidden size, vocabulary."""

COPIES = 9
"""How many (tokens x vocabulary) float32 arrays the naive form needs at its peak, with margin."""

FORMS = {
    "reverse_kl": Divergence(1.0),
    "jsd": Divergence(0.5),
    "jsd_clipped": Divergence(0.5, clip=0.05),
    "jsd_top_100": Divergence(0.5, top_k=100),
}


def main() -> None:
    parser = measure.options(__doc__, repeats=1)
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--vocabulary", type=int, default=151_936)
    parser.add_argument("--chunk", type=int, default=256, help="train.head_chunk_tokens")
    options = measure.parse(parser)
    if options.quick:
        options.tokens, options.hidden, options.vocabulary = 512, 32, 16_384

    size = options.tokens, options.hidden, options.vocabulary
    naive_too = COPIES * 4 * options.tokens * options.vocabulary < psutil.virtual_memory().available
    results: dict[str, list[tuple[float, float]]] = {}
    for _ in range(options.repeats):
        for form in FORMS:
            results.setdefault(form, []).append(alone(fused, size, options.chunk, form))
        if naive_too:
            results.setdefault("naive", []).append(alone(naive, size))
    check_equal((32, *size[1:]), options.chunk)
    naive_runs = results.pop("naive", [])
    cases = {form: case("fused", runs) for form, runs in results.items()}
    if naive_runs:
        cases["reverse_kl"] |= case("naive", naive_runs) | compared(
            naive_runs, results["reverse_kl"]
        )
    else:
        cases["reverse_kl"]["note"] = "naive left out: it does not fit into free memory"
    measure.report(
        "distillation",
        options.repeats,
        **dict(zip(("tokens", "hidden", "vocabulary"), size, strict=True)),
        chunk=options.chunk,
        **cases,
    )


def case(name: str, runs: Sequence[tuple[float, float]]) -> dict[str, Any]:
    seconds, peaks = zip(*runs, strict=True)
    return {f"{name}_seconds": measure.median(seconds), f"{name}_extra_gb": max(peaks)}


def compared(naive_runs: Sequence[Any], fused_runs: Sequence[Any]) -> dict[str, float]:
    """The naive form's time, with the rounds' spread, and memory over castctl's."""
    naive_seconds, naive_peaks = zip(*naive_runs, strict=True)
    seconds, peaks = zip(*fused_runs, strict=True)
    return measure.ratio(naive_seconds, seconds) | {"memory_ratio": max(naive_peaks) / max(peaks)}


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


def naive(size: Size) -> Callable[[], list[Tensor]]:
    """The same with reverse KL by both sides' whole logits, computed again for the gradient."""
    given = Inputs(size)

    def both(states: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        logp = torch.log_softmax(states @ weight.T, dim=-1)
        logq = torch.log_softmax(given.teacher_states @ given.teacher_weight.T, dim=-1)
        divergences = (logp.exp() * (logp - logq)).sum(-1)
        return logp.gather(1, given.targets[:, None])[:, 0], divergences

    def work() -> list[Tensor]:
        logprobs, divergences = checkpoint(both, given.states, given.weight, use_reentrant=False)
        return given.gradients((given.distill * divergences - given.policy * logprobs).sum())

    return work


def check_equal(size: Size, chunk: int) -> None:
    for one, other in zip(fused(size, chunk, "reverse_kl")(), naive(size)(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5 * float(other.abs().max()))


if __name__ == "__main__":
    main()
