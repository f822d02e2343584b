"""Many tensors handled as a few large ones, in place."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def in_buckets(tensors: Sequence[Tensor], size: int, change: Callable[[Tensor], None]) -> None:
    """Let `change` change all of them, `size` bytes at once in a flat tensor (N) of one dtype."""
    import torch

    for bucket in _buckets(tensors, size):
        if len(bucket) == 1 and bucket[0].is_contiguous():
            change(bucket[0])
            continue
        flat = torch.cat([tensor.reshape(-1) for tensor in bucket])
        change(flat)
        for tensor, changed in zip(bucket, flat.split([t.numel() for t in bucket]), strict=True):
            tensor.copy_(changed.view_as(tensor))


def _buckets(tensors: Iterable[Tensor], most: int) -> Iterator[list[Tensor]]:
    """Tensors of one dtype together, in their order."""
    bucket: list[Tensor] = []
    size = 0
    for tensor in tensors:
        full = size + tensor.nbytes > most
        if bucket and (full or tensor.dtype != bucket[0].dtype):
            yield bucket
            bucket, size = [], 0
        bucket.append(tensor)
        size += tensor.nbytes
    if bucket:
        yield bucket
