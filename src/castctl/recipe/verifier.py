"""Settings of the verifier: what a completion is worth, and the processes that find out."""

from __future__ import annotations

from collections import Counter
from typing import Any, Self

from pydantic import Field, field_validator, model_validator

from castctl.methods.groups import CORRECT
from castctl.recipe.rewards import BoxedReward, CorrectReward, CustomReward, Reward, Share
from castctl.recipe.trust import CodeSection
from castctl.settings import Processes, Section

ALONE: tuple[Reward, ...] = (CorrectReward(),)
"""Correctness and nothing else."""


class Workers(Section):
    """The processes that verify."""

    workers: Processes = 2
    """Worker processes."""
    timeout: float = Field(5.0, gt=0, le=86_400)
    """Seconds after which a worker is killed and the verdict is `timeout`."""
    memory_gb: float = Field(2.0, gt=0, le=10_000)
    """Address space of a worker, in GiB."""
    max_error_share: Share = 0.05
    """Stop the stage when more than this share of a step's verdicts is `error`; each of several
    ranks or shards counts its own (ours)."""


class Grading(CodeSection):
    """What a completion is worth."""

    function: str | None = None
    """Your own verifier: `file.py:function`, the name of a `castctl.verifiers` entry point, or an
    environment, `env:NAME`; in a file, only beside --trust-verifier."""
    correct_from: float = Field(1.0, gt=0, allow_inf_nan=False)
    """Reward from which a completion is `correct` in verdicts, pass@k and maj@k; the reward
    itself stays graded (ours)."""
    box_within_last: float | None = Field(None, gt=0, le=1)
    """The box must begin within this last share of the completion's tokens, its stop token among
    them, or the answer is wrong; null is off (ours; public scripts of CAST have 0.05)."""

    @model_validator(mode="after")
    def _a_box_is_read(self) -> Self:
        if self.function and self.box_within_last is not None:
            raise ValueError(
                "verifier.function reads the completion itself, and no box; leave box_within_last "
                "out"
            )
        return self


class VerifierSettings(Workers, Grading):
    """What a completion is worth, and who finds out."""

    rewards: tuple[Reward, ...] = ALONE
    """What is added up, each with its weight, as TRL's `reward_funcs` and `reward_weights`."""

    @field_validator("rewards", mode="before")
    @classmethod
    def _rewards_are_listed(cls, rewards: Any) -> Any:
        if not isinstance(rewards, list | tuple):
            raise ValueError(
                "write a list, such as [{kind: correct, weight: 1}, {kind: boxed, weight: 0.1}]"
            )
        return rewards

    @field_validator("rewards")
    @classmethod
    def _names_differ(cls, rewards: tuple[Reward, ...]) -> tuple[Reward, ...]:
        counts = Counter(reward.name for reward in rewards)
        if CORRECT not in counts:
            raise ValueError(
                "{kind: correct} must be among them, as verdicts come from it; give it weight 0 to "
                "leave it out of the sum"
            )
        for name, count in counts.items():
            if count > 1:
                raise ValueError(f"{name} is there {count} times; name each once")
        return rewards

    @property
    def adds_up(self) -> bool:
        """Whether the reward is more than correctness alone: a sum, with a column for each."""
        return self.rewards != ALONE

    @property
    def mixes(self) -> bool:
        """Whether the sum is anything but correctness, which weighs 1."""
        return any(each.weight != (each.name == CORRECT) for each in self.rewards)

    @property
    def boxed_within_last(self) -> float | None:
        """The share of the tokens within which the reward `boxed` wants its box; None is any."""
        shares = (each.within_last for each in self.rewards if isinstance(each, BoxedReward))
        return next(shares, None)

    @property
    def weights(self) -> dict[str, float]:
        """The weight of each reward by its name, where they are added up; else nothing."""
        return {each.name: each.weight for each in self.rewards} if self.adds_up else {}

    @property
    def functions(self) -> dict[str, str]:
        """The user's functions among the rewards, by the reward's name."""
        own = (each for each in self.rewards if isinstance(each, CustomReward))
        return {each.name: each.function for each in own}

    @property
    def correctness(self) -> Self:
        """The same verifier, with correctness for the whole reward: evaluations judge so."""
        return self.model_copy(update={"rewards": ALONE})
