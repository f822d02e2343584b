"""Settings of evaluations: of which problems, how often, and how completions are drawn."""

from __future__ import annotations

from typing import Any, Self

from pydantic import Field, PrivateAttr, field_validator, model_validator

from castctl.recipe.recommended import Family, named_sampling
from castctl.recipe.trust import CodeSection
from castctl.settings import (
    Amount,
    Count,
    PresencePenalty,
    RepetitionPenalty,
    Samples,
    Section,
)


class Task(CodeSection):
    """What is evaluated on, and when. A task's file may name a verifier, which is code, and which
    runs only beside --trust-verifier."""

    _trusted: bool = PrivateAttr(default=False)

    task: str | None = None
    """Benchmark name, file, hub id or task file (YAML) evaluated on, or `held-out`, problems of the
    data that are not trained on; when left out, `held-out`, and `embedded` on the embedded data."""
    held_out: Count = 128
    """Problems of the data that `held-out` keeps, chosen by hash; of small data about a quarter
    (ours)."""
    every: Amount = 50
    """Steps between evaluations during training; 0 evaluates only before and after."""

    @field_validator("task")
    @classmethod
    def _a_file_is_pinned(cls, task: str | None) -> str | None:
        from castctl.recipe.task import pinned

        return task and pinned(task)


class Measure(Section):
    """How many completions are drawn, and how."""

    sampling: Family | None = None
    """A model's family, sampled as its makers say; settings beside it win."""
    k: Samples = 8
    """Samples a problem."""
    temperature: float = Field(1.0, ge=0)
    """Sampling temperature; 0 is greedy and needs k = 1."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Nucleus sampling; 1 is off."""
    top_k: Amount = 0
    """As `sampling.top_k`; 0 is off."""
    min_p: float = Field(0.0, ge=0, le=1)
    """As `sampling.min_p`; 0 is off."""
    presence_penalty: PresencePenalty = 0.0
    """As `sampling.presence_penalty`; 0 is off."""
    repetition_penalty: RepetitionPenalty = 1.0
    """As `sampling.repetition_penalty`; 1 is off."""
    max_tokens: Count | None = None
    """Longest completion; `sampling.max_tokens` when left out."""
    limit: Count | None = None
    """Use only the first problems."""

    @model_validator(mode="before")
    @classmethod
    def _a_family_decides(cls, values: Any) -> Any:
        return named_sampling(values) if isinstance(values, dict) else values

    @model_validator(mode="after")
    def _samples_differ(self) -> Self:
        if self.temperature == 0 and self.k > 1:
            raise ValueError("greedy evaluation gives equal samples; set eval.k=1")
        return self


class EvalSettings(Measure, Task):
    """An evaluation."""
