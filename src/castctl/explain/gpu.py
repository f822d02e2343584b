"""The GPUs that memory is held against."""

from __future__ import annotations

from dataclasses import dataclass

CONTEXT = 2**30
"""About what CUDA, its libraries and graphs take of a GPU for each process (ours, not measured)."""

COMMON = {"24 GB": 23.6, "40 GB": 39.5, "80 GB": 79.2, "141 GB": 139.8}
"""GiB that CUDA tells of common GPUs."""


@dataclass(frozen=True)
class TrainingFit:
    """Whether training, which takes `needed` bytes at its peak, fits a GPU of `total`."""

    gpu: str
    total: int
    needed: int

    @property
    def fits(self) -> bool:
        return self.needed <= self.total


def gpus(index: int, named: float | None = None) -> list[tuple[str, int]]:
    """Names and bytes: one of `named` GiB, the GPU of that index, or common ones where this machine
    has none."""
    import torch

    if named is not None:
        return [(f"a GPU of {named:g} GiB", int(named * 2**30))]
    if torch.cuda.is_available():
        facts = torch.cuda.get_device_properties(min(index, torch.cuda.device_count() - 1))
        return [(facts.name, facts.total_memory)]
    return [(name, int(size * 2**30)) for name, size in COMMON.items()]
