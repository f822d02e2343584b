"""CPU time of torch's matrix products over those that a model takes, without and with gradients."""

from __future__ import annotations

import time
from collections.abc import Callable

import measure
import torch
from torch import Tensor

from castctl.models import products

SIZES = {
    "layer": (2048, 256, 768),
    "head": (256, 256, 151_936),
    "decoding": (32, 256, 151_936),
    "small": (32, 64, 64),
}
"""Rows, width and outputs of a product."""

Multiply = Callable[[Tensor, Tensor], Tensor]


def main() -> None:
    parser = measure.options(__doc__, repeats=7)
    options = measure.parse(parser)
    sizes = {"layer": (256, 128, 256)} if options.quick else SIZES
    cases = {}
    for name, (rows, width, outputs) in sizes.items():
        torch.manual_seed(0)
        given = torch.randn(rows, width), torch.randn(outputs, width)
        times = max(1, 2**31 // (rows * width * outputs))
        for backward in (False, True):
            works = {
                "torch": repeated(torch.nn.functional.linear, *given, times, backward),
                "castctl": repeated(products.linear, *given, times, backward),
            }
            seconds = measure.interleaved(works, options.repeats)
            flops = (6 if backward else 2) * rows * width * outputs * times
            cases[f"{name}_with_backward" if backward else name] = {
                **measure.ratio(seconds["torch"], seconds["castctl"]),
                "castctl_gflops": flops / measure.median(seconds["castctl"]) / 1e9,
            }
    measure.report("products", options.repeats, by_onednn=products.is_faster(), **cases)


def repeated(
    multiply: Multiply, rows: Tensor, weight: Tensor, times: int, backward: bool
) -> measure.Timed:
    """CPU seconds of so many products, and their gradients."""
    rows, weight = (each.clone().requires_grad_(backward) for each in (rows, weight))

    def run() -> float:
        began = time.process_time()
        for _ in range(times):
            product = multiply(rows, weight)
            if backward:
                torch.autograd.grad(product, (rows, weight), product.detach())
        return time.process_time() - began

    return run


if __name__ == "__main__":
    main()
