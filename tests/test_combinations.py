"""Slots of different methods together: what fits, and what is refused with a way out."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batches import REAL, Batch, advantages_of, batches, method
from castctl.errors import UserError
from castctl.methods import PRESETS
from castctl.recipe.reader import load_recipe
from castctl.recipe.recipe import Recipe

BASELINES = ["mean_std", "mean", "leave_one_out", "maxrl", "batch_std", "rcc"]
SHAPINGS = ["none", "cast", "rlsd", "rlrt", "oar-p", "oar-g"]
SIGNALS = {
    "cast": "teacher_logprobs",
    "rlsd": "teacher_logprobs",
    "rlrt": "teacher_logprobs",
    "oar-p": "importance_perturb",
    "oar-g": "importance_grad",
    "rcc": "ref_logprobs",
}


def recipe(name: str, *overrides: str) -> Recipe:
    return load_recipe(None, overrides, method={"name": name})


# What fits


@pytest.mark.parametrize(("baseline", "shaping"), [*product(BASELINES, SHAPINGS)])
@settings(max_examples=25)
@given(batch=batches(), zero=st.sampled_from(["zero", "signed", "resample"]))
def test_every_shaping_goes_with_every_baseline(
    baseline: str, shaping: str, batch: Batch, zero: str
) -> None:
    """The base is the baseline's and the groups', whatever shapes it; the factor scales it."""
    zero = "zero" if baseline == "batch_std" and zero == "resample" else zero
    base = {"baseline": {"kind": baseline}, "zero_variance": {"kind": zero}}
    slots = {**base, "shaping": {"kind": shaping}, "teacher": {"kind": "snapshot"}}
    if shaping == "cast":
        slots["shaping"] |= {"flip": "none", "clamp": None}
    kinds = [kind for kind in (baseline, shaping) if kind in SIGNALS]
    policy = {"policy_logprobs"} if {"cast", "rlsd", "rlrt", "rcc"} & {*kinds} else set()
    assert method(**slots).needs == policy | {SIGNALS[kind] for kind in kinds}
    plain, shaped = advantages_of(batch, **base), advantages_of(batch, **slots)
    assert (shaped.base_R == plain.base_R).all()
    assert (shaped.kept_R == plain.kept_R).all()
    weights_N = 1.0 if shaped.weights_N is None else shaped.weights_N
    np.testing.assert_allclose(shaped.advantages_N, plain.advantages_N * weights_N, rtol=1e-12)


@pytest.mark.parametrize("shaping", SHAPINGS)
@settings(max_examples=25)
@given(batch=batches())
def test_entropies_take_the_place_of_any_shaping_in_zero_variance_groups(
    shaping: str, batch: Batch
) -> None:
    slots = {"shaping": {"kind": shaping}, "teacher": {"kind": "snapshot"}}
    both = advantages_of(batch, **slots, zero_variance={"kind": "entropy"})
    own, entropy = advantages_of(batch, **slots), advantages_of(batch, name="rl-zvp")
    silent_R = np.isin(batch.groups.kind_R, ("all_correct", "all_wrong"))
    silent_N = np.array(batch.per_token(silent_R.tolist()), bool)
    expected = np.where(silent_N, entropy.advantages_N, own.advantages_N)
    assert (both.advantages_N == expected).all()
    assert (both.base_R == np.where(silent_R, entropy.base_R, own.base_R)).all()
    if both.flipped_N is not None:
        assert own.flipped_N is not None and not both.flipped_N[silent_N].any()
        assert (both.flipped_N == own.flipped_N)[~silent_N].all()


@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        ("cast", ["baseline.kind=rcc"]),
        ("cast", ["zero_variance.kind=entropy", "zero_variance.alpha=0.2"]),
        ("cast", ["shaping.kind=oar-p"]),
        ("cast", ["conditioning.kind=bilateral"]),
        ("cast", ["teacher.context=answer"]),
        ("sdpg", ["shaping.kind=oar-g"]),
        ("sdpg", ["surrogate.kind=clip", "surrogate.dual_clip=10"]),
        ("sdpg", ["anchor.kind=k3"]),
        ("sdpg", ["distillation.gate=false"]),
        ("sdpg", ["baseline.kind=rcc"]),
        ("bicc", ["baseline.kind=mean", "surrogate.aggregation=constant"]),
        ("bicc", ["shaping.kind=oar-g"]),
        ("dr-grpo", ["conditioning.kind=bilateral"]),
        ("opsd", ["teacher.kind=ema"]),
        ("sdft", ["distillation.tokens=sampled"]),
        ("grpo", ["teacher.kind=model", "teacher.path=embedded", "distillation.kind=reverse_kl"]),
        ("opsd", ["distillation.kind=reverse_kl", "distillation.tokens=sampled"]),
        ("opsd", ["anchor.kind=k3"]),
        ("opsd", ["baseline.kind=mean_std", "distillation.gate=true"]),
        ("grpo+opsd", ["shaping.kind=rlsd"]),
        ("dapo", ["overlong.kind=mask"]),
        ("cast", ["token_mask.kind=high_entropy", "token_mask.share=0.5"]),
        ("bicc", ["token_mask.kind=high_entropy"]),
        ("sdpg", ["token_mask.kind=clip_cov"]),
        ("rloo", ["surrogate.kind=reinforce"]),
        ("cast", ["surrogate.kind=gspo", "surrogate.level=token"]),
        ("gspo", ["correction.kind=mask", "overlong.kind=penalty", "anchor.kind=k3"]),
        ("gspo", ["conditioning.kind=bilateral"]),
        ("cast", ["surrogate.kind=dppo", "surrogate.divergence=kl"]),
        ("rlsd", ["surrogate.kind=cispo", "surrogate.entropy_bonus=0.01"]),
        ("sdpg", ["surrogate.kind=sapo"]),
        ("opsd", ["surrogate.kind=cispo", "baseline.kind=mean_std"]),
        ("grpo", ["anchor.kind=k3", "overlong.kind=penalty", "surrogate.entropy_bonus=0.01"]),
    ],
)
def test_what_fits(name: str, overrides: list[str]) -> None:
    resolved = recipe(name, *(f"method.{each}" for each in overrides))
    resolved.check_training()
    for key, value in (each.split("=") for each in overrides):
        slot, setting = key.split(".")
        found = getattr(getattr(resolved.method, slot), setting)
        assert str(found).lower() == {"k3": "ufkl", "10": "10.0"}.get(value, value)


@given(batches())
def test_bicc_has_the_advantages_of_its_baseline(batch: Batch) -> None:
    """The context conditions the ratio alone."""
    for baseline in BASELINES:
        slots = {"baseline": {"kind": baseline}}
        bicc, plain = advantages_of(batch, name="bicc", **slots), advantages_of(batch, **slots)
        assert (bicc.advantages_N == plain.advantages_N).all()
        assert (bicc.kept_R == plain.kept_R).all()
    both = advantages_of(batch, name="bicc+rcc").advantages_N
    assert (both == advantages_of(batch, name="rcc").advantages_N).all()


@given(batches())
def test_sdpg_with_oars_weights_distils_as_before(batch: Batch) -> None:
    weighted = advantages_of(batch, name="sdpg", shaping={"kind": "oar-g"})
    plain, oar = advantages_of(batch, name="sdpg"), advantages_of(batch, name="oar-g")
    assert weighted.distill_weights_N is not None and plain.distill_weights_N is not None
    assert (weighted.distill_weights_N == plain.distill_weights_N).all()
    assert (weighted.advantages_N == oar.advantages_N).all()


# What is refused

ILLEGAL = [
    # method, overrides, the reason, what the message says to set, how it is applied
    ("grpo", ["shaping.kind=cast"], "reads a teacher's log-probs", "teacher.kind to snapshot",
     ["teacher.kind=snapshot"]),
    ("grpo", ["shaping.kind=rlsd"], "reads a teacher's log-probs", "ema, initial, current or model",
     ["teacher.kind=current"]),
    ("cast", ["teacher.kind=none"], "reads a teacher's log-probs", "teacher.kind to snapshot, ema",
     ["teacher.kind=ema"]),
    ("grpo", ["distillation.kind=jsd"], "distillation needs a teacher", "set method.teacher.kind",
     ["teacher.kind=initial"]),
    ("sdpg", ["teacher.kind=none"], "distillation needs a teacher", "set method.teacher.kind",
     ["teacher.kind=current"]),
    ("grpo", ["baseline.kind=none"], "no advantage for a surrogate", "baseline.kind=mean_std",
     ["baseline.kind=mean_std"]),
    ("grpo+opsd", ["baseline.kind=none"], "no advantage for a surrogate", "surrogate.kind=none",
     ["surrogate.kind=none"]),
    ("cast", ["baseline.kind=none"], "no advantage for a surrogate, a shaping", "kind=mean_std",
     ["baseline.kind=mean_std"]),
    ("opsd", ["shaping.kind=rlsd"], "no advantage for a surrogate, a shaping", "no shaping",
     ["shaping.kind=none"]),
    ("opsd", ["distillation.gate=true"], "no advantage for a surrogate, a shaping or a gate",
     "baseline.kind=mean_std", ["baseline.kind=mean_std"]),
    ("opsd", ["zero_variance.kind=resample"], "no groups to fill or to drop",
     "zero_variance.kind=zero", ["zero_variance.kind=zero"]),
    ("opsd", ["zero_variance.kind=signed"], "no groups to fill or to drop",
     "zero_variance.kind=zero", ["zero_variance.kind=zero"]),
    ("opsd", ["zero_variance.kind=entropy"], "no groups to fill or to drop",
     "zero_variance.kind=zero", ["zero_variance.kind=zero"]),
    ("opsd", ["overlong.kind=penalty"], "no reward is read", "overlong.kind=none",
     ["overlong.kind=none"]),
    ("gspo", ["token_mask.kind=high_entropy"], "leaves no token out", "token_mask.kind=none",
     ["surrogate.level=token"]),
    ("gspo", ["zero_variance.kind=entropy"], "entropies give each token its own", "kind=signed",
     ["zero_variance.kind=signed"]),
    ("opsd", ["token_mask.kind=high_entropy"], "nothing to mask", "token_mask.kind=none",
     ["token_mask.kind=none"]),
    ("bicc", ["token_mask.kind=clip_cov"], "the covariance is that of", "token_mask.kind=none",
     ["token_mask.kind=none"]),
    ("lite-ppo", ["zero_variance.kind=resample"], "resampling drops part of it",
     "zero_variance.kind=zero", ["zero_variance.kind=zero"]),
    ("maxrl", ["overlong.kind=penalty"], "divides by a group's mean reward", "none or mask",
     ["overlong.kind=mask"]),
    ("grpo", ["surrogate.kind=none"], "nothing trains", "surrogate.kind=clip",
     ["surrogate.kind=clip"]),
    ("opsd", ["distillation.kind=none"], "nothing trains", "or method.distillation.kind",
     ["distillation.kind=reverse_kl"]),
    ("grpo+opsd", ["surrogate.kind=none", "shaping.kind=rlsd"], "nothing reads token advantages",
     "surrogate.kind=clip", ["surrogate.kind=clip"]),
    ("opsd", ["conditioning.kind=bilateral"], "nothing reads token advantages or ratios",
     "surrogate.kind=clip",
     ["surrogate.kind=clip", "baseline.kind=mean_std", "distillation.kind=none"]),
    ("bicc", ["surrogate.kind=reinforce"], "no ratio to condition", "surrogate.kind=clip",
     ["surrogate.kind=clip"]),
    ("gspo", ["shaping.kind=oar-p"], "pulls on one advantage", "surrogate.level=token",
     ["surrogate.level=token"]),
    ("cast", ["surrogate.kind=gspo"], "pulls on one advantage", "shaping.kind=none",
     ["surrogate.level=token"]),
    ("bicc", ["anchor.kind=k3"], "the bare prompt", "anchor.kind=none", ["anchor.kind=none"]),
    ("grpo+opsd", ["conditioning.kind=bilateral"], "the bare prompt", "distillation.kind=none",
     ["distillation.kind=none"]),
    ("grpo+opsd", ["conditioning.kind=bilateral"], "the bare prompt", "conditioning.kind=none",
     ["conditioning.kind=none"]),
    ("sdpg", ["surrogate.dual_clip=10"], "dual_clip bounds a ratio", "kind=clip",
     ["surrogate.kind=clip"]),
]  # fmt: skip


@pytest.mark.parametrize(("name", "overrides", "reason", "advice", "mend"), ILLEGAL)
def test_what_makes_no_sense_is_refused_with_a_way_out(
    name: str, overrides: list[str], reason: str, advice: str, mend: list[str]
) -> None:
    wrong = [f"method.{each}" for each in overrides]
    with pytest.raises(UserError) as refused:
        recipe(name, *wrong)
    message = str(refused.value)
    assert reason in message and advice in message and "\n" not in message
    recipe(name, *wrong, *(f"method.{each}" for each in mend)).check_training()


@pytest.mark.parametrize("updates", ["train.epochs=2", "train.minibatches=4"])
@pytest.mark.parametrize(
    ("name", "wrong"),
    [("sdpg", []), ("sdpg-ufkl", []), ("grpo", ["method.surrogate.kind=reinforce"])],
)
def test_reinforce_makes_one_update_a_batch(name: str, wrong: list[str], updates: str) -> None:
    with pytest.raises(UserError, match="one update a batch") as refused:
        recipe(name, *wrong, updates)
    message = str(refused.value)
    assert "set both to 1 or method.surrogate.kind=clip" in message
    recipe(name, *wrong, "train.epochs=1", "train.minibatches=1")
    recipe(name, *wrong, updates, "method.surrogate.kind=clip")


@pytest.mark.parametrize("name", PRESETS)
def test_a_group_of_one_compares_nothing(name: str) -> None:
    """Only pure distillation does without others."""
    named = ("method.teacher.path=embedded",) if name == "opd" else ()
    alone = recipe(name, "sampling.n=1", *named)
    if name in ("opsd", "opd", "sdft"):
        assert not [each for each in alone.check_training() if "embedded" not in each]
        return
    why = (
        "context=peer tells the teacher another"
        if name == "sdpo"
        else "compares completions of one"
    )
    with pytest.raises(UserError, match=rf"{why}.* prompt; set sampling\.n"):
        alone.check_training()
    recipe(name, "sampling.n=2").check_training()


BINARY_ONLY = {
    "rl-zvp", "cast", "cast-public", "cast-port", "bicc", "bicc+rcc", "sdpg-urkl", "sdpg-ufkl",
}  # fmt: skip


@pytest.mark.parametrize("name", PRESETS)
@settings(max_examples=25)
@given(batch=batches(REAL | st.just(0.5)))
def test_rewards_other_than_right_and_wrong(name: str, batch: Batch) -> None:
    graded, negative = not batch.groups.binary, (batch.groups.rewards_R < 0).any()
    assert method(name=name).binary_rewards == (name in BINARY_ONLY)
    refusal = "use --method grpo" if graded and name in BINARY_ONLY else None
    if name == "maxrl" and negative:
        refusal = "no reward may be below 0"
    if refusal is None:
        assert np.isfinite(advantages_of(batch, name=name).advantages_N).all()
        return
    with pytest.raises(UserError, match=refusal) as refused:
        advantages_of(batch, name=name)
    assert "\n" not in str(refused.value)


def test_a_gate_reads_right_and_wrong() -> None:
    assert not method(name="sdpg", distillation={"gate": False}).binary_rewards
    assert method(name="grpo+opsd", distillation={"gate": True}).binary_rewards
