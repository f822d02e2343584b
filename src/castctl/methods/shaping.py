"""What token shaping turns a base advantage into, and the shaping that does nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from castctl.methods.groups import Groups
from castctl.methods.schedule import Moment
from castctl.methods.signals import TokenSignals
from castctl.ragged import Ints, spread
from castctl.settings import Section

Floats = NDArray[np.float64]
Told = dict[str, float | list[float]]
"""Numbers of a step by name, which only the part of a method that tells them can know."""


@dataclass(frozen=True)
class Shaped:
    """Token advantages (N), and for reading: the factor applied and where the sign flipped."""

    advantages_N: Floats
    weights_N: Floats | None = None
    flipped_N: NDArray[np.bool_] | None = None


class TokenShaping(Section):
    """From one advantage a completion to one a token."""

    needs: ClassVar[frozenset[str]] = frozenset()
    """Signals it reads."""
    binary_rewards: ClassVar[bool] = False
    """Whether rewards must be 0 or 1."""

    def warnings(self) -> list[str]:
        """What may surprise in these settings, a line each."""
        return []

    def shape(
        self, base_R: Floats, signals: TokenSignals, groups: Groups, moment: Moment
    ) -> Shaped:
        """Token advantages (N) from base advantages (R), in float64."""
        raise NotImplementedError

    def measures(self, base_R: Floats, shaped: Shaped, offsets: Ints, groups: Groups) -> Told:
        """What only this shaping can tell of its result."""
        return {}


class NoShaping(TokenShaping):
    """Every token of a completion gets the completion's advantage."""

    kind: Literal["none"] = "none"
    """`none`: every token gets the completion's advantage (paper: GRPO's)."""

    def shape(
        self, base_R: Floats, signals: TokenSignals, groups: Groups, moment: Moment
    ) -> Shaped:
        """Repeat the base advantages (R) over their tokens (N)."""
        return Shaped(spread(base_R, signals.offsets))
