"""Attention over a packed batch, registered with transformers under `castctl_packed`.

Inside `packing`, every mask that a model asks transformers for is a `PackedMask`: which segments
there are, and which earlier tokens a layer of that kind sees. So a window reaches the attention
however the model's layers pass it on, and a layer that gets no mask is refused. Outside of it
the decode loop gets transformers' own SDPA attention.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.bias import causal_lower_right
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import causal_mask_function, sdpa_mask

from castctl.models.packing import Prefix, Segment

NAME = "castctl_packed"

Sees = Callable[[Any, Any, Any, Any], Any]
"""(batch, head, query position, key position) -> whether the query sees the key."""

CAUSAL: Sees = causal_mask_function

_segments: ContextVar[tuple[Segment, ...] | None] = ContextVar("segments", default=None)


@dataclass(frozen=True)
class PackedMask:
    """Who attends to whom in the layers of one kind; without a `window` all that came before."""

    segments: tuple[Segment, ...]
    window: int | None
    sees: Sees

    def is_local(self, keys: int) -> bool:
        """Whether the last of so many tokens does not see all of them."""
        return self.window is not None and keys > self.window


@contextlib.contextmanager
def packing(segments: tuple[Segment, ...]) -> Iterator[None]:
    """Inside, the one row of a forward pass is made of these segments."""
    token = _segments.set(segments)
    try:
        yield
    finally:
        _segments.reset(token)


def packed_mask(
    *,
    mask_function: Sees = CAUSAL,
    local_size: int | None = None,
    allow_is_causal_skip: bool = True,
    **options: Any,
) -> Tensor | PackedMask | None:
    """What transformers hands to the layers of one kind as their mask.

    Raises `ValueError` for a packed row of a model that wants more than causal and local masks.
    """
    segments = _segments.get()
    if segments is None:
        return sdpa_mask(
            mask_function=mask_function,
            local_size=local_size,
            allow_is_causal_skip=allow_is_causal_skip,
            **options,
        )
    if not allow_is_causal_skip:
        raise ValueError("it makes attention masks of its own")
    return PackedMask(segments, local_size, mask_function)


def packed_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | PackedMask | None,
    *,
    scaling: float | None = None,
    softcap: float | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Attention output (batch, L, heads, head size) of queries (batch, heads, L, head size).

    Keys and values have (batch, key-value heads, L, head size). Each segment is one SDPA call
    over its prefix and itself: on the CPU 1.2 to 1.8 times faster, forward and backward, than
    padding a group's completions, and without work on padding. A `softcap` c makes scores s
    c tanh(s / c), as Gemma 2 has it, in plain operations: SDPA knows none.
    """
    if not isinstance(attention_mask, PackedMask):
        if _segments.get() is not None:
            raise ValueError("its attention ignores the packing")
        if softcap is not None:
            key, value = _repeated(query, key, value)
            mask = attention_mask
            if mask is None:
                mask = _seen(CAUSAL, query.shape[2], key.shape[2], query.device)
            return _capped(query, key, value, mask, scaling, softcap).transpose(1, 2), None
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, **options
        )
    # Under autocast, norms and rotations leave queries and keys in float32.
    query, key = query.to(value.dtype), key.to(value.dtype)
    grouped = softcap is None and query.device.type == "cpu"
    if not grouped:  # on a GPU, SDPA's kernels under a mask know no groups
        key, value = _repeated(query, key, value)
    segments = attention_mask.segments
    queries = query.split([segment.length for segment in segments], dim=2)
    outputs = []
    for q, ks, vs in zip(queries, seen(key, segments), seen(value, segments), strict=True):
        k, v = (x[0] if len(x) == 1 else torch.cat(x, dim=2) for x in (ks, vs))
        sizes = q.shape[2], k.shape[2]
        local = attention_mask.is_local(sizes[1])
        sees = attention_mask.sees if local else CAUSAL
        if softcap is not None:
            mask = _seen(sees, *sizes, q.device)
            outputs.append(_capped(q, k, v, mask, scaling, softcap))
        else:
            mask = _seen(sees, *sizes, q.device) if local else causal_lower_right(*sizes)
            outputs.append(
                scaled_dot_product_attention(
                    q, k, v, attn_mask=mask, scale=scaling, enable_gqa=grouped
                )
            )
    return torch.cat(outputs, dim=2).transpose(1, 2).contiguous(), None


def seen(states: Tensor, segments: Sequence[Segment]) -> Iterator[list[Tensor]]:
    """For each segment the keys or values that its tokens may see, prefix first, in pieces
    (1, heads, count, head size) of a row's (1, heads, L, head size)."""
    # One split has one cheap backward; a slice a segment would fill the whole row with zeros each.
    own = states.split([segment.length for segment in segments], dim=2)
    for segment, last in zip(segments, own, strict=True):
        yield [*_pieces(own, segment.prefix), last]


def _repeated(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """Keys and values with a head for each of the query's."""
    repeats = query.shape[1] // key.shape[1]
    return key.repeat_interleave(repeats, dim=1), value.repeat_interleave(repeats, dim=1)


def _pieces(states: Sequence[Tensor], prefix: Prefix) -> Iterator[Tensor]:
    """The prefix's keys or values, each (1, heads, count, head size)."""
    for number, count in prefix:
        whole = states[number]
        # A slice would cost a backward step of its own.
        yield whole if count == whole.shape[2] else whole[:, :, :count]


def _seen(sees: Sees, queries: int, keys: int, device: torch.device) -> Tensor:
    """Which keys (queries, keys, bool) each of the last `queries` tokens sees."""
    of_query = torch.arange(keys - queries, keys, device=device)[:, None]
    of_key = torch.arange(keys, device=device)[None]
    first = torch.zeros((), dtype=torch.long, device=device)
    return sees(first, first, of_query, of_key)


def _capped(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scaling: float | None, softcap: float
) -> Tensor:
    """Soft-capped attention (batch, heads, queries, head size); the softmax is float32 at least."""
    scores = query @ key.transpose(2, 3) * (scaling or query.shape[3] ** -0.5)
    scores = softcap * (scores / softcap).tanh()
    # The lowest number and not -inf: rows of padding alone see nothing, and must stay numbers.
    scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    wide = torch.promote_types(scores.dtype, torch.float32)
    return scores.softmax(-1, dtype=wide).to(value.dtype) @ value


AttentionInterface.register(NAME, packed_attention)
AttentionMaskInterface.register(NAME, packed_mask)
