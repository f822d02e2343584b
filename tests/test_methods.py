"""Slots set one by one, what is refused, and what holds for every method."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from batches import EARLY, Batch, batches, method
from castctl.methods import PRESETS, MethodSettings, merged
from castctl.methods.advantages import compute_advantages

# One slot set differently


@pytest.mark.parametrize(
    ("slot", "change"),
    [
        ("surrogate", {"aggregation": "sequence_mean"}),
        ("anchor", {"kind": "urkl"}),
        ("overlong", {"kind": "mask"}),
        ("distillation", {"kind": "jsd"}),
        ("conditioning", {"kind": "bilateral"}),
        ("baseline", {"std": "sample"}),
        ("shaping", {"flip": "none"}),
        ("shaping", {"positive_range": [0.8, 1.2]}),
        ("teacher", {"every": 5}),
        ("teacher", {"kind": "ema"}),
        ("baseline", {"kind": "leave_one_out"}),
        ("zero_variance", {"b_wrong": 0.0}),
        ("zero_variance", {"kind": "zero"}),
    ],
)
def test_one_slot_set_differently_keeps_the_others(slot: str, change: dict[str, Any]) -> None:
    cast, changed = method(name="cast").model_dump(), method(name="cast", **{slot: change})
    dumped = changed.model_dump()
    for key, value in change.items():
        assert dumped[slot][key] == (tuple(value) if isinstance(value, list) else value)
    if "kind" not in change:
        assert {**dumped[slot], **change} == {**cast[slot], **change}
    assert {**dumped, slot: None} == {**cast, slot: None}


@pytest.mark.parametrize(
    ("name", "slot", "change", "stays"),
    [
        ("opsd", "teacher", {"kind": "ema"}, {"context": "solution_or_answer", "decay": 0.999}),
        ("rlsd", "teacher", {"kind": "snapshot"}, {"context": "solution_or_answer"}),
        ("sdpg", "teacher", {"kind": "initial"}, {"context": "solution_or_answer"}),
        ("sdpg", "surrogate", {"kind": "clip"}, {"aggregation": "token_mean"}),
        ("sdpg", "distillation", {"kind": "jsd"}, {"coefficient": 0.001, "gate": True}),
        ("cast", "surrogate", {"kind": "reinforce"}, {"aggregation": "token_mean"}),
        ("cast", "surrogate", {"kind": "sapo"}, {"aggregation": "token_mean"}),
        ("cispo", "surrogate", {"kind": "clip"}, {"aggregation": "token_mean", "clip_high": 0.2}),
    ],
)
def test_another_kind_keeps_what_all_kinds_have(
    name: str, slot: str, change: dict[str, Any], stays: dict[str, Any]
) -> None:
    """Another copy of a privileged teacher sees what the first one saw."""
    section = method(name=name, **{slot: change}).model_dump()[slot]
    assert section == {**section, **change, **stays}


def test_a_kind_with_settings_of_its_own_starts_its_slot_afresh() -> None:
    cast = {"kind": "cast", "lam": 0.5}
    base = {"shaping": cast, "b": {"x": 1, "y": {"z": 2}}, "c": 3}
    assert merged(base, {"shaping": {"kind": "rlsd"}})["shaping"] == {"kind": "rlsd"}
    assert merged(base, {"shaping": {"kind": "cast", "flip": False}})["shaping"] == {
        **cast, "flip": False,
    }  # fmt: skip
    assert merged({"method": base}, {"method": {"shaping": {"kind": "none"}}}) == {
        "method": {**base, "shaping": {"kind": "none"}}
    }
    assert merged(base, {"b": {"y": {"w": 4}}})["b"] == {"x": 1, "y": {"z": 2, "w": 4}}
    assert merged(base, {"c": 4}) == {**base, "c": 4}
    assert base["shaping"] == {"kind": "cast", "lam": 0.5}


def test_what_a_method_resolves_to_reads_back_as_itself() -> None:
    for name in PRESETS:
        settings = method(name=name)
        assert MethodSettings.model_validate(settings.model_dump()) == settings
        assert MethodSettings.model_validate_json(settings.model_dump_json()) == settings


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"name": "grop"}, "grpo"),
        ({"name": ["cast"]}, "cast"),
        ({"name": "cast", "shaping": {"positive_range": [1.05, 0.8]}}, "positive_range"),
        ({"name": "cast", "shaping": {"negative_range": [1.1, 1.2]}}, "negative_range"),
        ({"name": "cast", "shaping": {"positive_range": [-0.1, 1.2]}}, "positive_range"),
        ({"name": "cast", "shaping": {"lam": 1.5}}, "lam"),
        ({"name": "cast", "shaping": {"tau": 1.0}}, "tau"),
        ({"name": "cast", "shaping": {"kappa_wrong": -0.5}}, "kappa_wrong"),
        ({"name": "cast", "shaping": {"kind": "cats"}}, "kind"),
        ({"name": "cast", "shaping": {"flip": "maybe"}}, "flip"),
        ({"name": "cast", "shaping": {"dead_band": [1.01, 1.2]}}, "dead_band must hold 1"),
        ({"name": "cast", "shaping": {"dead_band": [-1, 1.2]}}, "dead_band"),
        (
            {"name": "cast", "shaping": {"flip_size": "other_side", "kappa_wrong": 1.0}},
            "reads no kappa_wrong",
        ),
        ({"baseline": {"kind": "median"}}, "median"),
        ({"baseline": {"eps": -1e-6}}, "eps"),
        ({"zero_variance": {"kind": "zero", "b_wrong": 1.0}}, "b_wrong"),
        ({"surrogate": {"dual_clip": 0.5}}, "dual_clip"),
        ({"surrogate": {"clip_low": 1.5}}, "clip_low"),
        ({"surrogate": {"aggregation": "mean"}}, "aggregation"),
        ({"name": "gspo", "surrogate": {"range_low": 1.5}}, "range_low"),
        ({"name": "gspo", "surrogate": {"level": "word"}}, "level"),
        ({"surrogate": {"clip_high": 0.3, "kind": "gspo"}}, "clip_high"),
        ({"name": "cispo", "surrogate": {"weight_high": 0.5}}, "weight_high"),
        ({"name": "dppo", "surrogate": {"divergence": "js"}}, "divergence"),
        ({"name": "sapo", "surrogate": {"tau_pos": 0.0}}, "tau_pos"),
        ({"importance_cap": 0.0}, "importance_cap"),
        ({"correction": {"high": 0.0}}, "high"),
        ({"correction": {"kind": "truncate", "low": 0.5}}, "low"),
        ({"correction": {"kind": "none", "level": "token"}}, "level"),
        ({"correction": {"kind": "mask", "low": 1.5}}, "a ratio of 1"),
        ({"correction": {"kind": "mask", "high": 0.9}}, "a ratio of 1"),
        ({"correction": {"kind": "mask", "low": 1, "high": 1}}, "a ratio of 1"),
        ({"anchor": {"kind": "k1"}}, "anchor"),
        ({"anchor": {"kind": "k2", "coefficient": -1}}, "coefficient"),
        ({"name": "rlsd", "shaping": {"eps_w": 1.5}}, "eps_w"),
        ({"name": "rcc", "baseline": {"clip": [1, 0]}}, "valid boolean"),
        ({"name": "oar-p", "shaping": {"threshold": 1.5}}, "threshold"),
        ({"name": "oar-g", "shaping": {"stride": 2}}, "stride"),
        ({"name": "opsd", "distillation": {"beta": 1.5}}, "beta"),
        ({"name": "dapo", "overlong": {"cache": 0}}, "cache"),
        ({"name": "bicc", "conditioning": {"share": 1.0}}, "share"),
        ({"token_mask": {"kind": "high_entropy", "share": 0.0}}, "share"),
        ({"token_mask": {"kind": "high_entropy", "low": 1.0}}, "low"),
        ({"token_mask": {"kind": "clip_cov", "low": 5.0}}, "set low below high"),
    ],
)
def test_what_makes_no_sense_is_refused_with_a_reason(options: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValidationError, match=reason):
        MethodSettings.model_validate(options)


# What holds for every method

VARIANTS: list[dict[str, Any]] = [
    *({"name": name} for name in PRESETS),
    {"baseline": {"kind": "leave_one_out"}, "zero_variance": {"kind": "signed"}},
    {"baseline": {"std": "sample"}},
    {"name": "cast", "shaping": {"tau_nats": 0.0}},
    {"name": "cast", "zero_variance": {"kind": "zero"}},
    {"name": "cast", "shaping": {"tau_floor": 1e-3}, "baseline": {"kind": "rcc"}},
    {"name": "sdpg", "shaping": {"kind": "oar-g"}},
    {"name": "grpo", "overlong": {"kind": "mask"}},
]
METHODS = st.sampled_from([method(**slots) for slots in VARIANTS])


def rows_of(batch: Batch, method: MethodSettings) -> list[tuple[Any, ...]]:
    """What each row gets, exactly: kept, flips, and numbers."""
    result = compute_advantages(method, batch.groups, batch.signals, EARLY, batch.ending)
    bounds = batch.offsets

    def cut(flat: np.ndarray | None, row: int) -> list[Any] | None:
        return None if flat is None else flat[bounds[row] : bounds[row + 1]].tolist()

    return [
        (
            bool(result.kept_R[row]),
            cut(result.flipped_N, row),
            float(result.base_R[row]),
            cut(result.advantages_N, row),
            cut(result.weights_N, row),
            cut(result.distill_weights_N, row),
            cut(result.masks_N, row),
        )
        for row in range(len(batch))
    ]


@given(batches(), METHODS.filter(lambda method: not method.whole_step), st.data())
def test_a_group_never_sees_another(batch: Batch, method: MethodSettings, data: Any) -> None:
    """Any of the groups in any order, mingled or not, bit for bit."""
    whole = rows_of(batch, method)
    groups = data.draw(st.lists(st.sampled_from(sorted(set(batch.group))), min_size=1, unique=True))
    rows = [row for group in groups for row in range(len(batch)) if batch.group[row] == group]
    assert rows_of(batch.take(rows), method) == [whole[row] for row in rows]


@given(
    batches(),
    METHODS.filter(lambda method: not method.token_mask.draws),
    st.randoms(use_true_random=False),
)
def test_the_order_of_rows_does_not_matter(batch: Batch, method: MethodSettings, mix: Any) -> None:
    rows = list(range(len(batch)))
    mix.shuffle(rows)
    whole, mixed = rows_of(batch, method), rows_of(batch.take(rows), method)
    for row, there in zip(rows, mixed, strict=True):
        here = whole[row]
        assert here[:2] == there[:2]
        for mine, its in zip(here[2:], there[2:], strict=True):
            assert mine == its or np.allclose(mine, its, rtol=1e-12, atol=1e-14)


@given(batches(), METHODS)
def test_a_completion_without_a_reward_is_not_kept(batch: Batch, method: MethodSettings) -> None:
    for row, (kept, _, base, advantages, *_) in enumerate(rows_of(batch, method)):
        known = batch.rewards[row] == batch.rewards[row]
        dropped = method.zero_variance.kind == "resample" and batch.kind(row) != "mixed"
        assert kept == (known and not dropped)
        if not kept:
            assert base == 0
            assert not any(advantages)


@given(batches(), METHODS)
def test_numbers_are_numbers(batch: Batch, method: MethodSettings) -> None:
    """Whatever was not scored, in float64."""
    result = compute_advantages(method, batch.groups, batch.signals, EARLY, batch.ending)
    numbers = (result.base_R, result.masks_N, result.advantages_N, result.weights_N,
               result.distill_weights_N)  # fmt: skip
    for values in numbers:
        assert values is None or (values.dtype == np.float64 and np.isfinite(values).all())


def test_no_completions() -> None:
    for name in PRESETS:
        assert rows_of(Batch([], [], []), method(name=name)) == []


def test_flipping_by_sign_alone_is_warned_about() -> None:
    by_sign = {"shaping": {"tau_nats": 0.0}}
    assert "sign(A) = sign(g)" in method(name="cast", **by_sign).warnings()[0]
    assert method(name="cast").shaping.warnings() == []
    assert method(name="cast", shaping={"tau_nats": 0.0, "flip": "none"}).shaping.warnings() == []
    assert method(name="grpo").shaping.warnings() == []


def test_a_teacher_that_can_say_nothing_is_warned_about() -> None:
    assert "gap is zero" in method(name="cast", teacher={"kind": "current"}).warnings()[0]
    assert method(name="rlsd", teacher={"context": "none"}).warnings() != []
    asked = {"kind": "current", "chat_template_options": {"enable_thinking": True}}
    assert method(name="cast", teacher=asked).warnings() == []
    unheard = method(name="grpo", teacher={"kind": "current"}).warnings()
    assert len(unheard) == 1 and "nothing in this method listens to it" in unheard[0]
