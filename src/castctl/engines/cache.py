"""Keys and values of the decode loop, with room behind them for the next tokens.

transformers' dynamic layers join what they hold and a new token in a new tensor, and so copy the
whole cache for every token. Its static ones take the room of the longest completion from the
start, and attention reads all of it under a mask. These grow by a block, and give attention the
part that is filled.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

BLOCK = 1024
"""Tokens that a layer makes room for at once. It copies its cache once in so many tokens, and holds
room for less than so many that never come; never for more than the longest row."""
SHARE = 8
"""A window's room is this part of it: its layer holds little, and room would be most of that."""


def cache_in_blocks(config: Any, limit: int) -> DynamicCache:
    """An empty cache for a model of this configuration and rows of at most `limit` tokens.

    Layers of kinds that hold no keys and values of their own stay transformers'.
    """
    cache = DynamicCache(config=config)
    cache.layers = [_in_blocks(layer, limit) for layer in cache.layers]
    return cache


def _in_blocks(layer: Any, limit: int) -> Any:
    if type(layer) is DynamicLayer:
        return BlockLayer(limit)
    if type(layer) is DynamicSlidingWindowLayer:
        return SlidingBlockLayer(limit, layer.sliding_window)
    return layer


class _Filled:
    """States (B, heads, tokens, size) inside a tensor with room for more tokens behind them."""

    def __init__(self) -> None:
        self._tensor: Tensor | None = None
        self._first = self._end = 0

    def append(self, states: Tensor, room: int) -> Tensor:
        """What is held, with `states` behind it; a new tensor has `room` tokens more."""
        end = self._end + states.shape[2]
        if self._tensor is None or end > self._tensor.shape[2]:
            kept = self._end - self._first
            shape = list(states.shape)
            shape[2] += kept + room
            tensor = states.new_empty(shape)
            if self._tensor is not None:
                tensor[:, :, :kept] = self.held()
            self._tensor, self._first, self._end = tensor, 0, kept
            end = kept + states.shape[2]
        self._tensor[:, :, self._end : end] = states
        self._end = end
        return self.held()

    def keep(self, tokens: int) -> Tensor:
        """What is held, after all but the last `tokens` of it have been dropped."""
        self._first = max(self._first, self._end - tokens)
        return self.held()

    def select(self, rows: Tensor) -> Tensor:
        """What is held of these rows, and the room behind it."""
        assert self._tensor is not None
        self._tensor = self._tensor[:, :, self._first :][rows]
        self._first, self._end = 0, self._end - self._first
        return self.held()

    def held(self) -> Tensor:
        assert self._tensor is not None
        return self._tensor[:, :, self._first : self._end]


class BlockLayer(DynamicLayer):
    """A layer that attends to everything.

    Under autocast rotations leave keys in float32, where values and attention are in bfloat16.
    Keys are held as attention reads them, which changes no number.
    """

    def __init__(self, limit: int, **options: Any) -> None:
        super().__init__(**options)
        self._limit, self._block = limit, BLOCK
        self._keys, self._values = _Filled(), _Filled()

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **options: Any
    ) -> tuple[Tensor, Tensor]:
        """Keys and values (B, heads, tokens, size) of all tokens that the new ones may see.

        Raises `RuntimeError` where another method than these has changed what is held.
        """
        if self.is_initialized and self.keys is not self._shown:
            raise RuntimeError("a cache in blocks can only grow, and drop rows")
        room = max(0, min(self._block, self._limit - self.get_seq_length() - key_states.shape[2]))
        keys = self._keys.append(key_states.to(value_states.dtype), room)
        values = self._values.append(value_states, room)
        self._show(keys, values, key_states.shape[2])
        return keys, values

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep the rows of these numbers."""
        if self.is_initialized:
            self._show(self._keys.select(indices), self._values.select(indices), 0)

    def _show(self, keys: Tensor, values: Tensor, added: int) -> None:
        """What transformers finds as the layer's, after so many tokens were `added`."""
        self.keys = self._shown = keys
        self.values, self.is_initialized = values, True


class SlidingBlockLayer(BlockLayer, DynamicSlidingWindowLayer):
    """A layer that attends to the last tokens, and holds no others."""

    def __init__(self, limit: int, sliding_window: int) -> None:
        super().__init__(limit, sliding_window=sliding_window)
        self._block = min(BLOCK, max(1, sliding_window // SHARE))

    def _show(self, keys: Tensor, values: Tensor, added: int) -> None:
        self.cumulative_length += added
        before = self.sliding_window - 1
        super()._show(self._keys.keep(before), self._values.keep(before), added)
