"""Attention over a packed batch, registered with transformers under `castctl_packed`.

Without `segments` it is transformers' own SDPA attention, which the decode loop uses.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.bias import causal_lower_right
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from castctl.models.packing import Prefix, Segment

NAME = "castctl_packed"


def packed_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    segments: tuple[Segment, ...] | None = None,
    sliding_window: int | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Attention output (1, L, heads, head size) of queries (1, heads, L, head size).

    Keys and values have (1, key-value heads, L, head size). Each segment is one SDPA call
    over its prefix and itself: on the CPU 1.2 to 1.8 times faster, forward and backward, than
    padding a group's completions, and without work on padding.
    """
    if segments is None:
        return sdpa_attention_forward(
            module,
            query,
            key,
            value,
            attention_mask,
            scaling=scaling,
            sliding_window=sliding_window,
            **options,
        )
    # Under autocast, norms and rotations leave queries and keys in float32.
    query, key = query.to(value.dtype), key.to(value.dtype)
    repeats = query.shape[1] // key.shape[1]
    key, value = (x.repeat_interleave(repeats, dim=1) for x in (key, value))
    lengths = [segment.length for segment in segments]
    # One split has one cheap backward; a slice a segment would fill the whole row with zeros each.
    queries, keys, values = (x.split(lengths, dim=2) for x in (query, key, value))
    outputs = []
    for q, k, v, segment in zip(queries, keys, values, segments, strict=True):
        if segment.prefix:
            k = torch.cat([*_pieces(keys, segment.prefix), k], dim=2)
            v = torch.cat([*_pieces(values, segment.prefix), v], dim=2)
        mask = _causal_mask(q.shape[2], k.shape[2], sliding_window, q.device)
        outputs.append(scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scaling))
    return torch.cat(outputs, dim=2).transpose(1, 2).contiguous(), None


def _pieces(states: Sequence[Tensor], prefix: Prefix) -> Iterator[Tensor]:
    """The prefix's keys or values, each (1, heads, count, head size)."""
    for number, count in prefix:
        whole = states[number]
        # A slice would cost a backward step of its own.
        yield whole if count == whole.shape[2] else whole[:, :, :count]


def _causal_mask(queries: int, keys: int, window: int | None, device: torch.device) -> Tensor:
    if window is None or keys <= window:
        return causal_lower_right(queries, keys)
    distance = torch.arange(keys - queries, keys, device=device)[:, None] - torch.arange(
        keys, device=device
    )
    return (distance >= 0) & (distance < window)


AttentionInterface.register(NAME, packed_attention)
AttentionMaskInterface.register(NAME, sdpa_mask)
