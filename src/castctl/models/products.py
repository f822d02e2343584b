"""Matrix products of float32 on a CPU, by oneDNN where torch's own are slow.

Torch takes them from MKL, which uses AVX-512 on Intel's CPUs alone; oneDNN, which torch brings too,
uses it on others. There it is about twice as fast (`benchmarks/products.py`), and as exact.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

SMALLEST = 2**21
"""Multiply-adds below which oneDNN's start costs more than it saves."""
CPUINFO = Path("/proc/cpuinfo")


def linear(rows: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`rows` (..., K) times `weight` (N, K) transposed, plus `bias` (N): (..., N), for autograd."""
    if not _served(rows, weight, bias):
        return torch.nn.functional.linear(rows, weight, bias)
    flat = rows.reshape(-1, rows.shape[-1])
    if torch.is_grad_enabled() and (rows.requires_grad or weight.requires_grad):
        product: Tensor = _Product.apply(flat, weight)
    else:
        product = _product(flat, weight)
    if bias is not None:
        product = product + bias
    return product.view(*rows.shape[:-1], -1)


def linear_into(buffer: Callable[[], Tensor], rows: Tensor, weight: Tensor) -> Tensor:
    """`linear` of `rows` (n, K) without a gradient, into the buffer (n, N) that is made for it; or
    in memory of its own, where oneDNN computes it."""
    if _served(rows, weight, None):
        return _product(rows, weight)
    return torch.mm(rows, weight.T, out=buffer())


class Linear(torch.nn.Linear):
    """A linear layer by `linear`, with everything else torch's."""

    def forward(self, input: Tensor) -> Tensor:
        """The layer's output (..., N) of `input` (..., K)."""
        return linear(input, self.weight, self.bias)


def speed_up(model: torch.nn.Module) -> None:
    """Have the linear layers of a model compute by `linear`, where that is faster."""
    if is_faster():
        for module in model.modules():
            if type(module) is torch.nn.Linear:
                module.__class__ = Linear


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows_MK: Tensor, weight_NK: Tensor) -> Tensor:
        ctx.save_for_backward(rows_MK, weight_NK)
        return _product(rows_MK, weight_NK)

    @staticmethod
    def backward(ctx: Any, grad_MN: Tensor) -> tuple[Tensor | None, Tensor | None]:
        rows_MK, weight_NK = ctx.saved_tensors
        by_rows = linear(grad_MN, weight_NK.T) if ctx.needs_input_grad[0] else None
        by_weight = linear(grad_MN.T, rows_MK.T) if ctx.needs_input_grad[1] else None
        return by_rows, by_weight


def _served(rows: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether oneDNN computes this product: one of plain float32 tensors on the CPU that is large
    enough, outside autocast."""
    return (
        rows.numel() * weight.shape[0] >= SMALLEST
        and rows.dtype == weight.dtype == torch.float32
        and rows.device.type == weight.device.type == "cpu"
        and type(rows) in PLAIN and type(weight) in PLAIN and (bias is None or type(bias) in PLAIN)
        and not torch.is_autocast_enabled("cpu")
        and is_faster()
    )  # fmt: skip


PLAIN = (Tensor, torch.nn.Parameter)
"""Tensors of other classes know other products: a share of several ranks, a traced one."""


def _product(rows_MK: Tensor, weight_NK: Tensor) -> Tensor:
    product: Tensor = torch.ops.mkldnn._linear_pointwise(rows_MK, weight_NK, None, "none", [], "")
    return product


@cache
def is_faster() -> bool:
    """Whether torch's products are MKL's on a CPU that is not Intel's, and oneDNN's are right."""
    if not (torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()):
        return False
    if not CPUINFO.is_file() or "GenuineIntel" in CPUINFO.read_text():
        return False
    numbers = torch.Generator().manual_seed(0)
    rows, weight = (torch.randn(64, 64, generator=numbers) for _ in range(2))
    try:  # no name in torch begins with an underscore and is promised
        return torch.allclose(_product(rows, weight.T), rows @ weight, rtol=1e-4, atol=1e-4)
    except (AttributeError, RuntimeError, TypeError):
        return False
