"""Settings of the loop, and of how its work is cut up and shared."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from castctl.settings import Amount, Count, Section, Steps


class TrainSettings(Section):
    steps: Steps = 300
    """Steps of the loop (paper: CAST's 300)."""
    prompts_per_step: Count = 64
    """Prompts of one step; each gets `sampling.n` completions (ours)."""
    part_size: Count = 16
    """Prompts in one Parquet part, the unit of work of every stage."""
    epochs: Count = 1
    """Passes over a step's completions."""
    minibatches: Count = 1
    """Optimizer steps a pass is split into, by whole groups."""
    microbatch_tokens: Count = 16384
    """Tokens of one forward pass; changes memory and time, never the gradient."""
    head_chunk_tokens: Count = 256
    """Completion tokens whose logits exist at once."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, a third more time."""
    checkpoint_every: Count = 50
    """Steps between checkpoints; the last step always has one."""
    keep: Literal["best_and_last", "all"] = "best_and_last"
    """Which checkpoints stay on disk."""
    sharding: Literal["none", "full"] = "none"
    """What each of several ranks holds of weights, gradients and moments: `none`, all of them;
    `full`, a share (FSDP2), and beside it one whole model to sample and score with. One process
    has all of it either way."""
    score_policy: Literal["auto", "always"] = "auto"
    """Whether the policy reads every completion before the update: `always`, or (`auto`) only
    where the method, several updates of a step or `reference_kl_tokens` read what it says. Without,
    the update's own pass gives the old log-probs, and the metrics tell of the tokens that train
    (`trained_...`) (ours)."""
    score_rows: Literal["auto", "all"] = "auto"
    """Which completions teacher and influence are read of: `all`, or (`auto`) only those with a
    base advantage, where the method reads no others. The metrics of the gap tell of those that
    were read, and `castctl diagnose` reads the rest (ours)."""
    reference_kl_tokens: Amount = 0
    """Completion tokens of each step that the initial policy reads too, to tell in the metrics how
    far the policy has moved (`kl_reference`); nothing trains on it. 0 is none (ours)."""
    rank_timeout: float = Field(1800, gt=0)
    """Seconds that ranks wait for one that neither comes nor gets on (ours; torch's)."""
    warn_after_zero_rewards: Count = 5
    """Warn when so many steps in a row earned no reward above 0 (ours)."""
