"""The models that score, and what decides their numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from castctl.data.bilateral import BilateralTemplate
from castctl.data.teacher_template import TeacherTemplate
from castctl.data.templates import version_of
from castctl.methods.oar import OarGradient, OarPerturbation
from castctl.methods.teacher import Teacher
from castctl.models.language_model import LanguageModel
from castctl.shards.part import Metadata
from castctl.shards.schema import PEER
from castctl.stages.score.others import Answer

AFTER_REWARDS = frozenset(
    {
        "bilateral_logprobs",
        "bilateral_prompt_token_ids",
        "importance_perturb",
        "importance_grad",
    }
)
"""Signals that depend on the verdicts whatever the teacher is told."""


@dataclass(frozen=True)
class Scorer:
    """A model that scores, and the name its numbers go by in the metadata."""

    model: LanguageModel
    fingerprint: str


@dataclass(frozen=True)
class Scorers:
    """Who computes the signals; None where nobody is at hand, or for what the method has not.

    `told` is how the teacher is made and asked; without a `teacher_template` it reads the student's
    own prompt. `others` has, by prompt, what another problem tells, where the teacher is told that
    in place of its own. `seed` is that of OAR-G's noise and of the choice of peers.
    """

    policy: Scorer
    teacher: Scorer | None = None
    reference: Scorer | None = None
    told: Teacher = field(default_factory=Teacher)
    teacher_template: TeacherTemplate | None = None
    others: Mapping[str, Answer] | None = None
    bilateral: BilateralTemplate | None = None
    perturbation: OarPerturbation = field(default_factory=OarPerturbation)
    gradient: OarGradient = field(default_factory=OarGradient)
    seed: int = 0

    def reads_rewards(self, signal: str) -> bool:
        """Whether a signal depends on the verdicts."""
        told_by_peers = signal.startswith("teacher_") and self.told.told_by_peers
        return signal in AFTER_REWARDS or told_by_peers

    def provenance(self, signal: str, temperature: float, rewards: str | None) -> Metadata:
        """What decides a signal's numbers beside the rollouts; `rewards` is their hash."""
        if signal == PEER:
            return {"rewards": rewards, "seed": self.seed}
        if signal == "teacher_prompt_token_ids":
            return self._told(rewards)
        if signal == "bilateral_prompt_token_ids":
            return self._opposed(rewards)
        scorer = self._of(signal)
        dtype = str(scorer.model.dtype).removeprefix("torch.")
        made: Metadata = {
            "model": scorer.fingerprint, "temperature": temperature, "dtype": dtype
        }  # fmt: skip
        if signal == "teacher_logprobs":
            made |= {**self._told(rewards), "teacher": self.told.identity}
        elif signal == "bilateral_logprobs":
            made |= self._opposed(rewards)
        elif signal == "importance_perturb":
            made |= {"settings": _settings(self.perturbation), "rewards": rewards}
        elif signal == "importance_grad":
            settings = _settings(self.gradient)
            made |= {"settings": settings, "rewards": rewards, "seed": self.seed}
        return made

    def _told(self, rewards: str | None) -> Metadata:
        """What the teacher is asked; nothing where it reads the student's own prompt."""
        if self.teacher_template is None:
            return {}
        others = {}
        if self.others is not None:
            others = {"others": version_of({"others": sorted(self.others.items())})}
        return {
            "teacher": self.told.asked,
            "context": self.told.context,
            **others,
            "template": self.teacher_template.version,
            **({"rewards": rewards, "seed": self.seed} if self.told.told_by_peers else {}),
        }

    def _opposed(self, rewards: str | None) -> Metadata:
        assert self.bilateral is not None, "nobody renders the bilateral prompt"
        return {"template": self.bilateral.version, "rewards": rewards}

    def _of(self, signal: str) -> Scorer:
        """The model that a signal comes from."""
        roles = {"teacher_logprobs": self.teacher, "ref_logprobs": self.reference}
        found = roles.get(signal, self.policy)
        assert found is not None, f"nobody computes {signal}"
        return found


def _settings(oar: OarPerturbation | OarGradient) -> Metadata:
    """The settings of OAR that its scores depend on."""
    return oar.model_dump(mode="json", exclude={"kind", "threshold", "gain", "floor"})
