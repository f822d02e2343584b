"""A method is a choice in a few independent slots; a name is a preset of them."""

from __future__ import annotations

from typing import Annotated, Any, get_args

from pydantic import BaseModel, Field, model_validator

from castctl.methods.anchors import Anchor
from castctl.methods.baselines import Baseline, GroupBaseline
from castctl.methods.cast import CastShaping
from castctl.methods.cispo import Cispo
from castctl.methods.conditioning import Conditioning, NoConditioning
from castctl.methods.correction import Correction, Truncate
from castctl.methods.distillation import Distillation, DistillationLoss, NoDistillation
from castctl.methods.dppo import Dppo
from castctl.methods.gspo import Gspo
from castctl.methods.oar import OarGradient, OarPerturbation
from castctl.methods.objective import Objective
from castctl.methods.overlong import KeepOverlong, Overlong
from castctl.methods.presets import preset
from castctl.methods.rlrt import RlrtShaping
from castctl.methods.rlsd import RlsdShaping
from castctl.methods.sapo import Sapo
from castctl.methods.shaping import NoShaping
from castctl.methods.surrogate import Surrogate
from castctl.methods.teacher import Teacher
from castctl.methods.token_mask import NoTokenMask, TokenMask
from castctl.methods.zero_variance import ZeroBase, ZeroVariance
from castctl.settings import Section

Shaping = Annotated[
    NoShaping | CastShaping | RlsdShaping | RlrtShaping | OarPerturbation | OarGradient,
    Field(discriminator="kind"),
]
PolicyTerm = Annotated[Surrogate | Gspo | Cispo | Dppo | Sapo, Field(discriminator="kind")]


class MethodSettings(Section):
    """The slots. `name` fills every slot that the recipe leaves out."""

    name: str = "grpo"
    """Preset; `castctl methods` lists them."""
    baseline: Baseline = GroupBaseline()
    """What a completion's reward is compared with."""
    zero_variance: ZeroVariance = ZeroBase()
    """What groups teach whose rewards are all equal."""
    overlong: Overlong = KeepOverlong()
    """What becomes of completions that are too long."""
    shaping: Shaping = NoShaping()
    """What turns a completion's advantage into its tokens'."""
    teacher: Teacher = Teacher()
    """Who scores the completions a second time, and what it is told."""
    conditioning: Conditioning = NoConditioning()
    """Under which prompt the ratio is taken."""
    surrogate: PolicyTerm = Surrogate()
    """The policy loss of a token, and how tokens add up."""
    distillation: DistillationLoss = NoDistillation()
    """The loss that pulls towards the teacher's distributions."""
    anchor: Anchor = Anchor()
    """The penalty that ties the policy to the frozen initial one."""
    token_mask: TokenMask = NoTokenMask()
    """Which tokens the policy loss is taken over."""
    correction: Correction = Truncate()
    """What the policy loss is multiplied by where sampler and scorer differ."""

    @model_validator(mode="before")
    @classmethod
    def _fill_from_preset(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        name, found = preset(given.get("name", "grpo"))
        usual = {
            "baseline": {"kind": "mean_std"},
            "surrogate": {"kind": "clip"},
            "correction": {"kind": "truncate"},
        }
        return merged(merged(usual, found.slots), {**given, "name": name})

    @model_validator(mode="after")
    def _slots_fit(self) -> MethodSettings:
        for reason in self._contradictions():
            raise ValueError(f"{self.name}: {reason}")
        return self

    def _contradictions(self) -> list[str]:
        """Why these slots make no sense together, and what to set instead."""
        taught = self.baseline.kind != "none"
        trains = self.surrogate.trains
        distills = isinstance(self.distillation, Distillation)
        bilateral = self.conditioning.kind == "bilateral"
        listens = "teacher_logprobs" in self.shaping.needs
        gated = isinstance(self.distillation, Distillation) and self.distillation.gate
        rules = [
            (
                listens and self.teacher.kind == "none",
                f"shaping {self.shaping.kind} reads a teacher's log-probs; set method.teacher.kind "
                "to snapshot, ema, initial, current or model",
            ),
            (
                distills and self.teacher.kind == "none",
                "distillation needs a teacher; set method.teacher.kind to initial, current, "
                "snapshot, ema or model",
            ),
            (
                not taught and (trains or gated or self.shaping.kind != "none"),
                "without a baseline there is no advantage for a surrogate, a shaping or a gate; "
                "set method.baseline.kind=mean_std, or method.surrogate.kind=none and no shaping "
                "(method.shaping.kind=none) and no gate (method.distillation.gate=false)",
            ),
            (
                not taught and self.zero_variance.kind != "zero",
                "without a baseline there are no groups to fill or to drop; set "
                "method.zero_variance.kind=zero",
            ),
            (
                not taught and self.overlong.kind == "penalty",
                "without a baseline no reward is read, so nothing is penalised; set "
                "method.overlong.kind=none",
            ),
            (
                self.baseline.normalizes_first and self.overlong.kind == "penalty",
                "the penalty is added to the sum of rewards, and each is compared by itself; set "
                "method.overlong.kind=none and reward {kind: length} (verifier.rewards)",
            ),
            (
                self.baseline.whole_step and self.zero_variance.kind == "resample",
                "the deviation is that of the whole step, and resampling drops part of it; set "
                "method.zero_variance.kind=zero",
            ),
            (
                self.baseline.kind == "maxrl" and self.overlong.kind == "penalty",
                "maxrl divides by a group's mean reward, which the penalty brings to 0 and below; "
                "set method.overlong.kind to none or mask",
            ),
            (
                not trains and not distills,
                "without a policy loss and without distillation nothing trains; set "
                "method.surrogate.kind=clip, or method.distillation.kind to jsd, forward_kl or "
                "reverse_kl",
            ),
            (
                not trains and (self.overlong.kind == "mask" or self.token_mask.kind != "none"),
                "without a policy loss there is nothing to mask; set method.overlong.kind=none and "
                "method.token_mask.kind=none",
            ),
            (
                bilateral and self.token_mask.kind == "clip_cov",
                "the covariance is that of the log-probs under the bare prompt, the ratio that "
                "under the opposite completions; set method.token_mask.kind=none",
            ),
            (
                not trains and (self.shaping.kind != "none" or bilateral),
                "without a policy loss nothing reads token advantages or ratios; set "
                "method.surrogate.kind=clip",
            ),
            (
                bilateral and trains and not self.surrogate.has_ratio,
                "REINFORCE has no ratio to condition; set method.surrogate.kind=clip",
            ),
            (
                self.surrogate.one_advantage and self.shaping.kind != "none",
                "the ratio of a whole completion pulls on one advantage, and shaping "
                f"{self.shaping.kind} gives each token its own; set method.surrogate.level=token, "
                "or method.shaping.kind=none",
            ),
            (
                self.surrogate.one_advantage and self.zero_variance.kind == "entropy",
                "the ratio of a whole completion pulls on one advantage, and entropies give each "
                "token its own; set method.surrogate.level=token, or "
                "method.zero_variance.kind=signed",
            ),
            (
                self.surrogate.one_advantage and self.token_mask.kind != "none",
                "the ratio of a whole completion leaves no token out; set "
                "method.surrogate.level=token, or method.token_mask.kind=none",
            ),
            (
                bilateral and self.surrogate.entropy_bonus > 0,
                "the entropy would be that after the opposite completions, which sampling never "
                "sees; set method.surrogate.entropy_bonus=0",
            ),
            (
                bilateral and (self.anchor.kind != "none" or distills),
                "reference and teacher read the bare prompt, the ratio the opposite completions; "
                "set method.anchor.kind=none and method.distillation.kind=none, or "
                "method.conditioning.kind=none",
            ),
        ]
        return [reason for broken, reason in rules if broken]

    def warnings(self) -> list[str]:
        """What may surprise in these settings, a line each."""
        warnings = self.shaping.warnings()
        if self.teacher.kind != "none" and not self.listens:
            warnings.append(
                f"teacher.kind={self.teacher.kind} is set, but nothing in this method listens to "
                "it; set method.teacher.kind=none"
            )
        copies = self.teacher.kind != "model" and not self.teacher.own_prompt
        if self.distillation.kind != "none" and not self.surrogate.trains and copies:
            warnings.append(
                "the teacher begins as the policy and reads the same prompt, so distillation alone "
                "never moves; set method.teacher.context"
            )
        elif self.listens and self.teacher.kind == "current" and not self.teacher.own_prompt:
            warnings.append(
                "teacher.kind=current equals the policy under the same prompt: its gap is zero "
                "everywhere"
            )
        return warnings

    @property
    def objective(self) -> Objective:
        """What the loss is made of."""
        return Objective(self.surrogate, self.anchor, self.distillation)

    @property
    def scoring_passes(self) -> tuple[str, ...]:
        """Who reads every completion in the score stage, once each."""
        own = self.teacher.kind != "current" or self.teacher.own_prompt
        passes = {
            "policy": "policy_logprobs" in self.needs,
            "teacher": "teacher_logprobs" in self.needs and own,
            "reference": "ref_logprobs" in self.needs,
            "bilateral": "bilateral_logprobs" in self.needs,
            "perturbation": "importance_perturb" in self.needs,
            "gradient": "importance_grad" in self.needs,
        }
        return tuple(name for name, read in passes.items() if read)

    @property
    def listens(self) -> bool:
        """Whether anything reads the teacher."""
        return "teacher_logprobs" in self.needs or self.distillation.kind != "none"

    @property
    def told_by_data(self) -> bool:
        """Whether a teacher is read that sees the answers or solutions of the data."""
        return self.listens and self.teacher.privileged and not self.teacher.told_by_peers

    @property
    def told_by_peers(self) -> bool:
        """Whether a teacher is read that sees other completions of the prompt."""
        return self.listens and self.teacher.told_by_peers

    @property
    def compares(self) -> bool:
        """Whether a completion's advantage depends on the others of its prompt."""
        return self.baseline.kind != "none"

    @property
    def whole_step(self) -> bool:
        """Whether advantages depend on completions of other prompts, so on a step's every part."""
        return self.baseline.whole_step or self.token_mask.whole_step

    @property
    def binary_rewards(self) -> bool:
        """Whether rewards must be 0 or 1."""
        slots = (self.zero_variance, self.shaping, self.conditioning, self.distillation)
        return any(slot.binary_rewards for slot in slots)

    @property
    def needs(self) -> frozenset[str]:
        """Signals that shaping reads, or training beside its own pass of the policy."""
        slots = (
            self.baseline, self.zero_variance, self.shaping, self.token_mask, self.conditioning,
            self.objective,
        )  # fmt: skip
        return frozenset[str]().union(*(slot.needs for slot in slots))


def merged(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """`base` overridden by `over`, section by section; a `kind` with other settings starts its slot
    afresh, but for those that it carries over."""
    result = dict(base)
    for key, value in over.items():
        old = result.get(key)
        if isinstance(old, dict) and isinstance(value, dict):
            value = merged(_staying(key, old, value), value)
        result[key] = value
    return result


def _staying(slot: str, old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """What of a slot's settings `new` can have as well."""
    field = MethodSettings.model_fields.get(slot)
    kinds = old.get("kind"), new.get("kind")
    if None in kinds or field is None or not field.discriminator:
        return old
    members = get_args(field.annotation)
    own, other = (next((m for m in members if kind in kinds_of(m)), None) for kind in kinds)
    if own is other:
        return old
    return {key: old[key] for key in getattr(other, "carried", ()) if key in old}


def kinds_of(member: type[BaseModel]) -> tuple[str, ...]:
    """The kinds that a class of settings stands for."""
    return get_args(member.model_fields["kind"].annotation)
