"""The models that score, and what decides their numbers."""

from __future__ import annotations

from dataclasses import dataclass, field

from castctl.data.bilateral import BilateralTemplate
from castctl.data.teacher_template import TeacherTemplate
from castctl.methods.oar import OarGradient, OarPerturbation
from castctl.models.language_model import LanguageModel
from castctl.shards.part import Metadata


@dataclass(frozen=True)
class Scorer:
    """A model that scores, and the name its numbers go by in the metadata."""

    model: LanguageModel
    fingerprint: str


@dataclass(frozen=True)
class Scorers:
    """Who computes the signals; None where nobody is at hand, or for what the method has not.

    Without a `teacher_template` the teacher reads the student's own prompt. `seed` is that of
    OAR-G's noise.
    """

    policy: Scorer
    teacher: Scorer | None = None
    reference: Scorer | None = None
    teacher_template: TeacherTemplate | None = None
    bilateral: BilateralTemplate | None = None
    perturbation: OarPerturbation = field(default_factory=OarPerturbation)
    gradient: OarGradient = field(default_factory=OarGradient)
    seed: int = 0

    def provenance(self, signal: str, temperature: float, rewards: str | None) -> Metadata:
        """What decides a signal's numbers beside the rollouts; `rewards` is their hash."""
        made: Metadata = {"model": self.of(signal).fingerprint, "temperature": temperature}
        if signal in ("teacher_logprobs", "teacher_prompt_token_ids"):
            if self.teacher_template is not None:
                template = self.teacher_template
                made |= {"context": template.context, "template": template.version}
            if signal == "teacher_prompt_token_ids":
                made = {key: made[key] for key in ("context", "template") if key in made}
        elif signal in ("bilateral_logprobs", "bilateral_prompt_token_ids"):
            assert self.bilateral is not None, "nobody renders the bilateral prompt"
            made |= {"template": self.bilateral.version, "rewards": rewards}
        elif signal == "importance_perturb":
            made |= {"settings": _settings(self.perturbation), "rewards": rewards}
        elif signal == "importance_grad":
            made |= {
                "settings": _settings(self.gradient), "rewards": rewards, "seed": self.seed
            }  # fmt: skip
        return made

    def of(self, signal: str) -> Scorer:
        """The model that a signal comes from."""
        role = {"teacher_logprobs": self.teacher, "teacher_prompt_token_ids": self.teacher}
        found = role.get(signal, self.reference if signal == "ref_logprobs" else self.policy)
        assert found is not None, f"nobody computes {signal}"
        return found


def _settings(oar: OarPerturbation | OarGradient) -> Metadata:
    """The settings of OAR that its scores depend on."""
    return oar.model_dump(mode="json", exclude={"kind", "threshold", "gain", "floor"})
