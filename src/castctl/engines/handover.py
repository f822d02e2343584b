"""A policy's weights on their way to an engine that holds a copy: through a folder in memory."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import torch

from castctl.launcher import rank_of
from castctl.models.policy import Policy
from castctl.shards.drafts import drafted_folder

log = logging.getLogger(__name__)

MEMORY = Path("/dev/shm")
"""A file system in memory."""

SPARE = 2
"""It is used where it has room for so many times the weights."""


@contextlib.contextmanager
def exported(policy: Policy, dtype: torch.dtype, beside: Path) -> Iterator[Path]:
    """A folder with what moves of the weights, in `dtype`, for an engine that runs the model."""
    with _folder(policy, dtype, beside) as folder:
        policy.export(folder, dtype)
        yield folder


@contextlib.contextmanager
def saved(policy: Policy, beside: Path) -> Iterator[Path]:
    """A folder with the whole model, for an engine that starts."""
    with _folder(policy, torch.float32, beside) as folder:
        policy.save(folder)
        yield folder


@contextlib.contextmanager
def _folder(policy: Policy, dtype: torch.dtype, beside: Path) -> Iterator[Path]:
    """A folder for weights in `dtype`, in memory if they fit and else in the folder `beside`.

    It is new each time, so that nothing that was read from it before is taken for it; it goes
    afterwards, and with the next one where this process is killed.
    """
    size = sum(parameter.numel() for _, parameter in policy.moved()) * dtype.itemsize
    wanted = SPARE * size * rank_of(os.environ).local  # all ranks of a machine may do so at once
    roomy = MEMORY.is_dir() and shutil.disk_usage(MEMORY).free > wanted
    if not roomy:
        log.warning(
            "%s has no room for the weights: they go through %s, more slowly", MEMORY, beside
        )
    with drafted_folder((MEMORY if roomy else beside) / "weights") as folder:
        folder.chmod(0o700)  # others on this machine have no business in it
        yield folder


def weight_sums(policy: Policy, dtype: torch.dtype) -> list[int]:
    """For each parameter that moves, the sum of its bits in `dtype`, by which one tells whether an
    engine's copy has to change at all."""
    whole = {4: torch.int32, 2: torch.int16}[dtype.itemsize]
    return [
        int(parameter.detach().to(dtype).view(whole).sum(dtype=torch.int64))
        for _, parameter in policy.moved()
    ]


def age(policy: Policy) -> int:
    """A number that grows whenever a parameter that moves is written to."""
    return sum(parameter._version for _, parameter in policy.moved())
