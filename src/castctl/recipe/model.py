"""Settings of the model in training, and of the adapters that may train in its place."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from castctl.recipe.address import separated
from castctl.recipe.trust import CodeSection
from castctl.settings import Count, Section

LAYER = re.compile(r"[A-Za-z_][A-Za-z0-9_.]*")
"""The name of a layer."""


class LoraSettings(Section):
    """Low-rank adapters of linear layers, W x + alpha/r B A x (arXiv 2106.09685, section 4.1)."""

    r: Annotated[int, Field(ge=1, le=4096)] = 64
    """Rank of B A (ours; public scripts of CAST have it too)."""
    alpha: Count = 128
    """Their product counts alpha / r times (ours; public scripts of CAST have it too)."""
    targets: Literal["all-linear"] | tuple[str, ...] = "all-linear"
    """Linear layers that get one, by the last part of their names, such as [q_proj, v_proj];
    `all-linear` is every one but the output head (ours)."""

    @field_validator("targets")
    @classmethod
    def _targets_are_names(cls, targets: Any) -> Any:
        if targets != "all-linear" and not (targets and all(map(LAYER.fullmatch, targets))):
            raise ValueError("write all-linear, or a list of layers such as [q_proj, v_proj]")
        return targets


class ModelSettings(CodeSection):
    path: str = "embedded"
    """Hub id (owner/name@REVISION too), folder in Hugging Face format, or `embedded`, the tiny
    model castctl makes itself."""
    revision: str | None = None
    """Hub revision; the newest when left out."""
    lora: LoraSettings | None = None
    """Train adapters of the linear layers, and leave the model's own weights as they are; null
    trains all weights."""
    adapter: str | None = None
    """Folder of an adapter in peft's format that the model begins with; it trains on, with the
    rank, alpha and targets that it has."""
    device: str = "auto"
    """`auto` (CUDA, then CPU), `cpu`, `cuda` or `cuda:N`."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Arithmetic of the passes, `auto` being bfloat16 on a GPU."""
    weights: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of linear layers that do not train, for passes in bfloat16, whose numbers stay the same to
    the last bit; `auto` is bfloat16 for such passes on a GPU. All other weights are float32."""
    attention: Literal["segments", "fused"] = "segments"
    """Of packed rows on a GPU: a call of PyTorch's SDPA for each segment, or one kernel for all,
    which is checked against them when the model is loaded (ours). The CPU has the segments."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model; in a file, only beside --trust-remote-code."""

    @model_validator(mode="before")
    @classmethod
    def _a_revision_stands_behind_the_path(cls, values: Any) -> Any:
        return separated(values)

    @field_validator("device")
    @classmethod
    def _device_is_known(cls, name: str) -> str:
        if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", name):
            raise ValueError(f"no device {name!r}; use auto, cpu, cuda or cuda:N")
        return name

    @model_validator(mode="after")
    def _one_adapter(self) -> Self:
        if self.lora is not None and self.adapter is not None:
            raise ValueError(
                "the adapter in model.adapter has a rank, alpha and targets of its own; leave "
                "model.lora out"
            )
        return self

    @property
    def adapts(self) -> bool:
        """Whether adapters train, and not the model's own weights."""
        return self.lora is not None or self.adapter is not None
