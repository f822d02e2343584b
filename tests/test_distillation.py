"""Distillation: its settings, what each token weighs, and its place in the loss."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor

from batches import Batch, advantages_of, batches, close, grpo, method
from castctl.errors import UserError
from castctl.methods.distillation import Distillation, NoDistillation
from castctl.methods.divergence import Divergence
from castctl.methods.objective import Objective, TokenStreams, token_losses
from castctl.methods.schedule import Moment, warmup_and_decay
from castctl.methods.surrogate import Surrogate, token_scales

SILENT = Surrogate(kind="none")


def tensor(values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def reads(**settings: Any) -> Distillation:
    return Distillation.model_validate(settings)


# Settings


@pytest.mark.parametrize(
    ("settings", "spec"),
    [
        ({}, Divergence(0.5)),
        ({"beta": 0.0}, Divergence(0.0)),
        ({"beta": 1.0}, Divergence(1.0)),
        ({"kind": "forward_kl"}, Divergence(0.0)),
        ({"kind": "reverse_kl"}, Divergence(1.0)),
        ({"kind": "forward_kl", "beta": 0.7}, Divergence(0.0)),
        ({"tokens": "top_k"}, Divergence(0.5, 100)),
        ({"tokens": "top_k", "top_k": 7}, Divergence(0.5, 7)),
        ({"tokens": "top_k_tail", "top_k": 7}, Divergence(0.5, 7, tail=True)),
        ({"clip": 0.05}, Divergence(0.5, clip=0.05)),
        ({"tokens": "top_k", "clip": 0.1}, Divergence(0.5, 100, clip=0.1)),
        ({"kind": "reverse_kl", "tokens": "sampled"}, None),
        ({"beta": 1.0, "tokens": "sampled"}, None),
    ],
)
def test_what_is_computed_over_the_vocabulary(
    settings: dict[str, Any], spec: Divergence | None
) -> None:
    """0 is KL(teacher || student), 1 KL(student || teacher)."""
    assert reads(**settings).divergence_spec == spec
    sampled = {"policy_logprobs", "teacher_logprobs"}
    assert reads(**settings).needs == (sampled if spec is None else {"teacher_prompt_token_ids"})


@pytest.mark.parametrize(
    ("settings", "mend"),
    [
        ({"tokens": "sampled"}, {"kind": "reverse_kl"}),
        ({"tokens": "sampled"}, {"tokens": "full"}),
        ({"tokens": "sampled", "kind": "forward_kl"}, {"kind": "reverse_kl"}),
    ],
)
def test_the_sampled_token_gives_no_other_divergence(
    settings: dict[str, Any], mend: dict[str, Any]
) -> None:
    with pytest.raises(ValidationError, match="gives the reverse KL; set") as refused:
        reads(**settings)
    assert next(iter(mend.values())) in str(refused.value)
    reads(**{**settings, **mend})


def test_the_sampled_token_has_no_divergence_to_bound() -> None:
    settings = {"kind": "reverse_kl", "tokens": "sampled", "clip": 0.05}
    with pytest.raises(ValidationError, match="clip bounds the terms of a divergence"):
        reads(**settings)
    reads(**{**settings, "clip": None})
    reads(**{**settings, "tokens": "full"})


def test_no_distillation() -> None:
    off = NoDistillation()
    assert off.weights_N(np.ones(2), np.array([0, 1, 2]), Moment(), 0) is None
    assert off.divergence_spec is None
    assert off.needs == frozenset()


# Schedule

LENGTHS = st.integers(0, 60)


@given(st.integers(0, 300), st.integers(0, 300), LENGTHS, LENGTHS)
def test_schedule(step: int, left: int, warmup: int, decay: int) -> None:
    """min(1, k / T_warm) * min(1, (T - k) / T_decay); a length of 0 makes its factor 1."""
    expected = 1.0
    if warmup and step < warmup:
        expected *= step / warmup
    if decay and left < decay:
        expected *= left / decay
    factor = warmup_and_decay(Moment(step, step + left), warmup, decay)
    assert factor == pytest.approx(expected, abs=1e-15)


@pytest.mark.parametrize(
    ("step", "warmup", "decay", "factor"),
    [
        (0, 0, 0, 1.0),
        (0, 50, 100, 0.0),
        (25, 50, 100, 0.5),
        (50, 50, 100, 1.0),
        (300, 50, 100, 1.0),
        (350, 50, 100, 0.5),
        (399, 50, 100, 0.01),
        (399, 50, 0, 1.0),
        (399, 0, 0, 1.0),
        (0, 0, 100, 1.0),
        (400, 0, 100, 0.0),
        (500, 0, 100, 0.0),
        (100, 200, 600, 0.25),
    ],
)
def test_corners_of_the_schedule(step: int, warmup: int, decay: int, factor: float) -> None:
    """Of a run of 400 steps; the last one is step 399."""
    assert warmup_and_decay(Moment(step, 400), warmup, decay) == pytest.approx(factor, abs=1e-15)


def test_a_decay_needs_to_know_the_end() -> None:
    assert warmup_and_decay(Moment(5), 10, 0) == 0.5
    with pytest.raises(UserError, match=r"set train\.steps") as refused:
        warmup_and_decay(Moment(5), 0, 10)
    assert "\n" not in str(refused.value)


# Weights


@given(
    batches(),
    st.booleans(),
    st.sampled_from([0, 1, 3, 20]),
    st.sampled_from([0.0, 0.001, 1.0]),
    st.integers(0, 9),
)
def test_weights(batch: Batch, gate: bool, skip: int, coefficient: float, step: int) -> None:
    settings = {"gate": gate, "coefficient": coefficient, "warmup_steps": 4, "decay_steps": 2}
    result = advantages_of(
        batch,
        Moment(step, 10),
        teacher={"kind": "current", "context": "answer", "skip_tokens": skip},
        distillation={"kind": "reverse_kl", **settings},
    )
    beta = coefficient * min(1, step / 4) * min(1, (10 - step) / 2)
    expected = [
        0.0 if t < skip or (gate and base <= 0) else beta
        for base, gaps in zip(grpo(batch), batch.gaps, strict=True)
        for t in range(len(gaps))
    ]
    close(result.distill_weights_N, expected)
    close(result.advantages_N, advantages_of(batch).advantages_N.tolist())


@given(batches())
def test_sdpg_distils_right_completions_of_mixed_groups(batch: Batch) -> None:
    weights = advantages_of(batch, name="sdpg").distill_weights_N
    gate = [
        0.001 if r == 1 and batch.kind(row) == "mixed" else 0.0
        for row, r in enumerate(batch.rewards)
    ]
    close(weights, batch.per_token(gate))


@given(batches())
def test_opsd_distils_everything_and_teaches_nothing_else(batch: Batch) -> None:
    result = advantages_of(batch, name="opsd")
    assert result.distill_weights_N is not None
    assert (result.distill_weights_N == 1).all()
    assert not result.advantages_N.any()


# The loss


def test_divergences_weighed() -> None:
    divergence = tensor([0.01, 0.05, 0.9, 3.0]).requires_grad_()
    one, zero = torch.ones(4, dtype=torch.float64), torch.zeros(4, dtype=torch.float64)
    weights, scale = tensor([1.0, 0.5, 0.0, 0.5]), tensor([0.25, 0.25, 0.25, 0.5])
    # The loss weight is the policy term's alone.
    streams = TokenStreams(zero, one, zero, scale, distill_weights=weights)
    # A clip bounds terms over the vocabulary, which the output head has summed already.
    objective = Objective(SILENT, distillation=reads(clip=0.05))
    losses = token_losses(objective, streams, zero, zero, divergence)
    slope = np.array([0.25, 0.125, 0.0, 0.25])
    np.testing.assert_allclose(losses.detach(), slope * divergence.detach().numpy(), rtol=1e-12)
    losses.sum().backward()
    np.testing.assert_allclose(divergence.grad, slope)


@given(st.integers(0, 2**32 - 1), st.integers(2, 8))
def test_the_sampled_token_gives_the_gradient_of_the_reverse_kl(seed: int, size: int) -> None:
    """Summed over the vocabulary with the probabilities that the tokens are drawn with."""
    draw = np.random.default_rng(seed)
    logits = tensor(draw.normal(0, 2, size)).requires_grad_()
    teacher = tensor(draw.normal(0, 2, size)).log_softmax(0)

    logp = logits.log_softmax(0)
    (exact,) = torch.autograd.grad((logp.exp() * (logp - teacher)).sum(), logits)

    logp = logits.log_softmax(0)
    old, zero = logp.detach(), torch.zeros(size, dtype=torch.float64)
    streams = TokenStreams(
        old, zero, zero + 1, old.exp(), teacher_logprobs=teacher, distill_weights=zero + 1
    )
    objective = Objective(SILENT, distillation=reads(kind="reverse_kl", tokens="sampled"))
    losses = token_losses(objective, streams, logp, zero, zero * math.nan)
    (sampled,) = torch.autograd.grad(losses.sum(), logits)
    np.testing.assert_allclose(sampled, exact, rtol=1e-9, atol=1e-12)


@given(st.floats(-6, 0), st.floats(-6, 0), st.floats(-6, 0))
def test_the_sampled_token_is_a_policy_gradient(new: float, old: float, teacher: float) -> None:
    """With A = l_T - l_old and the ratio unclipped."""
    zero, one = tensor([0.0]), tensor([1.0])
    streams = TokenStreams(
        tensor([old]), zero, one, one, teacher_logprobs=tensor([teacher]), distill_weights=one * 0.5
    )
    objective = Objective(SILENT, distillation=reads(kind="reverse_kl", tokens="sampled"))
    loss = token_losses(objective, streams, tensor([new]), zero, zero)
    expected = -0.5 * (teacher - old) * math.exp(new - old)
    assert loss.item() == pytest.approx(expected, rel=1e-12, abs=1e-15)


@pytest.mark.parametrize("name", ["sdpg-urkl", "sdpg-ufkl"])
@given(batch=batches(), seed=st.integers(0, 2**32 - 1))
def test_the_loss_of_sdpg(name: str, batch: Batch, seed: int) -> None:
    """L_out + beta L_OPD+ + alpha L_K, each over all kept tokens, those of the gate included."""
    settings = method(name=name)
    result = advantages_of(batch, name=name)
    lengths = np.diff(batch.offsets)
    kept_N = np.repeat(result.kept_R, lengths)
    count = int(kept_N.sum())
    draw = np.random.default_rng(seed)
    new, old, ref = draw.uniform(-4, 0, (3, count))
    divergence = draw.uniform(0, 2, count)
    streams = TokenStreams(
        tensor(old),
        tensor(result.advantages_N[kept_N]),
        torch.ones(count, dtype=torch.float64),
        tensor(token_scales(settings.surrogate.aggregation, lengths[result.kept_R], 9)),
        ref_logprobs=tensor(ref),
        distill_weights=tensor(result.distill_weights_N[kept_N]),
    )
    losses = token_losses(
        settings.objective, streams, tensor(new), tensor(old * 0), tensor(divergence)
    )
    base_N = np.array(batch.per_token(grpo(batch)))[kept_N]
    total = 0.0
    for t in range(count):
        u = new[t] - ref[t]
        penalty = u * u / 2 if name == "sdpg-urkl" else math.exp(-u) + u
        distilled = divergence[t] if base_N[t] > 0 else 0.0
        total += (-base_N[t] * new[t] + 0.001 * distilled + 0.001 * penalty) / count
    assert losses.sum().item() == pytest.approx(total, rel=1e-9, abs=1e-12)
