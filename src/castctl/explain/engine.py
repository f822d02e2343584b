"""How much memory an engine with weights of its own takes, and what a GPU has room for.

Counted as vLLM counts: of its share of a GPU, weights and one pass come first, and the rest is
cache. Not measured on a GPU.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from math import floor

import torch

from castctl.engines.placement import Placement, require_one_gpu_a_rank, share_of_gpu
from castctl.engines.proof import HEAD_TOKENS
from castctl.engines.vllm_launch import CPU_CACHE, room_of
from castctl.engines.vllm_launch import arithmetic as dtype_of
from castctl.explain.footprint import FLOAT32, Arithmetic, on_gpu
from castctl.explain.gpu import CONTEXT, gpus
from castctl.explain.model_shape import ModelShape
from castctl.recipe.recipe import Recipe

PASS_TOKENS = 16384
"""Tokens that vLLM reads in one pass, on a large GPU and on the CPU."""

STEP = 0.05
"""In steps of which a share of a GPU is recommended."""


@dataclass(frozen=True)
class Fit:
    """What one GPU of `total` bytes has room for.

    `training` is its peak, the engine at rest or on another one, and 0 on the CPU; `sampling` what
    the engine takes and training holds beside it; `completions` how many of the longest the cache
    has room for; `most` the largest share that fits, None where it has room for none.
    """

    gpu: str
    total: int
    training: int
    sampling: int
    completions: int
    most: float | None

    @property
    def trains(self) -> bool:
        return self.training <= self.total

    @property
    def samples(self) -> bool:
        return self.sampling <= self.total and self.completions > 0


@dataclass(frozen=True)
class EngineMemory:
    """Bytes that an engine takes on each of its GPUs, or of the host where it is on the CPU.

    `utilization` is its share of a GPU; `completion` the cache of a prompt and completion of
    `longest` tokens together; `beside` what training holds on the same GPU while the engine
    samples; `host` what both need of the host's memory.
    """

    arithmetic: str
    on_gpu: bool
    shares: bool
    utilization: float
    weights: int
    one_pass: int
    longest: int
    completion: int
    beside: int
    host: dict[str, int]
    fits: list[Fit]


def engine_memory(
    recipe: Recipe,
    shape: ModelShape,
    training: Arithmetic,
    held: int,
    together: int,
    gpu_memory: float | None = None,
    ranks: int = 1,
) -> EngineMemory:
    """The memory of a recipe's engine beside training, which holds `held` bytes, peaks at
    `together` and whose passes are in the arithmetic `training`; of `ranks` each has an engine, and
    all share a host."""
    settings, placement = recipe.engine, _placement(recipe)
    if placement.on_gpu:
        require_one_gpu_a_rank(settings, ranks)
    dtype = dtype_of(recipe, placement)
    width = getattr(torch, dtype).itemsize
    trainer = torch.device(_gpu(recipe.model.device))
    shared = (placement.shares(replica, trainer) for replica in range(settings.replicas))
    shares = training.on_gpu and any(shared)
    utilization = share_of_gpu(settings, shares)
    split, size = settings.tensor_parallel_size, shape.parameters * width
    longest = room_of(recipe, shape.context or sys.maxsize)
    kept = 1 if settings.kv_cache_dtype.startswith("fp8") else width
    completion = longest * shape.layers * 2 * shape.keys * kept // split
    weights = size // split
    read = PASS_TOKENS * 3 * (shape.hidden + shape.inner) * width // split
    one_pass = read + 3 * settings.max_num_seqs * shape.vocabulary * FLOAT32
    proof = _cast(shape, training) + 4 * HEAD_TOKENS * shape.vocabulary * FLOAT32
    beside = held + proof if shares else 0

    def completions(share: float, total: int) -> int:
        room = int((share * total - weights - one_pass) // completion)
        return max(0, min(room, settings.max_num_seqs))

    def fit(gpu: str, total: int) -> Fit:
        contexts = CONTEXT * (2 if shares else 1)
        others = beside + contexts
        most = round(floor((total - others) / total / STEP) * STEP, 2)
        fits = most > 0 and completions(most, total) > 0
        return Fit(
            gpu, total,
            training=together + contexts if training.on_gpu else 0,
            sampling=others + int(utilization * total),
            completions=completions(utilization, total),
            most=most if fits else None,
        )  # fmt: skip

    found = gpus(placement.gpus[0][0], gpu_memory) if placement.on_gpu else []
    fits = [fit(*gpu) for gpu in found]
    head = shape.vocabulary * shape.hidden * width
    handed = 2 * size + head if shape.adapter is None else shape.adapter * FLOAT32
    host = {
        "weights on their way to the engine": handed,
        "the scorer of castctl rollout and eval": shape.parameters * FLOAT32,
    }
    if not placement.on_gpu:
        cache = int(float(os.environ.get(CPU_CACHE, 1)) * 2**30)
        host |= {"the engine": settings.replicas * (weights + one_pass + cache)}
    elif shares:
        host |= {"weights of the resting engine": settings.replicas * size}
    host = {part: ranks * size for part, size in host.items()}
    return EngineMemory(
        dtype, placement.on_gpu, shares, utilization, weights, one_pass, longest, completion,
        beside, host, fits,
    )  # fmt: skip


def _cast(shape: ModelShape, arithmetic: Arithmetic) -> int:
    """The weights once more in the arithmetic of a pass, where autocast makes them."""
    return shape.parameters * arithmetic.width if arithmetic.width < FLOAT32 else 0


def _gpu(device: str) -> str:
    """A device's full name."""
    return "cuda:0" if device in ("auto", "cuda") else device


def _placement(recipe: Recipe) -> Placement:
    """Where the engine will be, whether this machine has these GPUs or not."""
    settings, device = recipe.engine, recipe.engine.device or recipe.model.device
    if not on_gpu(device):
        return Placement.on_cpu(settings.replicas)
    return Placement.from_gpu(torch.device(_gpu(device)).index, settings)
