"""What a diagnostic is, what it reads beside the shards, and what it found."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from castctl.diagnosis.data import StepData
from castctl.diagnosis.needs import Need
from castctl.errors import UserError
from castctl.inspection.tokens import TokenTexts
from castctl.methods import MethodSettings
from castctl.methods.cast import CastShaping
from castctl.methods.correction import Correction, Truncate
from castctl.methods.zero_variance import SignedBase, ZeroVariance
from castctl.recipe.model import ModelSettings
from castctl.recipe.recipe import Recipe
from castctl.shards.part import read_json, write_json
from castctl.versions import VERSION

Numbers = dict[str, Any]


@dataclass(frozen=True)
class Context:
    """What a diagnostic reads beside the shards: the texts of tokens, the seed of its bootstraps,
    CAST's shaping and what it makes of groups without variance, the run's own where it trains with
    CAST, by step the seconds of each scoring pass, where they are known, and the correction of the
    run's policy loss."""

    texts: TokenTexts
    seed: int = 0
    cast: CastShaping = field(default_factory=CastShaping)
    zero_variance: ZeroVariance = field(default_factory=SignedBase)
    seconds: dict[int, dict[str, float]] = field(default_factory=dict)
    correction: Correction = field(default_factory=Truncate)


@dataclass(frozen=True)
class Diagnostic:
    """A question, what is read to answer it, the method to compute that with where it is missing,
    and the function that turns steps into numbers.

    `method` takes the recipe, the run's initial model, and whether the weights are named by hand.
    """

    name: str
    question: str
    need: Need
    method: Callable[[Recipe, ModelSettings, bool], MethodSettings]
    measure: Callable[[Iterator[StepData], Context], Numbers]


@dataclass(frozen=True)
class Diagnosis:
    """Every number of one diagnostic, as JSON holds them, and what it was read from.

    `steps` says of each step which parts were read, which weights scored it, which teacher, and
    whether its signals were computed for this diagnosis; `notes` what a reader has to know.
    """

    name: str
    question: str
    subject: dict[str, Any]
    steps: list[dict[str, Any]]
    numbers: Numbers
    notes: list[str]
    seed: int
    castctl: str = VERSION

    def write(self, path: Path) -> None:
        """Write it as JSON."""
        write_json(path, self)


def read_diagnosis(path: Path) -> Diagnosis:
    """The diagnosis that `write` wrote; `UserError` where the file is none."""
    found = read_json(path)
    try:
        return Diagnosis(**found)
    except TypeError:
        raise UserError(
            f"{path} is no diagnosis that this castctl wrote; make it again with castctl diagnose"
        ) from None
