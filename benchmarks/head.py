"""Time and peak memory of the chunked output head with its gradient, against the whole logits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import measure
import psutil
import torch
from torch import Tensor

from castctl.models.head import OutputHead, fused_loss

COPIES = 4
"""How many (tokens x vocabulary) float32 arrays the naive form needs at its peak, with margin."""


def main() -> None:
    parser = measure.options(__doc__, repeats=3)
    parser.add_argument("--tokens", type=int, nargs="+", default=[1024, 4096])
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--vocabulary", type=int, default=151_936)
    parser.add_argument("--chunk", type=int, default=256, help="train.head_chunk_tokens")
    options = measure.parse(parser)
    if options.quick:
        options.tokens, options.hidden, options.vocabulary = [256], 32, 4096

    sizes = {tokens: (tokens, options.hidden, options.vocabulary) for tokens in options.tokens}
    peaks = {tokens: peak_memory(size, options.chunk) for tokens, size in sizes.items()}
    cases = []
    for tokens, size in sizes.items():
        works = {"fused": fused(*size, options.chunk)}
        if fits(size):
            works["naive"] = naive(*size)
            check_equal(works)
        seconds = measure.interleaved(
            {name: measure.timed(work) for name, work in works.items()}, options.repeats
        )
        case = {"tokens": tokens, "fused_seconds": measure.median(seconds["fused"])}
        if "naive" in seconds:
            case["naive_seconds"] = measure.median(seconds["naive"])
            case |= measure.ratio(seconds["naive"], seconds["fused"])
        cases.append(case | peaks[tokens])
    measure.report(
        "head",
        options.repeats,
        hidden=options.hidden,
        vocabulary=options.vocabulary,
        chunk=options.chunk,
        cases=cases,
    )


def peak_memory(size: tuple[int, int, int], chunk: int) -> dict[str, Any]:
    """GiB above the inputs, each form in a process of its own; a note where naive cannot fit."""
    peaks: dict[str, Any] = {"fused_extra_gb": measure.peak_extra_gb(fused, *size, chunk)}
    if fits(size):
        peaks["naive_extra_gb"] = measure.peak_extra_gb(naive, *size)
    else:
        peaks["note"] = "naive left out: its logits do not fit into free memory"
    return peaks


def fits(size: tuple[int, int, int]) -> bool:
    tokens, _, vocabulary = size
    return COPIES * 4 * tokens * vocabulary < psutil.virtual_memory().available


def inputs(tokens: int, hidden: int, vocabulary: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Hidden states, weight, targets, and each token's share of the loss."""
    torch.manual_seed(0)
    return (
        torch.randn(tokens, hidden, requires_grad=True),
        torch.nn.Parameter(torch.randn(vocabulary, hidden) / hidden**0.5),
        torch.randint(0, vocabulary, (tokens,)),
        torch.randn(tokens) / tokens,
    )


def fused(tokens: int, hidden: int, vocabulary: int, chunk: int) -> Callable[[], list[Tensor]]:
    """castctl's head: the gradients of hidden states and weight."""
    states, weight, targets, shares = inputs(tokens, hidden, vocabulary)
    head = OutputHead(weight, None, None, temperature=1.0, chunk_tokens=chunk)

    def work() -> list[Tensor]:
        loss, *_ = fused_loss(
            head, states, targets, lambda part, logprobs, *_: -shares[part] * logprobs
        )
        return list(torch.autograd.grad(loss, (states, weight)))

    return work


def naive(tokens: int, hidden: int, vocabulary: int) -> Callable[[], list[Tensor]]:
    """The same by all logits, log_softmax and autograd."""
    states, weight, targets, shares = inputs(tokens, hidden, vocabulary)

    def work() -> list[Tensor]:
        logprobs = torch.log_softmax(states @ weight.T, dim=-1).gather(1, targets[:, None])[:, 0]
        return list(torch.autograd.grad(-(shares * logprobs).sum(), (states, weight)))

    return work


def check_equal(works: dict[str, Callable[[], list[Tensor]]]) -> None:
    for one, other in zip(works["fused"](), works["naive"](), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5 * float(other.abs().max()))


if __name__ == "__main__":
    main()
