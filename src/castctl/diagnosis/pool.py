"""The tokens of several steps that have a gap, side by side and small."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields, replace

import numpy as np
from numpy.typing import NDArray

from castctl.diagnosis.bootstrap import cluster_numbers
from castctl.diagnosis.data import StepData
from castctl.methods.baselines import GroupBaseline
from castctl.methods.signals import TokenSignals
from castctl.ragged import offsets_of
from castctl.stages.evaluate.statistics import difference

CELLS = ("positive_correct", "negative_correct", "positive_incorrect", "negative_incorrect")
"""The sign of a token's gap, and whether its completion is correct."""

MISLEADING = np.array([False, True, True, False])
"""Cells whose sign points the other way than the completion's correctness."""


@dataclass(frozen=True)
class Pool:
    """The completions (R) whose reward and gap are known, of all steps, and their tokens (N).

    `gap_N` is l_T - l_old in nats, NaN where the teacher was not heard; `direction_R` the sign of
    the group-relative advantage, 0 in groups whose rewards are equal; `prompt_R` the number of
    the prompt, from 0, the same in every step. An entropy that is not there is NaN.
    """

    prompt_ids: list[str]
    samples_R: NDArray[np.int32]
    step_R: NDArray[np.int32]
    prompt_R: NDArray[np.int64]
    correct_R: NDArray[np.bool_]
    mixed_R: NDArray[np.bool_]
    direction_R: NDArray[np.int8]
    offsets: NDArray[np.int64]
    ids_N: NDArray[np.int32]
    gap_N: NDArray[np.float32]
    policy_N: NDArray[np.float32]
    position_N: NDArray[np.float32]
    entropy_N: NDArray[np.float32]

    @property
    def prompts(self) -> int:
        """How many different prompts there are."""
        return int(self.prompt_R.max(initial=-1)) + 1

    @property
    def row_N(self) -> NDArray[np.int32]:
        """For each token, its completion."""
        return np.repeat(np.arange(len(self.correct_R), dtype=np.int32), np.diff(self.offsets))

    def cell_N(self) -> NDArray[np.int8]:
        """For each token, the number of its cell in `CELLS`; -1 where the gap is 0 or unknown."""
        wrong_N = np.repeat(~self.correct_R, np.diff(self.offsets))
        cell_N = (2 * wrong_N + (self.gap_N < 0)).astype(np.int8)
        cell_N[~(np.abs(self.gap_N) > 0)] = -1
        return cell_N

    def completions(self, keep_R: NDArray[np.bool_]) -> Pool:
        """These completions alone, their prompts numbered afresh."""
        keep_N = np.repeat(keep_R, np.diff(self.offsets))
        kept = {
            each.name: getattr(self, each.name)[keep_N if each.name.endswith("_N") else keep_R]
            for each in fields(self)
            if each.name.endswith(("_N", "_R"))
        }
        kept["prompt_R"] = np.unique(kept["prompt_R"], return_inverse=True)[1].astype(np.int64)
        names = [name for name, keep in zip(self.prompt_ids, keep_R, strict=True) if keep]
        offsets = offsets_of(np.diff(self.offsets)[keep_R])
        return replace(self, prompt_ids=names, offsets=offsets, **kept)


def pool_steps(steps: Iterable[StepData]) -> Pool:
    """The known completions of these steps as one pool."""
    pieces = [_piece(data) for data in steps]
    columns = {name: np.concatenate([piece[name] for piece in pieces]) for name in pieces[0]}
    lengths, ids = columns.pop("lengths_R"), columns.pop("prompt_ids").tolist()
    return Pool(
        prompt_ids=ids,
        prompt_R=cluster_numbers(ids),
        offsets=offsets_of(lengths),
        **columns,
    )


def _piece(data: StepData) -> dict[str, NDArray]:
    assert data.signals is not None and data.signals.tokens.gap_N is not None, "a gap was asked for"
    tokens = TokenSignals(data.offsets)
    direction = np.sign(GroupBaseline().advantages_R(data.groups, tokens)).astype(np.int8)
    known_R = data.known_R
    known_N = np.repeat(known_R, data.lengths_R)
    entropies = data.entropies_N
    policy_N, gap_N = data.signals.policy_N, data.signals.tokens.gap_N
    assert policy_N is not None, "a gap is from the policy's log-probs"
    gap_N = difference(policy_N, policy_N + gap_N)  # a sign that rounding made is no cell's
    piece = {
        "prompt_ids": np.array(data.prompt_ids, object)[known_R],
        "samples_R": data.samples_R[known_R],
        "step_R": np.full(int(known_R.sum()), data.step, np.int32),
        "correct_R": data.correct_R[known_R],
        "mixed_R": (data.groups.kind_R == "mixed")[known_R],
        "direction_R": direction[known_R],
        "lengths_R": data.lengths_R[known_R],
        "ids_N": data.ids_N[known_N],
        "gap_N": gap_N[known_N].astype(np.float32),
        "policy_N": policy_N[known_N].astype(np.float32),
        "position_N": data.position_N[known_N].astype(np.float32),
        "entropy_N": (np.full(len(known_N), np.nan) if entropies is None else entropies)[
            known_N
        ].astype(np.float32),
    }
    return piece
