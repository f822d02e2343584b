"""Ratios of completions, of weights, by divergence and through a gate: one update of each against
plain autograd over all logits, in float64."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from castctl.errors import UserError
from castctl.methods import MethodSettings
from castctl.methods.dppo import Dppo, binary_kl, binary_tv
from castctl.methods.objective import TokenStreams
from castctl.methods.sapo import Sapo
from castctl.models.policy import FullWeights
from castctl.ragged import offsets_of
from castctl.recipe.optimizer import OptimizerSettings
from castctl.recipe.recipe import Recipe
from castctl.stages.train import update as updates
from castctl.stages.train.batch import TrainBatch
from castctl.stages.train.optimizer import Optimizer
from castctl.stages.train.update import UpdateStats, update
from models import plain, plain_logits, random_ids, tiny

# float64 is for tests alone: autocast steps aside, and says so.
pytestmark = pytest.mark.filterwarnings("ignore:In CPU autocast")

LENGTHS = [5, 9, 3, 1, 12, 7, 0]
GROUPS = [0, 0, 1, 1, 2, 2, 2]


def own_logprobs(model: Any, batch: TrainBatch, row: int) -> Tensor:
    """The log-probs of a row's tokens, out of all logits, with gradient."""
    logits = plain_logits(model, batch.prompts[row], batch.completions[row])
    targets = torch.from_numpy(batch.completions[row].astype(np.int64))[:, None]
    return torch.log_softmax(logits, dim=-1).gather(1, targets)[:, 0]


def made_batch(drift: float, one_advantage: bool = False) -> TrainBatch:
    """Completions whose old log-probs are the model's own but for a drift."""
    rng = np.random.default_rng(3)
    first, second = random_ids(rng, 6), random_ids(rng, 4)
    offsets = offsets_of(LENGTHS)
    advantages = rng.normal(size=offsets[-1])
    if one_advantage:
        advantages = np.repeat(rng.normal(size=len(LENGTHS)), LENGTHS)
    weights = rng.uniform(0.5, 1.5, offsets[-1])
    weights[::7] = 0
    batch = TrainBatch(
        prompts=[first, first, second, second, first, first, first],
        teacher_prompts=[first] * 7,
        completions=[random_ids(rng, length) for length in LENGTHS],
        group_of_row=np.array(GROUPS),
        kept_R=np.array([True, True, True, True, True, False, True]),
        offsets=offsets,
        advantages=advantages.astype(np.float32),
        loss_weights=weights.astype(np.float32),
        old_logprobs=np.zeros(offsets[-1], np.float32),
    )
    alone = plain(tiny("qwen3-tied", torch.float64))
    with torch.no_grad():
        rows = [own_logprobs(alone, batch, row) for row in range(len(LENGTHS)) if LENGTHS[row]]
    old = torch.cat(rows).numpy() + drift * rng.normal(size=offsets[-1])
    return replace(batch, old_logprobs=np.minimum(old, -1e-3).astype(np.float32))


def updated(
    surrogate: dict[str, Any], batch: TrainBatch, **train: Any
) -> tuple[UpdateStats, dict[str, Tensor], dict[str, Tensor]]:
    """The numbers of an update, the gradient that it left, and the weights it led to."""
    model = tiny("qwen3-tied", torch.float64)
    recipe = Recipe.model_validate(
        {
            "method": {"name": "grpo", "surrogate": surrogate},
            "optimizer": {"max_grad_norm": 1e12, "lr": 1e-3},
            "sampling": {"max_tokens": 20},
            "train": train,
        }
    )
    policy = FullWeights(model)
    optimizer = Optimizer(policy.trained(), OptimizerSettings(lr=1e-3), 10)
    stats = update(policy, model, optimizer, batch, recipe, 0)
    weights = {name: p.detach() for name, p in model.model.named_parameters()}
    return stats, {name: p.grad for name, p in model.model.named_parameters()}, weights


def difference(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """The largest, over the largest number of its tensor."""
    return max(float((one[n] - other[n]).abs().max() / other[n].abs().max()) for n in one)


# The plain readings: the losses of a completion's tokens, and which of them a bound holds

Reading = Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
LOW, HIGH = 0.05, 0.08


def gspo_sequence(new: Tensor, old: Tensor, a: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    s = torch.prod((new - old).exp()) ** (1 / len(new))
    gain = torch.minimum(s * a, s.clamp(1 - LOW, 1 + HIGH) * a)
    return -gain * w, ((s > 1 + HIGH) & (a > 0)) | ((s < 1 - LOW) & (a < 0))


def gspo_token(new: Tensor, old: Tensor, a: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    s = (torch.prod((new - old).exp()) ** (1 / len(new))).detach()
    s_t = s * new.exp() / new.exp().detach()
    gain = torch.minimum(s_t * a, s_t.clamp(1 - LOW, 1 + HIGH) * a)
    return -gain * w, ((s > 1 + HIGH) & (a > 0)) | ((s < 1 - LOW) & (a < 0))


def cispo(new: Tensor, old: Tensor, a: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    ratio = (new - old).exp().detach()
    return -ratio.clamp(max=1.3) * a * new * w, (ratio > 1.3) & (a != 0)


def dppo_tv(new: Tensor, old: Tensor, a: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    p, q = new.exp().detach(), old.exp()
    held = ((a > 0) & (p - q > 0.01)) | ((a < 0) & (q - p > 0.005))
    return (~held) * -(new - old).exp() * a * w, held


def dppo_kl(new: Tensor, old: Tensor, a: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    p, q = new.exp().detach(), old.exp()
    kl = q * (q / p).log() + (1 - q) * ((1 - q) / (1 - p)).log()
    held = ((a > 0) & (p > q) & (kl > 0.001)) | ((a < 0) & (p < q) & (kl > 0.0005))
    return (~held) * -(new - old).exp() * a * w, held


def sapo(new: Tensor, old: Tensor, a: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    ratio = (new - old).exp()
    gates = [4 / tau / (1 + torch.exp(-tau * (ratio - 1))) for tau in (1.0, 1.05)]
    return -torch.where(a > 0, *gates) * a * w, torch.zeros_like(a, dtype=torch.bool)


GSPO = {"kind": "gspo", "range_low": LOW, "range_high": HIGH}
READINGS: dict[str, tuple[dict[str, Any], Reading]] = {
    "gspo": (GSPO, gspo_sequence),
    "gspo-token": (GSPO | {"level": "token"}, gspo_token),
    "cispo": ({"kind": "cispo", "weight_high": 1.3, "aggregation": "token_mean"}, cispo),
    "dppo-tv": (
        {"kind": "dppo", "divergence_low": 0.005, "divergence_high": 0.01, "ratio_cap": 1e6},
        dppo_tv,
    ),
    "dppo-kl": (
        {"kind": "dppo", "divergence": "kl", "divergence_low": 0.0005, "divergence_high": 0.001,
         "ratio_cap": 1e6, "aggregation": "token_mean"},
        dppo_kl,
    ),
    "sapo": ({"kind": "sapo"}, sapo),
}  # fmt: skip


@pytest.mark.parametrize("name", READINGS)
def test_an_update_has_the_gradient_of_its_paper(name: str) -> None:
    surrogate, reading = READINGS[name]
    batch = made_batch(0.5, one_advantage=name == "gspo")
    alone = plain(tiny("qwen3-tied", torch.float64))
    alone.zero_grad(set_to_none=True)
    kept = [row for row in range(len(LENGTHS)) if batch.kept_R[row]]
    losses, held = [], []
    for row in kept:
        if not LENGTHS[row]:
            continue
        values = slice(batch.offsets[row], batch.offsets[row + 1])
        streams = (batch.old_logprobs, batch.advantages, batch.loss_weights)
        old, a, w = (torch.from_numpy(each[values]).double() for each in streams)
        loss, bounded = reading(own_logprobs(alone, batch, row), old, a, w)
        losses.append(loss)
        held.append(bounded)
    if surrogate.get("aggregation") == "token_mean":
        expected = torch.cat(losses).mean()
    else:
        expected = torch.stack([each.mean() for each in losses]).sum() / len(kept)
    expected.backward()
    gradient = {parameter: p.grad for parameter, p in alone.named_parameters()}
    held_share = float(torch.cat(held).double().mean())
    assert (0.1 < held_share < 0.9) != (name == "sapo")
    for train in ({}, {"microbatch_tokens": 1, "head_chunk_tokens": 3}):
        stats, found, _ = updated(surrogate, batch, **train)
        # The streams are float32.
        assert stats.losses[0] == pytest.approx(expected.item(), rel=1e-6)
        assert difference(found, gradient) < 2e-6
        assert stats.row()["clip_share"] == pytest.approx(held_share)


# What is known before the pass

BOTH = pytest.mark.parametrize("level", ["sequence", "token"])


@BOTH
def test_the_policy_that_sampled_needs_no_log_probs_of_its_own(
    level: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the first update of a batch that it scored itself; and later ones are as they were."""
    batch = made_batch(0.0, one_advantage=True)
    surrogate = GSPO | {"level": level}
    always, gradient, _ = updated(surrogate, batch)
    scored: list[int] = []
    counted = updates.score_tokens
    monkeypatch.setattr(
        updates,
        "score_tokens",
        lambda *given, **named: scored.append(1) or counted(*given, **named),
    )
    first, found, _ = updated(surrogate, replace(batch, on_policy=True))
    assert not scored
    assert first.losses == pytest.approx(always.losses, rel=1e-6)
    assert difference(found, gradient) < 2e-6
    several = {"epochs": 2, "minibatches": 2}
    _, _, weights = updated(surrogate, replace(batch, on_policy=True), **several)
    assert len(scored) == 3
    _, _, expected = updated(surrogate, batch, **several)
    assert difference(weights, expected) < 1e-5


@BOTH
def test_rounding_of_the_scorer_is_no_ratio(level: str) -> None:
    """The range is 3e-4, and two passes in bfloat16 differ by more."""
    batch = made_batch(0.01, one_advantage=True)
    surrogate = {"kind": "gspo", "level": level}
    assert updated(surrogate, batch)[0].row()["clip_share"] > 0
    own = updated(surrogate, replace(batch, on_policy=True))[0]
    assert own.row()["clip_share"] == 0


def test_levels_agree_where_all_tokens_of_a_completion_are_alike() -> None:
    batch = made_batch(0.2, one_advantage=True)
    batch = replace(batch, loss_weights=np.ones_like(batch.loss_weights))
    sequence, token = (updated(GSPO | {"level": level}, batch) for level in ("sequence", "token"))
    assert difference(sequence[1], token[1]) < 1e-12
    assert sequence[0].losses == pytest.approx(token[0].losses, rel=1e-12)


def test_a_completion_with_several_advantages_is_no_sequence() -> None:
    with pytest.raises(UserError, match=r"set method\.surrogate\.level=token"):
        updated(GSPO, made_batch(0.2))


# A token's loss


def streams(old: float, advantage: float) -> TokenStreams:
    one = torch.ones(1, dtype=torch.float64)
    return TokenStreams(old * one, advantage * one, one, one)


@pytest.mark.parametrize(
    ("old", "new", "advantage", "held"),
    [
        (0.5, 0.7, 1.0, True),  # 0.2 beyond 0.15
        (0.5, 0.7, -1.0, False),  # back to where it came from
        (0.5, 0.6, 1.0, False),
        (0.5, 0.3, -1.0, True),
        (0.5, 0.3, 1.0, False),
        (0.001, 0.1, 1.0, False),  # a ratio of 100
        (0.5, 0.7, 0.0, False),
    ],
)
def test_a_divergence_holds_by_probability_and_not_by_ratio(
    old: float, new: float, advantage: float, held: bool
) -> None:
    logprobs = torch.tensor([math.log(new)], dtype=torch.float64, requires_grad=True)
    settings, given = Dppo(), streams(math.log(old), advantage)
    loss = settings.losses(given, logprobs)
    loss.backward()
    assert bool(settings.held(given, logprobs)) == held
    weight = 0.0 if held else min(new / old, 20.0)
    assert logprobs.grad is not None
    assert logprobs.grad.item() == pytest.approx(-weight * advantage, rel=1e-12)
    assert loss.item() == pytest.approx(-weight * advantage, rel=1e-12)


def test_a_binary_divergence_has_no_hole_at_certainty() -> None:
    certain, likely = torch.zeros(1, dtype=torch.float64), torch.tensor([math.log(0.9)]).double()
    assert binary_kl(certain, certain).item() == 0
    assert binary_kl(likely, certain).item() == math.inf
    assert binary_kl(certain, likely).item() == pytest.approx(-math.log(0.9))
    assert binary_tv(likely, certain).item() == pytest.approx(0.1, rel=1e-6)
    old, new = (torch.tensor([math.log(p)], dtype=torch.float64) for p in (0.3, 0.6))
    expected = 0.3 * math.log(0.5) + 0.7 * math.log(0.7 / 0.4)
    assert binary_kl(old, new).item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("advantage", [1.0, -1.0])
def test_a_gate_has_the_slope_of_a_ratio_at_1_and_fades(advantage: float) -> None:
    slopes = []
    for ratio in (1.0, 1.5, 3.0, 10.0):
        logprobs = torch.tensor([math.log(ratio) - 3], dtype=torch.float64, requires_grad=True)
        Sapo(tau_neg=1.05).losses(streams(-3.0, advantage), logprobs).backward()
        assert logprobs.grad is not None
        slopes.append(logprobs.grad.item() / -advantage / ratio)
    assert slopes[0] == pytest.approx(1, rel=1e-12)
    assert slopes == sorted(slopes, reverse=True) and slopes[-1] < 0.01


@pytest.mark.parametrize("kind", ["gspo", "cispo", "dppo", "sapo"])
@pytest.mark.parametrize("advantage", [1.0, -1.0])
def test_a_ratio_beyond_all_bounds_gives_numbers(kind: str, advantage: float) -> None:
    """In float32 e^100 is infinite, and a gradient through it is NaN."""
    settings = MethodSettings.model_validate({"surrogate": {"kind": kind}}).surrogate
    new = torch.tensor([-0.5], requires_grad=True)
    one = torch.ones(1)
    given = TokenStreams(new.detach() - 100, advantage * one, one, one)
    given = settings.prepared(given, np.array([1]), new.detach())
    loss = settings.losses(given, new)
    loss.sum().backward()
    assert new.grad is not None and torch.isfinite(loss).all() and torch.isfinite(new.grad).all()
