"""How long a row may get before a model reads all of its tokens otherwise."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any


def context_of(config: Any) -> tuple[int, str]:
    """The longest row in tokens that a model reads as it reads the row's beginning, and why a
    longer one is none, in words that follow the number.

    LongRoPE (`longrope`) has two sets of frequencies, and dynamic NTK (`dynamic`) one for every
    length. The longest row of a batch chooses for all of its rows, and a row that is sampled past
    the boundary keeps the keys of the other set: its log-probs are no function of its tokens. Up
    to the boundary all rows have the first set, whatever stands beside them.
    """
    text = config.get_text_config()
    limit = getattr(text, "max_position_embeddings", None) or sys.maxsize
    why = "positions"
    for rope in _ropes(text):
        kind = str(rope.get("rope_type") or rope.get("type"))
        if kind not in ("longrope", "su") and "dynamic" not in kind:
            continue
        original = rope.get("original_max_position_embeddings")
        original = original or getattr(text, "original_max_position_embeddings", None)
        # Dynamic NTK grows from the model's own context.
        boundary = limit if "dynamic" in kind else int(original or limit)
        if boundary <= limit:
            limit, why = boundary, f"positions, after which its {kind} changes every token of a row"
    return int(limit), why


def _ropes(config: Any) -> Iterator[dict[str, Any]]:
    """The rotary settings of a configuration: one for all layers, or one a kind of layer."""
    for name in ("rope_parameters", "rope_scaling"):
        found = getattr(config, name, None)
        if isinstance(found, dict):
            yield found
            yield from (each for each in found.values() if isinstance(each, dict))
