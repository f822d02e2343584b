"""Distillation from a teacher's next-token distributions, as a loss beside the policy's
(OPSD, arXiv 2601.18734; SDPG, arXiv 2606.04036)."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from castctl.methods.divergence import Divergence
from castctl.methods.schedule import Moment, warmup_and_decay
from castctl.ragged import Ints, spread
from castctl.settings import Amount, Count, Section


class NoDistillation(Section):
    """The teacher's distributions are no part of the loss."""

    kind: Literal["none"] = "none"
    """`none`: no distillation loss (paper: GRPO's)."""
    needs: ClassVar[frozenset[str]] = frozenset()
    binary_rewards: ClassVar[bool] = False
    decay_steps: ClassVar[int] = 0

    def weights_N(
        self, base_R: NDArray[np.float64], offsets: Ints, moment: Moment, skip_tokens: int
    ) -> NDArray[np.float64] | None:
        """None: no token is distilled."""
        return None

    @property
    def divergence_spec(self) -> Divergence | None:
        """None: nothing to compute over the vocabulary."""
        return None


class Distillation(Section):
    """Divergence between teacher q and student p at every token of the student's completions."""

    kind: Literal["jsd", "forward_kl", "reverse_kl"] = "jsd"
    """`jsd`: beta KL(q || m) + (1 - beta) KL(p || m) with m = beta q + (1 - beta) p, OPSD;
    `forward_kl`: KL(q || p); `reverse_kl`: KL(p || q), SDPG (paper)."""
    beta: float = Field(0.5, ge=0, le=1)
    """Mixture of `jsd`: 0 is defined as KL(q || p), 1 as KL(p || q) (paper: OPSD's)."""
    tokens: Literal["full", "top_k", "top_k_tail", "sampled"] = "full"
    """What it is taken over: the `full` vocabulary; the teacher's `top_k`, both sides renormalised;
    those and the rest as one more; or the `sampled` token, a policy gradient of the reverse KL
    (paper)."""
    top_k: Count = 100
    """How many tokens `top_k` and `top_k_tail` take (ours)."""
    coefficient: float = Field(1.0, ge=0)
    """Weight in the loss, whose tokens are averaged as `surrogate.aggregation` says (ours)."""
    warmup_steps: Amount = 0
    """Steps over which the weight rises from 0; 0 is at once (paper: SDPG's script)."""
    decay_steps: Amount = 0
    """Last steps over which it falls to 0; 0 is never (paper: SDPG's script)."""
    gate: bool = False
    """Only completions with a base advantage above 0 are distilled, as in SDPG's paper; the
    denominator is all tokens (ours)."""
    clip: float | None = Field(None, gt=0)
    """Upper bound, in nats, of each vocabulary entry's term of a token's divergence, before the
    terms are summed: an entry beyond it has no gradient, the token's others keep theirs. null is
    off; OPSD's released code has 0.05 (ours)."""

    @model_validator(mode="after")
    def _sampled_is_a_reverse_kl(self) -> Distillation:
        if self.tokens == "sampled" and self.mixture != 1:
            raise ValueError(
                "the sampled token alone gives the reverse KL; set method.distillation.kind to "
                "reverse_kl, or tokens to full"
            )
        if self.tokens == "sampled" and self.clip is not None:
            raise ValueError(
                "clip bounds the terms of a divergence, and the sampled token alone has none; set "
                "method.distillation.clip=null, or tokens to full"
            )
        return self

    @property
    def mixture(self) -> float:
        """beta of the generalised JSD."""
        return {"forward_kl": 0.0, "reverse_kl": 1.0}.get(self.kind, self.beta)

    @property
    def binary_rewards(self) -> bool:
        """Whether rewards must be 0 or 1, as the gate reads right and wrong off them."""
        return self.gate

    @property
    def needs(self) -> frozenset[str]:
        """Signals that training reads: the teacher itself is asked again but for `sampled`."""
        if self.tokens == "sampled":
            return frozenset({"policy_logprobs", "teacher_logprobs"})
        return frozenset({"teacher_prompt_token_ids"})

    @property
    def divergence_spec(self) -> Divergence | None:
        """What the output head computes; None where the sampled token is enough."""
        if self.tokens == "sampled":
            return None
        top_k = None if self.tokens == "full" else self.top_k
        return Divergence(self.mixture, top_k, tail=self.tokens == "top_k_tail", clip=self.clip)

    def weights_N(
        self, base_R: NDArray[np.float64], offsets: Ints, moment: Moment, skip_tokens: int
    ) -> NDArray[np.float64] | None:
        """Weight of each token's divergence (N): coefficient x schedule x gate, 0 at the first
        `skip_tokens` of each completion."""
        strength = self.coefficient * warmup_and_decay(moment, self.warmup_steps, self.decay_steps)
        gate_R = base_R > 0 if self.gate else np.ones(len(base_R), np.bool_)
        index_N = np.arange(offsets[-1]) - spread(np.asarray(offsets[:-1]), offsets)
        return strength * spread(gate_R, offsets) * (index_N >= skip_tokens)


DistillationLoss = Annotated[NoDistillation | Distillation, Field(discriminator="kind")]
