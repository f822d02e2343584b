"""What becomes of completions that are too long (DAPO, arXiv 2503.14476)."""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from castctl.methods.groups import Groups
from castctl.settings import Count, Section

Floats = NDArray[np.float64]


class _Overlong(Section):
    def penalised(self, groups: Groups, lengths_R: NDArray[np.int64], longest: int) -> Groups:
        """The groups with the rewards that advantages are computed from; their kinds stay."""
        return groups

    def masks_R(self, truncated_R: NDArray[np.bool_]) -> Floats:
        """Factor of the policy term (R)."""
        return np.ones(len(truncated_R))


class KeepOverlong(_Overlong):
    """A long completion counts as any other."""

    kind: Literal["none"] = "none"
    """`none`: a long completion counts as any other (paper: GRPO's)."""


class PenaliseOverlong(_Overlong):
    """The soft punishment of DAPO: 0 up to L_max - cache tokens, then linearly to -1 at L_max."""

    kind: Literal["penalty"] = "penalty"
    """`penalty`: long completions lose reward, DAPO (paper)."""
    cache: Count | None = None
    """Tokens before the longest at which it begins; a quarter of `sampling.max_tokens` where left
    out (ours)."""

    def penalised(self, groups: Groups, lengths_R: NDArray[np.int64], longest: int) -> Groups:
        """Rewards plus the penalty; verdicts and group kinds are those of before."""
        return groups.with_rewards(groups.rewards_R + self.penalties_R(lengths_R, longest))

    def penalties_R(self, lengths_R: NDArray[np.int64], longest: int) -> Floats:
        """Added reward (R), between -1 and 0, of completions of these lengths in tokens."""
        cache = longest / 4 if self.cache is None else self.cache
        return np.clip((longest - cache - lengths_R) / cache, -1.0, 0.0)


class MaskOverlong(_Overlong):
    """Completions cut at the longest length do not pull on the policy."""

    kind: Literal["mask"] = "mask"
    """`mask`: truncated completions have no policy loss, yet count in its denominator (ours)."""

    def masks_R(self, truncated_R: NDArray[np.bool_]) -> Floats:
        """0 where a completion was cut (R), else 1."""
        return np.where(truncated_R, 0.0, 1.0)


Overlong = Annotated[KeepOverlong | PenaliseOverlong | MaskOverlong, Field(discriminator="kind")]
