"""What each of several ranks does in tests: `python rank_entries.py FUNCTION ARGUMENT...`."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import numpy as np
import torch

import castctl.ranks
from castctl.errors import UserError
from castctl.ranks import Ranks, here
from castctl.runs.run import open_run
from castctl.stages.policies import load_trained, policy_at
from castctl.stages.train.batch import read_batch
from castctl.stages.train.state import new_state
from castctl.stages.train.update import update


def moments(run: Path, ranks: Ranks) -> tuple[dict[str, np.ndarray], dict[str, float]]:
    """Adam's first moments after the update of a run's step 0, and the update's numbers."""
    sharding = os.environ.get("TEST_SHARDING", "none")
    opened = open_run(str(run)).changed([f"train.sharding={sharding}"])
    source = policy_at(opened, 0)
    state = new_state(opened, load_trained(source, opened.recipe, ranks), 0)
    batch = read_batch(opened.step(0), opened.recipe.method, source.fingerprint)
    policy, teacher = state.policy, state.teacher.model
    stats = update(policy, teacher, state.optimizer, batch, opened.recipe, 0, ranks)
    found = state.policy.whole(state.optimizer.state())
    firsts = {n: m.numpy() for n, m in found.items() if n.endswith(".exp_avg")}
    return firsts, stats.row()


def write_moments(*runs: str) -> None:
    """Rank 0 writes `ranks-COUNT.npz` into each run."""
    ranks = here()
    ranks.join(torch.device("cpu"))
    for run in runs:
        found, row = moments(Path(run), ranks)
        if ranks.first:
            np.savez(Path(run) / f"ranks-{ranks.rank.count}.npz", **found, row=list(row.values()))
    ranks.leave()


def fall_out() -> None:
    """Rank 1 has other weights, and then does not come; each rank prints what it is told."""
    ranks = here()
    ranks.join(torch.device("cpu"))
    castctl.ranks.BEAT_SECONDS = 0.1
    try:
        ranks.require_same("policy", lambda: f"bits of rank {ranks.rank.index}")
    except UserError as error:
        print(error)
    try:
        ranks.patience = 1
        if not ranks.first:
            for _ in range(12):  # late, but at work
                time.sleep(0.2)
                ranks.beat()
        ranks.meet("the prompts")
        print("all have come late")
        ranks.meet("the rollouts") if ranks.first else time.sleep(3)
    except UserError as error:
        print(error)


if __name__ == "__main__":
    {"write_moments": write_moments, "fall_out": fall_out}[sys.argv[1]](*sys.argv[2:])
