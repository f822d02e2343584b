"""Settings of the verifier: what a completion is worth, and the processes that find out."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, model_validator

from castctl.recipe.trust import CodeSection
from castctl.settings import Processes, Section

Share = Annotated[float, Field(ge=0, le=1)]


class Workers(Section):
    """The processes that verify."""

    workers: Processes = 2
    """Worker processes."""
    timeout: float = Field(5.0, gt=0, le=86_400)
    """Seconds after which a worker is killed and the verdict is `timeout`."""
    memory_gb: float = Field(2.0, gt=0, le=10_000)
    """Address space of a worker, in GiB."""
    max_error_share: Share = 0.05
    """Stop the stage when more than this share of the verdicts is `error` (ours)."""


class Grading(CodeSection):
    """What a completion is worth."""

    function: str | None = None
    """Your own verifier: `file.py:function`, or the name of a `castctl.verifiers` entry point; in a
    file, only beside --trust-verifier."""
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
