"""From rewards and signals to the streams that training reads."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from castctl.errors import UserError
from castctl.methods.groups import Groups
from castctl.methods.method import MethodSettings
from castctl.methods.schedule import START, Moment
from castctl.methods.shaping import NoShaping
from castctl.methods.signals import TokenSignals
from castctl.ragged import spread

Floats = NDArray[np.float64]
POLICY = frozenset({"policy_logprobs", "entropies"})
"""What the policy says of the completions, which training reads of all of them."""


@dataclass(frozen=True)
class Ending:
    """How completions ended: which were cut (R) at `longest`, the longest length in tokens."""

    truncated_R: NDArray[np.bool_]
    longest: int


@dataclass(frozen=True)
class Advantages:
    """One value a completion (R) or a token (N); see the `advantages` stage of the contract.

    `masks_N` is what the policy term of a token is multiplied by.
    """

    kept_R: NDArray[np.bool_]
    base_R: Floats
    masks_N: Floats
    advantages_N: Floats
    weights_N: Floats | None
    flipped_N: NDArray[np.bool_] | None
    distill_weights_N: Floats | None


def compute_advantages(
    method: MethodSettings,
    groups: Groups,
    signals: TokenSignals,
    moment: Moment = START,
    ending: Ending | None = None,
) -> Advantages:
    """Run a method's slots: overlong handling, baseline, zero-variance groups, token shaping,
    token mask, distillation weights.

    Nothing depends on anything outside a completion's own group, unless the method looks at the
    whole step: then `groups` and `signals` are all of it. A completion without a
    reward is not kept and gets 0. `ending` is needed for overlong handling alone. Raises
    `UserError` for rewards the method cannot read.
    """
    if method.binary_rewards and not groups.binary:
        raise UserError(
            f"{method.name}: rewards must be 0 or 1 to tell right from wrong; "
            "use --method grpo for graded rewards, and for sums of several (verifier.rewards)"
        )
    base_R = _base_R(method, groups, signals, moment, ending)
    masks_R = np.ones(len(groups.of_row))
    if ending is not None:
        masks_R = method.overlong.masks_R(ending.truncated_R)
    shaped = method.shaping.shape(base_R, signals, groups, moment)
    shaped = method.zero_variance.shape(shaped, base_R, groups, signals)
    distill_weights_N = method.distillation.weights_N(
        base_R, signals.offsets, moment, method.teacher.skip_tokens
    )
    if distill_weights_N is not None and signals.taught_R is not None:
        distill_weights_N = distill_weights_N * spread(signals.taught_R, signals.offsets)
    kept_R = method.zero_variance.keeps_R(groups)
    counted_N = spread(kept_R & (masks_R > 0), signals.offsets)
    masks_N = method.token_mask.weights_N(shaped.advantages_N, signals, counted_N)
    return Advantages(
        kept_R=kept_R,
        base_R=base_R,
        masks_N=masks_N * spread(masks_R, signals.offsets),
        advantages_N=shaped.advantages_N,
        weights_N=shaped.weights_N,
        flipped_N=shaped.flipped_N,
        distill_weights_N=distill_weights_N,
    )


def selective_signals(method: MethodSettings) -> frozenset[str]:
    """Signals that a method reads at completions with a base advantage alone: its shaping's, where
    no other slot reads them, groups without variance have no base advantage, and that of the others
    comes from the rewards of the group."""
    if method.zero_variance.fills or method.whole_step or method.baseline.needs:
        return frozenset()
    others = method.model_copy(update={"shaping": NoShaping()})
    return method.shaping.needs - others.needs - POLICY


def based_R(
    method: MethodSettings,
    groups: Groups,
    offsets: NDArray[np.int64],
    moment: Moment = START,
    ending: Ending | None = None,
) -> NDArray[np.bool_]:
    """Which completions (R) have a base advantage other than 0, so that shaping has something to
    shape; of a method whose `selective_signals` are some. `offsets` (R + 1) cut the tokens."""
    return _base_R(method, groups, TokenSignals(offsets), moment, ending) != 0


def _base_R(
    method: MethodSettings,
    groups: Groups,
    signals: TokenSignals,
    moment: Moment,
    ending: Ending | None,
) -> Floats:
    """Base advantages (R): the baseline's, with the zero-variance groups filled."""
    assert ending is not None or method.overlong.kind == "none", "nobody says how they ended"
    rewarded = groups
    if ending is not None:
        lengths_R = np.diff(signals.offsets)
        rewarded = method.overlong.penalised(groups, lengths_R, ending.longest)
    base_R = method.baseline.advantages_R(rewarded, signals)
    return method.zero_variance.fill_R(base_R, groups, moment)
