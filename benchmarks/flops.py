"""Floating-point operations of a model's passes, and how many a second a GPU has.

Counted as the PaLM paper does (arXiv 2204.02311, appendix B): a token costs 2N for the forward pass
and 4N for the backward pass, and its attention 12 L H Q T for both, L layers of H heads of size Q
over T tokens. N are the weights of the matrices, the output head among them; looking up an
embedding costs nothing. Three things are counted more closely here:

- T is the tokens that a token sees, itself and those before it, where the paper takes a row's
  length: about half of it.
- The output head, 2VH forward and 4VH backward, counts at the tokens that it predicts alone, and a
  prompt that completions share counts once: what castctl computes.
- A frozen matrix has no gradient of its own: 2N backward. That is each but an adapter's factors,
  where an adapter trains.

Norms, rotations, the softmax and the optimizer are left out, as in the paper. Activations that are
computed again do not count either, so that a utilisation tells of the work and not of how it is
done.
"""

from __future__ import annotations

from castctl.explain.model_shape import ModelShape
from castctl.models.packing import PackedBatch

PEAKS = {
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H200 NVL": 835e12,
    "H100": 989e12,
    "H200": 989e12,
    "A100": 312e12,
    "B200": 2250e12,
}
"""FLOP/s in bfloat16 without sparsity, by what stands in a GPU's name, the narrower names first
(NVIDIA's data sheets, which tell of H100, H200 and B200 with sparsity, twice as much)."""


def pass_flops(shape: ModelShape, batch: PackedBatch, trains: bool) -> int:
    """FLOPs of a forward pass over a packed batch and, where it `trains`, of the backward pass. All
    layers see all that came before."""
    inputs, predicted = len(batch.input_ids_L), len(batch.targets_N)
    seen = int((batch.position_ids_L + 1).sum())
    matrices = 2 * inputs * shape.linear + 2 * predicted * shape.vocabulary * shape.hidden
    factors = 2 * inputs * (shape.adapter or 0)
    attention = 4 * shape.layers * shape.queries * seen
    if not trains:
        return matrices + factors + attention
    return (3 if shape.adapter is None else 2) * matrices + 3 * (factors + attention)


def peak_of(device: str) -> float | None:
    """FLOP/s of a device by its name; None for one that is not listed."""
    return next((peak for name, peak in PEAKS.items() if name in device), None)
