"""Attention over a packed batch in one kernel, registered with transformers under
`castctl_packed_fused`.

Where values are in half precision and a layer sees all that came before, it is
`torch.nn.attention.varlen`, one flash kernel over all segments. Soft caps, windows and float32
take flex attention, which computes blocks of the row under a mask and copies no prefix. Both are
for GPUs; the CPU has the SDPA calls of `attention`, which are also what `check_fused` holds the
kernels against.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from functools import cache, lru_cache
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention
from transformers import AttentionInterface, AttentionMaskInterface

from castctl.errors import UserError, one_line
from castctl.models.attention import CAUSAL, PackedMask, packed_attention, packed_mask, seen
from castctl.models.attention import NAME as PACKED
from castctl.models.language_model import LanguageModel
from castctl.models.packing import Segment, pack

NAME = f"{PACKED}_fused"

BLOCK = 128
"""Tokens a side of flex attention's blocks."""
ROWS = 300
"""Tokens of the check's longest row at least: beyond two blocks."""
TOLERANCES = {torch.float32: 1e-5}
"""How far kernels may be off, as a part of the largest number; half precision may 1e-2."""
Kernel = Callable[[Tensor, Tensor, Tensor, PackedMask, float | None, float | None], Tensor]
"""Queries (1, heads, L, head size), keys and values (1, key-value heads, L, head size), the mask,
scaling and soft cap -> attention output (1, L, heads, head size)."""

_checking: ContextVar[bool] = ContextVar("checking", default=False)


class _Off(Exception):
    """How far a kernel is off."""


def fused_attention(
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
    """What `packed_attention` gives, up to rounding, by the kernel for its device and dtype."""
    fused = None
    if isinstance(attention_mask, PackedMask):
        fused = kernel_for(query, value, attention_mask, softcap)
    if fused is None:
        return packed_attention(
            module, query, key, value, attention_mask,
            scaling=scaling, softcap=softcap, **options,
        )  # fmt: skip
    assert isinstance(attention_mask, PackedMask)
    query, key = query.to(value.dtype), key.to(value.dtype)
    output = fused(query, key, value, attention_mask, scaling, softcap)
    if _checking.get():
        _compare(fused, module, (query, key, value), attention_mask, scaling, softcap)
    return output, None


def kernel_for(
    query: Tensor, value: Tensor, mask: PackedMask, softcap: float | None
) -> Kernel | None:
    """The kernel of one layer; None for SDPA."""
    if value.device.type != "cuda":
        return None
    longest = max(segment.length + _before(segment) for segment in mask.segments)
    plain = softcap is None and not mask.is_local(longest)
    size = query.shape[3]
    flash = value.dtype in (torch.bfloat16, torch.float16) and size == value.shape[3]
    return varlen if plain and flash and size % 8 == 0 and size <= 256 else flex


def varlen(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: PackedMask,
    scaling: float | None,
    softcap: float | None,
) -> Tensor:
    """Flash attention over segments of different lengths, each behind a copy of its prefix."""
    from torch.nn.attention.varlen import varlen_attn

    assert softcap is None
    own, whole, longest_own, longest_whole = _bounds(mask.segments, query.device)
    keys, values = (
        torch.cat([piece for pieces in seen(x, mask.segments) for piece in pieces], dim=2)
        for x in (key, value)
    )
    q, k, v = (x[0].transpose(0, 1) for x in (query, keys, values))
    output: Any = varlen_attn(
        q,
        k,
        v,
        own,
        whole,
        longest_own,
        longest_whole,
        scale=scaling,
        window_size=(-1, 0),  # causal, the last query beside the last key
        enable_gqa=query.shape[1] != key.shape[1],
        num_splits=1,  # else a neighbour's length would choose how a row is summed
    )
    return output[None]


def flex(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: PackedMask,
    scaling: float | None,
    softcap: float | None,
) -> Tensor:
    """Flex attention over the row as it is, under a mask of its segments."""
    run = flex_attention if query.device.type == "cpu" else _compiled()
    output: Any = run(
        query,
        key,
        value,
        score_mod=None if softcap is None else _cap(softcap),
        block_mask=block_mask(mask, query.device),
        scale=scaling,
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return output.transpose(1, 2).contiguous()


def _cap(softcap: float) -> Callable[..., Tensor]:
    def capped(score: Tensor, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return softcap * torch.tanh(score / softcap)

    return capped


@cache
def _compiled() -> Any:
    return torch.compile(flex_attention, dynamic=True)


@lru_cache(maxsize=4)
def _bounds(segments: tuple[Segment, ...], device: torch.device) -> tuple[Tensor, Tensor, int, int]:
    """Where each segment's queries, and the keys it sees, begin and end (S + 1, int32), and the
    longest of either."""
    own = [segment.length for segment in segments]
    whole = [segment.length + _before(segment) for segment in segments]
    of_own, of_whole = (
        torch.tensor(list(accumulate(x, initial=0)), dtype=torch.int32, device=device)
        for x in (own, whole)
    )
    return of_own, of_whole, max(own), max(whole)


@lru_cache(maxsize=4)  # all layers of one kind share theirs
def block_mask(mask: PackedMask, device: torch.device) -> BlockMask:
    """A packed row's mask, and which blocks of it (queries, keys) flex attention can leave out or
    take whole. The (L, L) mask itself is never made.

    Raises `ValueError` where a prefix has two pieces of one segment.
    """
    lengths = np.array([segment.length for segment in mask.segments])
    size = len(lengths)
    count, offset = np.zeros((size, size), np.int64), np.zeros((size, size), np.int64)
    for number, segment in enumerate(mask.segments):
        before = 0
        for other, tokens in (*segment.prefix, (number, segment.length)):
            if count[number, other]:
                raise ValueError("two pieces of one segment in a prefix")
            count[number, other], offset[number, other] = tokens, before
            before += tokens
    segment_L = np.repeat(np.arange(size), lengths)
    index_L = np.concatenate([np.arange(length) for length in lengths])

    blocks = -(-len(segment_L) // BLOCK)
    holds = np.zeros((blocks, size), np.int64)
    holds[np.arange(len(segment_L)) // BLOCK, segment_L] = 1
    some = np.tril(holds @ (count > 0) @ holds.T > 0)  # a prefix stands before what sees it
    hidden = holds @ (count < lengths) @ holds.T > 0
    full = np.tril(~hidden, -1) & (mask.window is None)
    full[-1] &= len(segment_L) % BLOCK == 0  # what the row does not fill is masked
    tables = [torch.from_numpy(x).to(device) for x in (segment_L, index_L, count, offset)]
    return BlockMask.from_kv_blocks(
        *_listed(some & ~full, device),
        *_listed(full, device),
        BLOCK_SIZE=BLOCK,
        mask_mod=_visible(mask, *tables),
        seq_lengths=(len(segment_L), len(segment_L)),
    )


def _visible(
    mask: PackedMask, segment_L: Tensor, index_L: Tensor, count_SS: Tensor, offset_SS: Tensor
) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
    """Whether a query sees a key, by their places in the packed row."""
    sees = CAUSAL if mask.window is None else mask.sees

    def visible(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        of_q, of_k = segment_L[q], segment_L[k]
        at_q = offset_SS[of_q, of_q] + index_L[q]
        at_k = offset_SS[of_q, of_k] + index_L[k]
        seen_here: Tensor = (index_L[k] < count_SS[of_q, of_k]) & sees(b, h, at_q, at_k)
        return seen_here

    return visible


def _listed(blocks: np.ndarray, device: torch.device) -> tuple[Tensor, Tensor]:
    """How many blocks each row has, and their numbers first, as flex attention wants them."""
    chosen = torch.from_numpy(blocks).to(device)
    numbers = torch.argsort(chosen.int(), dim=1, descending=True, stable=True).int()
    return chosen.sum(1, dtype=torch.int32)[None, None], numbers[None, None].contiguous()


def _before(segment: Segment) -> int:
    return sum(count for _, count in segment.prefix)


def check_fused(model: LanguageModel) -> None:
    """Raise `UserError` unless the kernels give what SDPA does in every layer of a model on its
    own device and in its own dtype: forward and backward, behind shared prompts, past the window.
    """
    rng = np.random.default_rng(0)
    window = getattr(model.model.config, "sliding_window", None) or 0
    longest = min(model.context_tokens, max(ROWS, window + BLOCK))
    prompt, other = rng.integers(1, model.vocabulary, (2, min(70, longest // 2)))
    lengths = [5, longest - len(prompt), min(BLOCK + 3, longest - len(prompt)), 1]
    rows = [rng.integers(1, model.vocabulary, length) for length in lengths]
    batch = pack([other, prompt, prompt, prompt], rows)
    try:
        with torch.no_grad(), _check():
            model.hidden_states(batch)
    except Exception as error:  # kernels and their compilers raise many kinds
        reason = str(error) if isinstance(error, _Off) else one_line(error, 200, named=True)
        raise UserError(
            f"model.attention=fused fails its check against SDPA ({reason}); "
            "set model.attention=segments"
        ) from None


@contextlib.contextmanager
def _check() -> Iterator[None]:
    token = _checking.set(True)
    try:
        yield
    finally:
        _checking.reset(token)


def _compare(
    fused: Kernel,
    module: Any,
    states: tuple[Tensor, Tensor, Tensor],
    mask: PackedMask,
    scaling: float | None,
    softcap: float | None,
) -> None:
    """Raise `_Off` where a layer's output or gradients are others than SDPA's in float32."""
    device, dtype = states[0].device, states[0].dtype

    def results(run: Kernel, wide: bool) -> list[Tensor]:
        leaves = [x.detach().to(torch.float32 if wide else dtype).requires_grad_() for x in states]
        output = run(leaves[0], leaves[1], leaves[2], mask, scaling, softcap)
        direction = torch.randn(output.shape, generator=torch.Generator().manual_seed(0))
        gradients = torch.autograd.grad(output, leaves, direction.to(output))
        return [output.detach(), *gradients]

    def segments(
        q: Tensor, k: Tensor, v: Tensor, m: PackedMask, s: float | None, c: float | None
    ) -> Tensor:
        return packed_attention(module, q, k, v, m, scaling=s, softcap=c)[0]

    with torch.enable_grad(), torch.autocast(device.type, enabled=False):
        pairs = list(zip(results(fused, False), results(segments, True), strict=True))
    for name, (found, expected) in zip(("output", "dQ", "dK", "dV"), pairs, strict=True):
        off = float((found.float() - expected).abs().max() / expected.abs().max())
        if not off <= TOLERANCES.get(dtype, 1e-2):
            raise _Off(f"{name} is {off:.1g} of its size off in layer {module.layer_idx}")


AttentionInterface.register(NAME, fused_attention)
AttentionMaskInterface.register(NAME, packed_mask)
