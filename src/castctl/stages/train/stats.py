"""What an update did, in numbers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from castctl.methods.correction import Correction, divergence_terms
from castctl.methods.objective import TokenStreams
from castctl.methods.surrogate import PolicyLoss
from castctl.ragged import means, take_rows
from castctl.ranks import Ranks
from castctl.stages.measures import Measures, measure_sampler
from castctl.stages.train.batch import TrainBatch
from castctl.stages.train.metrics import TRAINED

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Reading:
    """What the policy says of a step's tokens (N): log-probs and entropies in nats, NaN where no
    forward pass came by."""

    logprobs_N: NDArray[np.float64]
    entropies_N: NDArray[np.float64]

    @classmethod
    def of(cls, tokens: int) -> Reading:
        """Nothing read yet of so many tokens."""
        return cls(np.full(tokens, np.nan), np.full(tokens, np.nan))

    def note(
        self,
        index: NDArray[np.int64],
        logprobs: torch.Tensor,
        entropies: torch.Tensor,
    ) -> None:
        """Write down a forward pass over the tokens at `index`."""
        self.logprobs_N[index] = logprobs.double().cpu().numpy()
        self.entropies_N[index] = entropies.double().cpu().numpy()

    def measures(self, batch: TrainBatch, correction: Correction) -> Measures:
        """What scoring would have measured of the completions, of those alone that trained, and so
        by names of their own: `trained_` before those of scoring."""
        rows = np.flatnonzero(np.diff(batch.offsets))
        rows = rows[~np.isnan(self.logprobs_N[batch.offsets[rows]])]
        policy_N, offsets = take_rows(self.logprobs_N, batch.offsets, rows)
        found: Measures = {
            "entropy_mean": float(np.mean(take_rows(self.entropies_N, batch.offsets, rows)[0]))
            if len(policy_N)
            else None
        }
        if batch.sampler_logprobs is not None:
            sampler_N, _ = take_rows(batch.sampler_logprobs, batch.offsets, rows)
            found |= measure_sampler(policy_N, sampler_N, offsets, correction)
        if batch.ref_logprobs is not None and len(policy_N):
            reference_N, _ = take_rows(batch.ref_logprobs, batch.offsets, rows)
            found["kl_reference"] = float(np.mean(divergence_terms(reference_N - policy_N)))
        return {f"{TRAINED}{name}": value for name, value in found.items()}


@dataclass
class UpdateStats:
    """Sums over the tokens that had a forward pass, and one entry an optimizer step.

    `ratio_R` is each completion's mean ratio in its last forward pass, 1 without one. Divergences
    are summed over the tokens that are distilled, and apart over the first ones that are left out.
    `reading` is what the passes said, where the update is the first to read the completions.
    """

    ratio_R: NDArray[np.float64]
    reading: Reading | None = None
    losses: list[float] = field(default_factory=list)
    grad_norms: list[float] = field(default_factory=list)
    lr: float = 0.0
    tokens: int = 0
    ratio: float = 0.0
    clipped: float = 0.0
    kl: float = 0.0
    distilled_tokens: int | None = None
    divergence: float = 0.0
    skipped_divergence: float = 0.0

    def fresh(self) -> UpdateStats:
        """Nothing counted yet, of the same completions, none of which has had a forward pass."""
        nothing = None if self.distilled_tokens is None else 0
        unread = None if self.reading is None else Reading.of(len(self.reading.logprobs_N))
        return UpdateStats(np.full_like(self.ratio_R, np.nan), unread, distilled_tokens=nothing)

    def include(self, own: UpdateStats, ranks: Ranks) -> float:
        """Count what all `ranks` counted in an optimizer step, each its `own`; the step's loss."""
        counts = [own.tokens, own.ratio, own.clipped, own.kl]
        distilled = [own.distilled_tokens or 0, own.divergence, own.skipped_divergence]
        [numbers] = ranks.sums([np.array([sum(own.losses), *counts, *distilled], np.float64)])
        self.tokens += int(numbers[1])
        self.ratio += float(numbers[2])
        self.clipped += float(numbers[3])
        self.kl += float(numbers[4])
        if self.distilled_tokens is not None:
            self.distilled_tokens += int(numbers[5])
            self.divergence += float(numbers[6])
            self.skipped_divergence += float(numbers[7])
        ratio_R = _gathered(own.ratio_R, ranks)
        self.ratio_R = np.where(np.isnan(ratio_R), self.ratio_R, ratio_R)
        if own.reading is not None:
            read = own.reading
            self.reading = Reading(
                *(_gathered(v, ranks) for v in (read.logprobs_N, read.entropies_N))
            )
        return float(numbers[0])

    def add(
        self,
        surrogate: PolicyLoss,
        streams: TokenStreams,
        logprobs: torch.Tensor,
        rows: NDArray[np.int64],
        lengths: NDArray[np.int64],
    ) -> None:
        """Count a micro-batch of `rows`: its ratios, how many tokens a bound on them holds, and the
        k3 estimate of KL(old || new) in nats."""
        log_ratio = (logprobs - streams.old_logprobs).double()
        ratio = log_ratio.exp()
        self.clipped += float(surrogate.held(streams, logprobs).sum())
        self.tokens += len(logprobs)
        self.ratio += float(ratio.sum())
        self.kl += float((log_ratio.expm1() - log_ratio).sum())  # exp - 1 would leave rounding
        owner = np.repeat(np.arange(len(rows)), lengths)
        self.ratio_R[rows] = means(ratio.cpu().numpy(), owner, len(rows))

    def add_distilled(
        self, streams: TokenStreams, divergences: torch.Tensor, wanted: torch.Tensor
    ) -> None:
        """Count the tokens (N) `wanted` of a micro-batch: those of rows that are distilled."""
        assert streams.distill_weights is not None, "distilled rows have weights"
        heard = streams.distill_weights != 0
        self.distilled_tokens = (self.distilled_tokens or 0) + int(heard.sum())
        self.divergence += float(divergences[heard].double().sum())
        self.skipped_divergence += float(divergences[wanted & ~heard].double().sum())

    def row(self) -> dict[str, float]:
        """The numbers of a metrics row."""
        tokens = max(self.tokens, 1)
        distilled = {}
        if self.distilled_tokens is not None:
            total = self.divergence + self.skipped_divergence
            distilled = {
                "distilled_tokens": self.distilled_tokens,
                "divergence_mean": self.divergence / max(self.distilled_tokens, 1),
                "divergence_skipped_share": self.skipped_divergence / total if total else 0.0,
            }
        return {
            "loss": float(np.mean(self.losses)),
            "grad_norm": float(np.mean(self.grad_norms)),
            "lr": self.lr,
            "optimizer_steps": len(self.losses),
            "trained_tokens": self.tokens,
            "ratio_mean": self.ratio / tokens if self.tokens else 1.0,
            "clip_share": self.clipped / tokens,
            "kl_old_new": self.kl / tokens,
            **distilled,
        }


def _gathered(values: NDArray[np.float64], ranks: Ranks) -> NDArray[np.float64]:
    """Each value from the rank that has it, NaN where none has."""
    there = ~np.isnan(values)
    summed, times = ranks.sums([np.where(there, values, 0.0), there.astype(np.float64)])
    return np.where(times > 0, summed, np.nan)
