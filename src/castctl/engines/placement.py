"""On which device an engine of its own samples, and what its process is told of it."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch

from castctl.errors import UserError
from castctl.launcher import rank_of
from castctl.models.loading import resolve_device
from castctl.recipe.engine import EngineSettings
from castctl.recipe.model import ModelSettings

ALONE, SHARED = 0.9, 0.3
"""Share of a GPU's memory that the engine takes where nothing else is on it, and beside training
(TRL's default)."""


@dataclass(frozen=True)
class Placement:
    """The GPUs of each replica, by torch's numbers; none of them on the CPU."""

    gpus: tuple[tuple[int, ...], ...]

    @classmethod
    def on_cpu(cls, replicas: int) -> Placement:
        return cls(((),) * replicas)

    @classmethod
    def from_gpu(cls, first: int, engine: EngineSettings) -> Placement:
        """From the GPU `first` on, `tensor_parallel_size` for each replica."""
        size = engine.tensor_parallel_size
        starts = range(first, first + engine.replicas * size, size)
        return cls(tuple(tuple(range(gpu, gpu + size)) for gpu in starts))

    @property
    def on_gpu(self) -> bool:
        return bool(self.gpus[0])

    def shares(self, replica: int, device: torch.device) -> bool:
        """Whether the policy's device is one of a replica's."""
        return device.type == "cuda" and (device.index or 0) in self.gpus[replica]

    def environment(self, replica: int) -> dict[str, str]:
        """Variables that show a replica its GPUs and nothing else."""
        if not self.on_gpu:
            return {}
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
        names = [name.strip() for name in visible.split(",")] if visible else None
        mine = [str(gpu) if names is None else names[gpu] for gpu in self.gpus[replica]]
        return {"CUDA_VISIBLE_DEVICES": ",".join(mine)}


def place(engine: EngineSettings, model: ModelSettings) -> Placement:
    """Where the replicas go.

    Raises `UserError` where there are not as many.
    """
    first = resolve_device(engine.device or model.device)
    size = engine.tensor_parallel_size
    if first.type != "cuda":
        if size > 1:
            raise UserError(
                f"engine.tensor_parallel_size={size} needs as many GPUs, and the engine is on the "
                f"{first.type.upper()}; set it to 1"
            )
        return Placement.on_cpu(engine.replicas)
    require_one_gpu_a_rank(engine, rank_of(os.environ).local)
    start = first.index or 0
    last = start + engine.replicas * size
    if last > torch.cuda.device_count():
        raise UserError(
            f"engine.replicas={engine.replicas} of engine.tensor_parallel_size={size} GPUs from "
            f"cuda:{start} on need {last} GPUs, and there are {torch.cuda.device_count()}; lower "
            "one of them"
        )
    return Placement.from_gpu(start, engine)


def require_one_gpu_a_rank(engine: EngineSettings, ranks: int) -> None:
    """Raise `UserError` where so many ranks of a machine would each have engines on several."""
    if ranks > 1 and engine.replicas * engine.tensor_parallel_size > 1:
        raise UserError(
            "each of several ranks samples with one engine on its own GPU; leave engine.replicas "
            "and engine.tensor_parallel_size out, or train in one process"
        )


def share_of_gpu(engine: EngineSettings, shares: bool) -> float:
    """Of a GPU's memory, what a replica takes that `shares` it with training or does not."""
    return engine.gpu_memory_utilization or (SHARED if shares else ALONE)
