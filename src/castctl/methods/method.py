"""A method is a choice in a few independent slots; a name is a preset of them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from castctl.methods.baselines import Baseline, ZeroBase, ZeroVariance
from castctl.methods.cast import CastShaping
from castctl.methods.shaping import NoShaping
from castctl.methods.surrogate import Surrogate
from castctl.settings import Section

Shaping = Annotated[NoShaping | CastShaping, Field(discriminator="kind")]

PRESETS: dict[str, dict[str, Any]] = {
    "grpo": {},
    "cast": {
        "zero_variance": {"kind": "signed"},
        "shaping": {"kind": "cast"},
        "teacher": {"kind": "snapshot"},
        "surrogate": {"clip_high": 0.28, "aggregation": "token_mean"},
    },
}
"""Settings a name stands for, where they differ from the class defaults."""

LEFT_OPEN = {"cast": ("teacher", "surrogate")}
"""Slots that the paper of a name leaves open, so that what its preset says there is ours."""

SUMMARIES = {
    "grpo": "Group-relative policy optimisation (arXiv 2402.03300)",
    "cast": "Clipped asymmetric self-teaching with advantage flipping (arXiv 2606.00172)",
}


class Teacher(Section):
    """Which stop-gradient copy of the policy scores the completions a second time."""

    kind: Literal["none", "snapshot", "ema", "initial", "current"] = "none"
    """`snapshot`: the policy of the last refresh; `ema`: an exponential average; `initial`: the
    policy of step 0; `current`: the policy itself, whose gap is zero. CAST's paper leaves the
    choice open."""
    every: int = Field(10, ge=1)
    """Steps between refreshes of a snapshot (ours)."""
    decay: float = Field(0.99, ge=0, lt=1)
    """Share of the old average kept a step by `ema` (ours)."""

    @property
    def is_copy(self) -> bool:
        """Whether it has weights of its own."""
        return self.kind in ("snapshot", "ema", "initial")


class MethodSettings(Section):
    """The slots. `name` fills every slot that the recipe leaves out."""

    name: str = "grpo"
    """Preset: `grpo` or `cast`."""
    baseline: Baseline = Baseline()
    """How a completion's reward is compared with its group's."""
    zero_variance: ZeroVariance = ZeroBase()
    """What groups teach whose rewards are all equal."""
    shaping: Shaping = NoShaping()
    """What turns a completion's advantage into its tokens'."""
    teacher: Teacher = Teacher()
    """Which copy of the policy scores the completions a second time."""
    surrogate: Surrogate = Surrogate()
    """The loss of a token, and how tokens add up."""
    importance_cap: float | None = Field(2.0, gt=0)
    """Cap C of the truncated importance correction between sampler and scorer; null is off
    (ours)."""

    @model_validator(mode="before")
    @classmethod
    def _fill_from_preset(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        name = given.get("name", "grpo")
        if not isinstance(name, str) or name not in PRESETS:
            raise ValueError(f"no method {name!r}; there are {', '.join(PRESETS)}")
        return merged(PRESETS[name], given)

    @model_validator(mode="after")
    def _shaping_has_its_teacher(self) -> MethodSettings:
        if "teacher_logprobs" in self.needs and self.teacher.kind == "none":
            raise ValueError(
                f"shaping {self.shaping.kind} reads a teacher's log-probs; "
                "set method.teacher.kind to snapshot, ema, initial or current"
            )
        return self

    @property
    def needs(self) -> frozenset[str]:
        """Signals that shaping or training with this method reads."""
        return frozenset({"policy_logprobs"}) | self.shaping.needs | self.surrogate.needs


def merged(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """`base` overridden by `over`, section by section; another `kind` starts a section afresh."""
    result = dict(base)
    for key, value in over.items():
        old = result.get(key)
        if isinstance(old, dict) and isinstance(value, dict):
            same_kind = "kind" not in value or value["kind"] == old.get("kind", value["kind"])
            result[key] = merged(old, value) if same_kind else value
        else:
            result[key] = value
    return result
