"""Under which prompt the importance ratio is taken."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from castctl.settings import Count, Section


class NoConditioning(Section):
    """The ratio of the bare prompt's completion."""

    kind: Literal["none"] = "none"
    """`none`: the ratio under the bare prompt (paper: GRPO's)."""
    needs: ClassVar[frozenset[str]] = frozenset()
    binary_rewards: ClassVar[bool] = False
    old_logprobs: ClassVar[str] = "policy_logprobs"
    """Signal with l_old of the ratio."""
    prompts: ClassVar[str | None] = None
    """Signal with the prompts of the ratio; None is the rollouts' own."""


class Bilateral(Section):
    """Bilateral context conditioning (BICC, arXiv 2603.13134): new and old policy both read a
    correct completion after the group's wrong ones, and a wrong one after the correct ones."""

    kind: Literal["bilateral"] = "bilateral"
    """`bilateral`: the ratio after the group's opposite completions (paper)."""
    needs: ClassVar[frozenset[str]] = frozenset(
        {"policy_logprobs", "bilateral_logprobs", "bilateral_prompt_token_ids"}
    )
    binary_rewards: ClassVar[bool] = True
    old_logprobs: ClassVar[str] = "bilateral_logprobs"
    prompts: ClassVar[str | None] = "bilateral_prompt_token_ids"

    share: float = Field(0.4, gt=0, lt=1)
    """Most of (context - prompt - completion) that the opposite completions fill (paper)."""
    context_tokens: Count | None = None
    """The context; the model's longest where left out."""


Conditioning = Annotated[NoConditioning | Bilateral, Field(discriminator="kind")]
