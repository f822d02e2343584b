"""Bytes that passes through a decoder take, from its sizes.

Counted for decoders with gated feed-forward layers and normalised queries and keys (Qwen3), and
checked against what autograd saves; other architectures vary.
"""

from __future__ import annotations

from dataclasses import dataclass

from castctl.explain.model_shape import ModelShape

FLOAT32 = 4
"""Weights, gradients, moments, the residual stream, norms, rotations and logits are float32."""


@dataclass(frozen=True)
class Arithmetic:
    """Where passes run, and in how many bytes a number."""

    on_gpu: bool
    width: int

    @property
    def name(self) -> str:
        return "float32" if self.width == FLOAT32 else "bfloat16"


@dataclass(frozen=True)
class PackedSize:
    """A packed batch: its input tokens, its completions, and how long a prompt and each is."""

    tokens: int
    rows: int
    prompt: int
    completion: int


def on_gpu(device: str) -> bool:
    """Whether a device as settings name it is a GPU, on this machine where it is `auto`."""
    import torch

    return device.startswith("cuda") or (device == "auto" and torch.cuda.is_available())


def activation_bytes(
    shape: ModelShape, arithmetic: Arithmetic, batch: PackedSize, checkpointing: bool
) -> int:
    """What a forward pass keeps for its backward pass."""
    layer = _layer_bytes(shape, arithmetic, batch)
    ends = 3 * batch.tokens * shape.hidden * FLOAT32  # embeddings and the last norm
    if checkpointing:  # every layer's input, and one layer at a time
        return shape.layers * batch.tokens * shape.hidden * FLOAT32 + layer + ends
    return shape.layers * layer + ends


def pass_bytes(shape: ModelShape, arithmetic: Arithmetic, batch: PackedSize) -> int:
    """What is alive at once of a forward pass alone: measured, half of what one layer keeps."""
    return _layer_bytes(shape, arithmetic, batch) // 2


def cache_bytes(shape: ModelShape, arithmetic: Arithmetic, tokens: int) -> int:
    """Keys and values of all layers, as castctl's loop holds them."""
    return tokens * shape.layers * shape.keys * 2 * arithmetic.width


def _layer_bytes(shape: ModelShape, arithmetic: Arithmetic, batch: PackedSize) -> int:
    """What one decoder layer keeps of a batch for the backward pass."""
    width = arithmetic.width
    inputs = 2 if width == FLOAT32 else 5  # a cast to bfloat16 is made for each matrix anew
    wide = 4 * shape.hidden + 2 * shape.queries + 2 * shape.keys
    narrow = inputs * shape.hidden + 5 * shape.queries + 4 * shape.inner
    # Each completion's keys and values stand behind a copy of its prompt's, on a GPU for each head.
    copied = shape.queries if arithmetic.on_gpu else shape.keys
    row = (batch.prompt + batch.completion) * 2 * copied
    if not arithmetic.on_gpu:  # where the causal mask behind a prompt is dense
        row += batch.completion * (batch.prompt + batch.completion)
    return batch.tokens * (wide * FLOAT32 + narrow * width) + batch.rows * row * width
