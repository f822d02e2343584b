"""What token shaping turns a base advantage into, and the shaping that does nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from castctl.methods.groups import Groups
from castctl.ragged import Ints, spread
from castctl.settings import Section


@dataclass(frozen=True)
class TokenSignals:
    """What the scoring models said of `N` flat tokens; None = not asked for.

    `offsets` (R + 1) cuts the tokens into completions. `gap_N` is l_T - l_old in nats,
    NaN where a completion was not scored.
    """

    offsets: NDArray[np.int64]
    gap_N: NDArray[np.float64] | None = None


@dataclass(frozen=True)
class Shaped:
    """Token advantages (N), and for reading: the factor applied and where the sign flipped."""

    advantages_N: NDArray[np.float64]
    weights_N: NDArray[np.float64] | None = None
    flipped_N: NDArray[np.bool_] | None = None


class NoShaping(Section):
    """Every token of a completion gets the completion's advantage."""

    kind: Literal["none"] = "none"
    """`none`: every token gets the completion's advantage; `cast`: CAST's gap shapes it (paper)."""
    needs: ClassVar[frozenset[str]] = frozenset()
    binary_rewards: ClassVar[bool] = False

    def warnings(self) -> list[str]:
        """What may surprise in these settings, a line each."""
        return []

    def shape(self, base_R: NDArray[np.float64], signals: TokenSignals, groups: Groups) -> Shaped:
        """Repeat the base advantages (R) over their tokens (N)."""
        return Shaped(spread(base_R, signals.offsets))

    def measures(
        self, base_R: NDArray[np.float64], shaped: Shaped, offsets: Ints, groups: Groups
    ) -> dict[str, list[float]]:
        """What only this shaping can tell of its result, by name."""
        return {}
