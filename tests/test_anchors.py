"""The penalties towards the reference, their gradients, and what these are in expectation."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from batches import method
from castctl.methods.anchors import Anchor, anchor_penalties
from castctl.methods.objective import Objective, TokenStreams, token_losses
from castctl.methods.surrogate import Surrogate

PENALTIES: dict[str, Callable[[float], float]] = {
    "urkl": lambda u: u * u / 2,
    "ufkl": lambda u: math.exp(-u) + u,
    "fkl": lambda u: math.exp(-u),
    "rkl": lambda u: (u + 1) * (u + 1) / 2,
}
SLOPES: dict[str, Callable[[float], float]] = {
    "urkl": lambda u: u,
    "ufkl": lambda u: 1 - math.exp(-u),
    "fkl": lambda u: -math.exp(-u),
    "rkl": lambda u: u + 1,
}
KINDS = pytest.mark.parametrize("kind", list(PENALTIES))
LOGPROBS = st.lists(st.tuples(st.floats(-12, 0), st.floats(-12, 0)), max_size=8)


def tensor(values: object) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


@KINDS
@given(pairs=LOGPROBS)
def test_penalties_and_slopes(kind: str, pairs: list[tuple[float, float]]) -> None:
    new = tensor([n for n, _ in pairs]).requires_grad_()
    penalties = anchor_penalties(kind, new, tensor([r for _, r in pairs]))
    assert penalties.dtype == torch.float64
    u = [n - r for n, r in pairs]
    np.testing.assert_allclose(penalties.detach(), [PENALTIES[kind](x) for x in u], rtol=1e-12)
    penalties.sum().backward()
    np.testing.assert_allclose(new.grad, [SLOPES[kind](x) for x in u], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("kind", "slope"), [("urkl", 0.0), ("ufkl", 0.0), ("fkl", -1.0), ("rkl", 1.0)]
)
def test_gradient_of_a_token_at_the_reference(kind: str, slope: float) -> None:
    new = tensor([-0.1, -3.0, -20.0]).requires_grad_()
    anchor_penalties(kind, new, new.detach()).sum().backward()
    assert new.grad is not None
    assert new.grad.tolist() == [slope] * 3


@pytest.mark.parametrize(("alias", "kind"), [("k2", "urkl"), ("k3", "ufkl")])
def test_the_estimators_names(alias: str, kind: str) -> None:
    assert Anchor.model_validate({"kind": alias}) == Anchor.model_validate({"kind": kind})
    assert method(name="sdpg", anchor={"kind": alias}).anchor.kind == kind
    assert method(name="sdpg", anchor={"kind": alias, "coefficient": 0.5}).anchor.coefficient == 0.5


@pytest.mark.parametrize("alias", ["k2", "k3"])
def test_they_are_k2_and_k3(alias: str) -> None:
    """Of KL(policy || reference), by r = p_ref / p_new; k3 without its -1."""
    kind = Anchor.model_validate({"kind": alias}).kind
    new, ref = tensor([-2.0, -1.0, -3.0, -6.9]), tensor([-2.0, -2.0, -0.5, -7.0])
    ratios = torch.exp(ref - new)
    k2, k3 = torch.log(ratios) ** 2 / 2, (ratios - 1) - torch.log(ratios)
    expected = k2 if alias == "k2" else k3 + 1
    np.testing.assert_allclose(anchor_penalties(kind, new, ref), expected, rtol=1e-12)


@pytest.mark.parametrize(
    ("kind", "reverse"), [("urkl", True), ("rkl", True), ("ufkl", False), ("fkl", False)]
)
@given(seed=st.integers(0, 2**32 - 1), size=st.integers(2, 6))
def test_expected_gradient_is_that_of_a_divergence(
    kind: str, reverse: bool, seed: int, size: int
) -> None:
    """Over tokens drawn from the policy: KL(p || ref) for the two R, KL(ref || p) for the two F."""
    draw = np.random.default_rng(seed)
    logits = tensor(draw.normal(size=size)).requires_grad_()
    logref = tensor(draw.normal(size=size)).log_softmax(0)
    logp = logits.log_softmax(0)
    drawn = logp.detach().exp()
    (actual,) = torch.autograd.grad((drawn * anchor_penalties(kind, logp, logref)).sum(), logits)
    logp = logits.log_softmax(0)
    p, q = (logp, logref) if reverse else (logref, logp)
    (expected,) = torch.autograd.grad((p.exp() * (p - q)).sum(), logits)
    np.testing.assert_allclose(actual, expected, rtol=1e-9, atol=1e-12)


@KINDS
def test_its_share_of_the_loss(kind: str) -> None:
    """Coefficient times penalty times scale, whatever the advantage and the loss weight."""
    new, ref, zero = tensor([-1.0, -2.0]), tensor([-1.5, -0.5]), tensor([0.0, 0.0])
    weights, scale = tensor([0.0, 3.0]), tensor([0.25, 0.5])
    streams = TokenStreams(new, zero, weights, scale, ref)
    anchor = Anchor.model_validate({"kind": kind, "coefficient": 0.1})
    objective = Objective(Surrogate(), anchor)
    losses = token_losses(objective, streams, new, zero, zero)
    penalty = PENALTIES[kind]
    np.testing.assert_allclose(losses, [0.025 * penalty(0.5), 0.05 * penalty(-1.5)], rtol=1e-12)
    assert objective.needs == {"ref_logprobs"}
    assert objective.every_token
    assert Anchor().needs == frozenset()
