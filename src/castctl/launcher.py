"""What a launcher told this process: which of several it is, and where they meet."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from castctl.errors import UserError, one_line

VARIABLES = re.compile(
    r"(LOCAL_|GROUP_|ROLE_)?(RANK|WORLD_SIZE)|ROLE_NAME|MASTER_(ADDR|PORT)|TORCHELASTIC_.*|"
    r"SLURM_(PROCID|LOCALID|STEP_NUM_TASKS)"
)
"""What launchers tell a rank; a process that it starts is none."""


LAUNCHERS = (
    ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"),
    ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", ""),
)
"""A rank, how many there are, and both on this machine; by torchrun, Accelerate, and SLURM."""


THREADS = {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "0", "THP_MEM_ALLOC_ENABLE": "1"}
"""Measured on two cores: waiting threads that spin made two threads three times slower than one,
and huge pages make fresh tensors seven times cheaper. Both are read when torch loads."""


@dataclass(frozen=True)
class Rank:
    """This process among `count`, `local` of which are on this machine."""

    index: int = 0
    count: int = 1
    local_index: int = 0
    local: int = 1

    @property
    def first(self) -> bool:
        return self.index == 0

    @property
    def several(self) -> bool:
        return self.count > 1


def rank_of(environment: Mapping[str, str]) -> Rank:
    """The rank that torchrun, Accelerate or a step of SLURM gave this process.

    Variables of a SLURM allocation alone make none: a shell in it is one process. Raises
    `UserError` where the variables contradict one another.
    """
    there = [names for names in LAUNCHERS if {*names[:2]} <= environment.keys()]
    if not there:
        return Rank()
    index, count, local_index, local = there[0]
    try:
        rank = int(environment[index]), int(environment[count])
        at = int(environment.get(local_index, rank[0]))
        beside = int(environment[local]) if local in environment else _tasks_here(environment)
        fits = 0 <= rank[0] < rank[1] and at >= 0
    except ValueError:
        fits = False
    if not fits:
        raise UserError(
            f"{index}={environment[index]} and {count}={environment[count]} name no rank; start "
            "castctl by torchrun, accelerate launch or srun, or unset them"
        )
    return Rank(*rank, at, max(beside or rank[1], at + 1))


def _tasks_here(environment: Mapping[str, str]) -> int:
    """Tasks of a SLURM step on this node, from such as `4(x2),3`; 0 where it is not said."""
    tasks: list[int] = []
    for item in environment.get("SLURM_STEP_TASKS_PER_NODE", "").split(","):
        if match := re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", item):
            tasks += [int(match[1])] * int(match[2] or 1)
    node = int(environment.get("SLURM_NODEID", 0))
    return tasks[node] if node < len(tasks) else 0


def without_rank(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment of a process that a rank starts, which is no rank itself."""
    return {name: text for name, text in environment.items() if not VARIABLES.fullmatch(name)}


def refuse_unheard(environment: Mapping[str, str]) -> None:
    """Raise `UserError` for what `accelerate launch` was asked for and castctl does not do: it
    would train otherwise than its file says."""
    asked = {"ACCELERATE_USE_DEEPSPEED": "DeepSpeed", "ACCELERATE_USE_MEGATRON_LM": "Megatron"}
    unheard = [what for name, what in asked.items() if environment.get(name) == "true"]
    if shares_weights(environment):
        if environment.get("FSDP_VERSION") != "2":
            unheard.append("FSDP without fsdp_version: 2")
        if environment.get("FSDP_OFFLOAD_PARAMS") == "true":
            unheard.append("fsdp_offload_params")
    if (precision := environment.get("ACCELERATE_MIXED_PRECISION")) in ("fp16", "fp8"):
        unheard.append(f"mixed_precision: {precision}")
    if unheard:
        raise UserError(
            f"accelerate launch asks for {unheard[0]}, which castctl does not do; take a file of "
            "distributed_type MULTI_GPU, or FSDP with fsdp_version: 2, with mixed_precision bf16 "
            "or no, or torchrun"
        )


def shares_weights(environment: Mapping[str, str]) -> bool:
    """Whether the file of `accelerate launch` asks for weights in shares (FSDP)."""
    return environment.get("ACCELERATE_USE_FSDP") == "true"


def open_store(rank: Rank, seconds: float) -> Any:
    """What the ranks write on for one another: torchrun's own store, or one that rank 0 keeps."""
    from torch.distributed import PrefixStore, TCPStore

    host, port = _meeting_place()
    kept_by_launcher = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    try:
        store = TCPStore(
            host, port, is_master=rank.first and not kept_by_launcher, wait_for_workers=False,
            timeout=timedelta(seconds=seconds),
        )  # fmt: skip
    except RuntimeError as error:
        raise UserError(
            f"rank {rank.index} does not reach {host}:{port}, where the ranks meet "
            f"({one_line(str(error), 100)}); is MASTER_ADDR the machine of rank 0?"
        ) from None
    names = ("TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT", "SLURM_JOB_ID", "SLURM_STEP_ID")
    return PrefixStore("/".join(["castctl", *(os.environ.get(n, "") for n in names)]), store)


def _meeting_place() -> tuple[str, int]:
    """Where the ranks meet; for a step of SLURM on one machine castctl chooses."""
    environment = os.environ
    if "MASTER_ADDR" in environment and "MASTER_PORT" in environment:
        return environment["MASTER_ADDR"], int(environment["MASTER_PORT"])
    if environment.get("SLURM_STEP_NUM_NODES", "1") != "1":
        raise UserError(
            "set MASTER_ADDR and MASTER_PORT, where ranks on several machines meet; docs/gpu.md "
            "has a script that does"
        )
    job = int(environment.get("SLURM_JOB_ID", 0)) + int(environment.get("SLURM_STEP_ID", 0))
    return "127.0.0.1", 20_000 + job % 20_000


def before_torch() -> None:
    """Set what torch reads when it loads, where the user has not; ranks on one machine divide its
    cores, of which torchrun would give each but one."""
    os.environ |= THREADS | os.environ
    if "TORCHELASTIC_RUN_ID" in os.environ and os.environ.get("OMP_NUM_THREADS", "1") == "1":
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        os.environ["OMP_NUM_THREADS"] = str(max(1, (cores or 1) // rank_of(os.environ).local))
