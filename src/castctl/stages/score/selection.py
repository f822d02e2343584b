"""Which completions something reads the signals of, so that the others need not be scored."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from castctl.methods import MethodSettings
from castctl.methods.schedule import Moment
from castctl.recipe.recipe import Recipe
from castctl.shards.part import Part
from castctl.stages.groups import read_rows


@dataclass(frozen=True)
class Selection:
    """The `signals` that are taken of completions with a base advantage alone, by `method`;
    `longest` is the longest completion, where the rollouts do not say it."""

    signals: frozenset[str] = frozenset()
    method: MethodSettings | None = None
    longest: int | None = None

    @classmethod
    def of(cls, recipe: Recipe) -> Selection:
        """What training by a recipe reads."""
        return cls(recipe.selective, recipe.method, recipe.sampling.max_tokens)

    def read_R(self, inputs: Mapping[str, Part], moment: Moment) -> NDArray[np.bool_]:
        """The completions (R) of a judged part whose `signals` are read."""
        assert self.method is not None, "nothing is selected"
        return read_rows(self.method, inputs, moment, self.longest)


EVERY = Selection()
