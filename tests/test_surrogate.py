"""The loss of a token, its gradient, and its share of a step's loss, in float64."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from castctl.methods.anchors import Anchor
from castctl.methods.objective import Objective, TokenStreams, token_losses
from castctl.methods.surrogate import Surrogate, token_scales

CLIPS = st.builds(
    Surrogate,
    clip_low=st.sampled_from([0.0, 0.2, 1.0]),
    clip_high=st.sampled_from([0.0, 0.2, 0.28]),
    dual_clip=st.sampled_from([None, 3.0, 10.0]),
    entropy_bonus=st.sampled_from([0.0, 0.01]),
)
OTHERS = st.builds(
    Surrogate,
    kind=st.sampled_from(["reinforce", "none"]),
    entropy_bonus=st.sampled_from([0.0, 0.01]),
)
ANCHORS = st.builds(
    Anchor,
    kind=st.sampled_from(["none", "urkl", "ufkl", "fkl", "rkl"]),
    coefficient=st.sampled_from([0.001, 0.5]),
)
OBJECTIVES = st.builds(Objective, CLIPS | OTHERS, ANCHORS)


def tensor(values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


class Tokens:
    """Random tokens; log-ratios are kept away from the corners of every clip above."""

    def __init__(self, seed: int, count: int) -> None:
        draw = np.random.default_rng(seed)
        self.new = draw.uniform(-6, -0.1, count)
        # Corners: the logarithms of 0.8, 1, 1.2, 1.28, 3 and 10.
        ratios = [-3.0, -0.5, -0.1, 0.1, 0.22, 0.6, 1.6, 4.0]
        self.old = self.new - draw.choice(ratios, count) - draw.uniform(-0.02, 0.02, count)
        self.ref = self.new + draw.normal(0, 0.5, count)
        self.advantage = draw.choice([0.0, 1.0], count, p=[0.2, 0.8]) * draw.normal(0, 1, count)
        self.loss_weight = draw.uniform(0, 2, count)
        self.scale = draw.uniform(0.01, 1, count)
        self.entropy = draw.uniform(0, 3, count)

    def streams(self, ref: bool = True) -> TokenStreams:
        return TokenStreams(
            old_logprobs=tensor(self.old),
            advantages=tensor(self.advantage),
            loss_weights=tensor(self.loss_weight),
            scale=tensor(self.scale),
            ref_logprobs=tensor(self.ref) if ref else None,
        )


TOKENS = st.builds(Tokens, st.integers(0, 2**32 - 1), st.integers(0, 12))


# The plain reading


def plain_policy_loss(surrogate: Surrogate, new: float, old: float, a: float) -> float:
    if surrogate.kind != "clip":
        return -a * new if surrogate.kind == "reinforce" else 0.0
    ratio = math.exp(new - old)
    clipped = min(max(ratio, 1 - surrogate.clip_low), 1 + surrogate.clip_high)
    gain = min(ratio * a, clipped * a)
    if surrogate.dual_clip is not None and a < 0:
        gain = max(gain, surrogate.dual_clip * a)
    return -gain


def plain_loss(objective: Objective, tokens: Tokens, t: int) -> float:
    surrogate, anchor = objective.surrogate, objective.anchor
    loss = plain_policy_loss(surrogate, tokens.new[t], tokens.old[t], tokens.advantage[t])
    u = tokens.new[t] - tokens.ref[t]
    penalty = {
        "none": 0.0,
        "urkl": 0.5 * u**2,
        "ufkl": math.exp(-u) + u,
        "fkl": math.exp(-u),
        "rkl": 0.5 * (u + 1) ** 2,
    }[anchor.kind]
    total = loss * tokens.loss_weight[t] + anchor.coefficient * penalty
    return (total - surrogate.entropy_bonus * tokens.entropy[t]) * tokens.scale[t]


# Token losses


def losses_of(objective: Objective, streams: TokenStreams, new: Tensor, entropy: Tensor) -> Tensor:
    """Without a distillation no divergence is read."""
    return token_losses(objective, streams, new, entropy, torch.full_like(new, math.nan))


@given(OBJECTIVES, TOKENS)
def test_token_losses(objective: Objective, tokens: Tokens) -> None:
    streams = tokens.streams(ref=objective.anchor.kind != "none")
    losses = losses_of(objective, streams, tensor(tokens.new), tensor(tokens.entropy))
    assert losses.dtype == torch.float64
    expected = [plain_loss(objective, tokens, t) for t in range(len(tokens.new))]
    np.testing.assert_allclose(losses, expected, rtol=1e-12, atol=1e-14)


@settings(max_examples=40)
@given(OBJECTIVES, TOKENS.filter(lambda tokens: len(tokens.new) > 0))
def test_gradients(objective: Objective, tokens: Tokens) -> None:
    def losses(logprobs: Tensor, entropies: Tensor) -> Tensor:
        return losses_of(objective, tokens.streams(), logprobs, entropies)

    new = tensor(tokens.new).requires_grad_()
    entropies = tensor(tokens.entropy).requires_grad_()
    assert torch.autograd.gradcheck(losses, (new, entropies))


@given(CLIPS | st.just(Surrogate(kind="reinforce")), TOKENS)
def test_gradient_at_a_ratio_of_one_is_the_advantage(surrogate: Surrogate, tokens: Tokens) -> None:
    """REINFORCE's is so everywhere."""
    if surrogate.kind == "clip":
        if 0.0 in (surrogate.clip_low, surrogate.clip_high):
            return  # the corner itself
        tokens.old = tokens.new
    new = tensor(tokens.new).requires_grad_()
    losses_of(Objective(surrogate), tokens.streams(), new, tensor(tokens.entropy)).sum().backward()
    expected = -tokens.advantage * tokens.loss_weight * tokens.scale
    np.testing.assert_allclose(new.grad, expected, rtol=1e-12, atol=1e-15)


@given(TOKENS)
def test_reinforce_reads_no_old_policy(tokens: Tokens) -> None:
    new, advantages = tensor(tokens.new), tensor(tokens.advantage)
    one = torch.ones_like(new)
    streams = TokenStreams(new * math.nan, advantages, one, one)
    losses = Surrogate(kind="reinforce").losses(streams, new)
    np.testing.assert_allclose(losses, -tokens.advantage * tokens.new, rtol=1e-12)


@pytest.mark.parametrize("advantage", [1.0, -1.0])
def test_a_ratio_beyond_all_bounds_gives_numbers(advantage: float) -> None:
    """In float32 e^100 is infinite, and a gradient through it is NaN."""
    new = torch.tensor([-0.5], dtype=torch.float32, requires_grad=True)
    old, a = torch.tensor([-100.5]), torch.tensor([advantage])
    loss = Surrogate().losses(TokenStreams(old, a, a.abs(), a.abs()), new)
    loss.sum().backward()
    assert torch.isfinite(loss).all() and torch.isfinite(new.grad).all()


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "gradient"),
    [
        # clip 0.2 / 0.28, dual clip 10; the gradient is by l_new
        (1.25, 1.0, -1.25, -1.25),
        (1.5, 1.0, -1.28, 0.0),
        (0.5, 1.0, -0.5, -0.5),
        (0.5, -1.0, 0.8, 0.0),
        (1.5, -1.0, 1.5, 1.5),
        (9.0, -2.0, 18.0, 18.0),
        (11.0, -2.0, 20.0, 0.0),
        (11.0, 2.0, -2.56, 0.0),
        (0.9, 0.0, 0.0, 0.0),
    ],
)
def test_clipping(ratio: float, advantage: float, loss: float, gradient: float) -> None:
    new = tensor([math.log(ratio) - 3]).requires_grad_()
    streams = TokenStreams(tensor([-3.0]), tensor([advantage]), tensor([1.0]), tensor([1.0]))
    objective = Objective(Surrogate(clip_high=0.28, dual_clip=10.0))
    value = losses_of(objective, streams, new, tensor([1.0]))
    value.sum().backward()
    assert value.item() == pytest.approx(loss, abs=1e-12)
    assert new.grad.item() == pytest.approx(gradient, abs=1e-12)


@given(OBJECTIVES)
def test_every_token_says_whether_zero_advantages_train(objective: Objective) -> None:
    new = tensor([-1.0]).requires_grad_()
    entropy = tensor([1.0]).requires_grad_()
    one, zero = tensor([1.0]), tensor([0.0])
    streams = TokenStreams(tensor([-1.1]), zero, one, one, tensor([-2.5]))
    losses = losses_of(objective, streams, new, entropy)
    moved = False
    if losses.requires_grad:
        losses.sum().backward()
        moved = any(leaf.grad is not None and bool(leaf.grad.any()) for leaf in (new, entropy))
    assert objective.every_token == moved
    assert objective.needs == ({"ref_logprobs"} if objective.anchor.kind != "none" else set())


def test_streams_are_cut_alike() -> None:
    tokens = Tokens(0, 10)
    objective = Objective(Surrogate(entropy_bonus=0.1), Anchor(kind="ufkl"))
    new, entropy = tensor(tokens.new), tensor(tokens.entropy)
    whole = losses_of(objective, tokens.streams(), new, entropy)
    part = slice(3, 7)
    cut = losses_of(objective, tokens.streams()[part], new[part], entropy[part])
    assert (cut == whole[part]).all()


# Shares of the step's loss

LENGTHS = st.lists(st.sampled_from([0, 1, 1, 2, 7, 20]), max_size=8)


@given(LENGTHS, st.sampled_from(["token_mean", "sequence_mean", "constant"]))
def test_token_scales(lengths: list[int], aggregation: str) -> None:
    expected = []
    for length in lengths:
        for _ in range(length):
            expected.append(
                {
                    "token_mean": 1 / sum(lengths),
                    "sequence_mean": 1 / length / len(lengths),
                    "constant": 1 / 20 / len(lengths),
                }[aggregation]
            )
    scales = token_scales(aggregation, np.array(lengths, np.int64), 20)
    assert scales.dtype == np.float64
    np.testing.assert_allclose(scales, expected, rtol=1e-12)


@given(LENGTHS)
def test_scales_sum_to_the_share_of_what_was_written(lengths: list[int]) -> None:
    lengths_R = np.array(lengths, np.int64)
    written = sum(length > 0 for length in lengths)
    if not written:
        return
    rows = len(lengths)
    assert token_scales("token_mean", lengths_R, 20).sum() == pytest.approx(1)
    assert token_scales("sequence_mean", lengths_R, 20).sum() == pytest.approx(written / rows)
    assert token_scales("constant", lengths_R, 20).sum() == pytest.approx(sum(lengths) / 20 / rows)
