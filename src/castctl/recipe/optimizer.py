"""The recipe's optimizer: AdamW, its learning rate and its schedule."""

from __future__ import annotations

import math
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from castctl.settings import Amount, Section

Decay = Annotated[float, Field(ge=0, lt=1)]


class OptimizerSettings(Section):
    lr: float = Field(1e-6, gt=0)
    """Peak learning rate of AdamW (ours; usual for full-weight RLVR)."""
    betas: tuple[Decay, Decay] = (0.9, 0.999)
    """AdamW's betas."""
    weight_decay: float = Field(0.0, ge=0)
    """AdamW's decoupled weight decay."""
    schedule: Literal["constant", "cosine", "linear"] = "constant"
    """Learning rate after the warm-up: as it is, to 0 by a half cosine, or straight to `end_lr`."""
    end_lr: float = Field(0.0, ge=0)
    """Where `linear` ends, after the last optimizer step."""
    warmup_steps: Amount = 0
    """Optimizer steps of linear warm-up."""
    warmup_share: float = Field(0.0, ge=0, lt=1)
    """The same as a share of all optimizer steps of the run, rounded up."""
    max_grad_norm: float = Field(1.0, gt=0)
    """The gradient is scaled down to this norm."""

    @model_validator(mode="after")
    def _settings_fit(self) -> Self:
        if self.end_lr and self.schedule != "linear":
            raise ValueError(
                f"schedule={self.schedule} reads no end_lr; set optimizer.schedule=linear, or "
                "leave end_lr out"
            )
        if self.end_lr >= self.lr:
            raise ValueError(f"end_lr={self.end_lr:g} is not below lr={self.lr:g}; lower it")
        if self.warmup_steps and self.warmup_share:
            raise ValueError("warmup_steps and warmup_share say the same; set one of them")
        return self

    def warmup_of(self, total_steps: int) -> int:
        """Steps of warm-up in a run of so many optimizer steps."""
        if not self.warmup_share:
            return self.warmup_steps
        return math.ceil(round(total_steps * self.warmup_share, 6))  # 7 % of 100 is 7, not 8

    @property
    def reads_total(self) -> list[str]:
        """The settings whose rates depend on how many optimizer steps there are."""
        schedule = [] if self.schedule == "constant" else [f"optimizer.schedule={self.schedule}"]
        share = self.warmup_share
        return [*schedule, *([f"optimizer.warmup_share={share:g}"] if share else [])]
