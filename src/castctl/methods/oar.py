"""OAR: a completion's advantage redistributed by each token's influence on the final answer
(arXiv 2601.07408)."""

from __future__ import annotations

from itertools import pairwise
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from castctl.methods.groups import Groups
from castctl.methods.schedule import Moment
from castctl.methods.shaping import Floats, Shaped, TokenShaping, Told
from castctl.methods.signals import TokenSignals
from castctl.ragged import Ints, spread
from castctl.settings import Count

AnswerScore = Literal["first", "last", "answer_mean", "answer_joint"]

MIN_SPREAD = 1e-8
"""Scores that differ by less say nothing about which token matters."""


class OarShaping(TokenShaping):
    """Bi-level reshaping by scores of influence, wherever they come from."""

    threshold: float = Field(0.3, ge=0, le=1)
    """Quantile of the scores below which tokens are suppressed (ours; the paper leaves it open)."""
    gain: float = Field(1.0, ge=0)
    """How far the most influential token is boosted (ours; the paper leaves it open)."""
    floor: float = Field(0.1, ge=0, le=1)
    """Smallest weight before the weights are scaled to keep the advantage's mass (paper)."""
    score: AnswerScore = "last"
    """What is compared: the distribution of the answer's first token (`first`, as public code reads
    OAR-P's) or last token (`last`), of the mean of the answer's logits (`answer_mean`), or the
    answer's joint log-prob (`answer_joint`) (ours; the paper does not say which token)."""
    conclude: str | None = None
    """Phrase that ends the reasoning; left out, the reasoning ends at the answer's box (ours)."""

    def shape(
        self, base_R: Floats, signals: TokenSignals, groups: Groups, moment: Moment
    ) -> Shaped:
        """Token advantages (N): the base advantage (R) times the token's weight."""
        weights_N = self.weights(self._scores(signals), signals.offsets)
        return Shaped(spread(base_R, signals.offsets) * weights_N, weights_N)

    def weights(self, scores_N: Floats, offsets: Ints) -> Floats:
        """Weight of each token (N); 1 where it has no score (NaN), as outside the reasoning.

        Within a completion: z = log1p(max(score, 0)) brought to [0, 1]; below its quantile q
        max(z / q, floor), from q on 1 + gain (z - q) / (1 - q); scaled to sum to the number of
        scored tokens.
        """
        weights_N = np.ones(len(scores_N))
        for start, end in pairwise(offsets):
            scored = start + np.flatnonzero(~np.isnan(scores_N[start:end]))
            weights_N[scored] = self._reshape(np.maximum(scores_N[scored], 0.0))
        return weights_N

    def _reshape(self, scores: Floats) -> Floats:
        z = np.log1p(scores)
        if len(z) < 2 or np.ptp(scores) < MIN_SPREAD or np.ptp(z) == 0:  # large ones round together
            return np.ones(len(z))
        z = (z - z.min()) / np.ptp(z)
        q = float(np.quantile(z, self.threshold))
        below = np.maximum(np.minimum(z, q) / q, self.floor) if q > 0 else np.ones(len(z))
        above = 1 + self.gain * (z - q) / (1 - q) if q < 1 else np.ones(len(z))
        weights = np.where(z < q, below, above)
        return weights * len(weights) / weights.sum()

    def _scores(self, signals: TokenSignals) -> Floats:
        """Influence of each token (N); NaN = not scored."""
        raise NotImplementedError

    def measures(self, base_R: Floats, shaped: Shaped, offsets: Ints, groups: Groups) -> Told:
        """`uniform_share`: of the completions with a base advantage, those whose weights are all 1,
        as where no answer was found."""
        assert shaped.weights_N is not None, "OAR always stores its weights"
        bounds = [pair for pair, base in zip(pairwise(offsets), base_R, strict=True) if base]
        uniform = [(shaped.weights_N[a:b] == 1).all() for a, b in bounds]
        return {"uniform_share": float(np.mean(uniform)) if uniform else float("nan")}


class OarPerturbation(OarShaping):
    """OAR-P: each reasoning token in turn replaced by the padding token."""

    kind: Literal["oar-p"] = "oar-p"
    """`oar-p`: influence on the answer by replacing each token weighs the tokens (paper)."""
    needs: ClassVar[frozenset[str]] = frozenset({"importance_perturb"})

    stride: Count = 1
    """Score every stride-th reasoning token; the others keep weight 1 (paper: each)."""
    budget: Count | None = None
    """Most tokens of a completion that are scored, by a longer stride; null is all (ours)."""

    def _scores(self, signals: TokenSignals) -> Floats:
        assert signals.perturb_N is not None, "OAR-P reads perturbation scores"
        return signals.perturb_N


class OarGradient(OarShaping):
    """OAR-G: a proxy from one forward pass with a little noise and one backward pass."""

    kind: Literal["oar-g"] = "oar-g"
    """`oar-g`: influence on the answer by the input gradient weighs the tokens (paper)."""
    needs: ClassVar[frozenset[str]] = frozenset({"importance_grad"})

    score: AnswerScore = "answer_mean"
    """What is compared: the distribution of the answer's first token (`first`) or last token
    (`last`), of the mean of the answer's logits (`answer_mean`), or the answer's joint log-prob
    (`answer_joint`) (paper: its public code)."""
    noise_std: float = Field(1e-3, gt=0)
    """Deviation of the noise on the reasoning tokens' embeddings (paper)."""

    def _scores(self, signals: TokenSignals) -> Floats:
        assert signals.grad_N is not None, "OAR-G reads gradient scores"
        return signals.grad_N
