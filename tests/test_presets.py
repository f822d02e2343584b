"""What the name of a method means, slot by slot."""

from __future__ import annotations

from typing import Any

import pytest

from batches import method
from castctl.methods import PRESETS
from castctl.methods.dppo import Dppo
from castctl.methods.presets import ALIASES

GRPO_CLIP, DAPO_CLIP = ("clip", 0.2, 0.2), ("clip", 0.2, 0.28)
REINFORCE, NO_SURROGATE = ("reinforce",), ("none",)
CURRENT = ("current", "solution_or_answer")
INITIAL = ("initial", "solution_or_answer")
SNAPSHOT = ("snapshot", "none")
PEER = ("current", "peer")
CAST = ("mean_std", "signed", "cast", SNAPSHOT, DAPO_CLIP, "token_mean")
NO_TEACHER = ("none", "none")
CASTS = {"cast", "cast-public", "cast-port"}

TABLE = {
    # baseline, zero variance, shaping, teacher and its context, surrogate, aggregation
    "grpo": ("mean_std", "zero", "none", NO_TEACHER, GRPO_CLIP, "sequence_mean"),
    "dr-grpo": ("mean", "zero", "none", NO_TEACHER, GRPO_CLIP, "constant"),
    "rloo": ("leave_one_out", "zero", "none", NO_TEACHER, GRPO_CLIP, "token_mean"),
    "maxrl": ("maxrl", "zero", "none", NO_TEACHER, GRPO_CLIP, "token_mean"),
    "reinforce++": (
        "batch_std",
        "zero",
        "none",
        NO_TEACHER,
        GRPO_CLIP,
        "token_mean",
    ),
    "lite-ppo": ("batch_std", "zero", "none", NO_TEACHER, GRPO_CLIP, "token_mean"),
    "dapo": ("mean_std", "resample", "none", NO_TEACHER, DAPO_CLIP, "token_mean"),
    "high-entropy": ("mean_std", "resample", "none", NO_TEACHER, DAPO_CLIP, "token_mean"),
    "clip-cov": ("mean_std", "resample", "none", NO_TEACHER, ("clip", 1.0, 1.0), "token_mean"),
    "rl-zvp": ("mean_std", "entropy", "none", NO_TEACHER, DAPO_CLIP, "token_mean"),
    "gspo": ("mean_std", "zero", "none", NO_TEACHER, ("gspo",), "sequence_mean"),
    "cispo": ("mean_std", "zero", "none", NO_TEACHER, ("cispo",), "token_mean"),
    "dppo": ("mean_std", "zero", "none", NO_TEACHER, ("dppo",), "token_mean"),
    "sapo": ("mean_std", "zero", "none", NO_TEACHER, ("sapo",), "sequence_mean"),
    "cast": CAST,
    "cast-public": CAST,
    "cast-port": CAST,
    "opsd": ("none", "zero", "none", INITIAL, NO_SURROGATE, "token_mean"),
    "opd": ("none", "zero", "none", ("model", "none"), NO_SURROGATE, "token_mean"),
    "sdft": ("none", "zero", "none", ("ema", "solution_or_answer"), NO_SURROGATE, "token_mean"),
    "grpo+opsd": ("mean_std", "zero", "none", INITIAL, GRPO_CLIP, "sequence_mean"),
    "rlsd": ("mean_std", "zero", "rlsd", CURRENT, DAPO_CLIP, "token_mean"),
    "rlrt": ("mean_std", "zero", "rlrt", PEER, DAPO_CLIP, "token_mean"),
    "sdpo": ("none", "zero", "none", ("ema", "peer"), NO_SURROGATE, "token_mean"),
    "sdpg-urkl": ("mean_std", "zero", "none", CURRENT, REINFORCE, "token_mean"),
    "sdpg-ufkl": ("mean_std", "zero", "none", CURRENT, REINFORCE, "token_mean"),
    "oar-p": ("mean_std", "zero", "oar-p", NO_TEACHER, GRPO_CLIP, "sequence_mean"),
    "oar-g": ("mean_std", "zero", "oar-g", NO_TEACHER, GRPO_CLIP, "sequence_mean"),
    "bicc": ("mean_std", "zero", "none", NO_TEACHER, GRPO_CLIP, "sequence_mean"),
    "rcc": ("rcc", "zero", "none", NO_TEACHER, GRPO_CLIP, "sequence_mean"),
    "bicc+rcc": ("rcc", "zero", "none", NO_TEACHER, GRPO_CLIP, "sequence_mean"),
}

OPSD_LOSS = {
    "kind": "jsd", "beta": 0.5, "tokens": "full", "top_k": 100, "coefficient": 1.0,
    "warmup_steps": 0, "decay_steps": 0, "gate": False, "clip": None,
}  # fmt: skip
SDPG_LOSS = {**OPSD_LOSS, "kind": "reverse_kl", "coefficient": 0.001, "gate": True}

MORE: dict[str, dict[str, Any]] = {
    # overlong, conditioning, distillation, anchor and token mask, where they are not off
    "dapo": {"overlong": {"kind": "penalty", "cache": None}},
    "high-entropy": {
        "overlong": {"kind": "penalty", "cache": None},
        "token_mask": {"kind": "high_entropy", "share": 0.2, "mean_over": "kept"},
    },
    "clip-cov": {"token_mask": {"kind": "clip_cov", "share": 2e-4, "low": 1.0, "high": 5.0}},
    "cast-public": {"overlong": {"kind": "mask"}},
    "opsd": {"distillation": OPSD_LOSS},
    "opd": {"distillation": {**OPSD_LOSS, "kind": "reverse_kl"}},
    "sdft": {"distillation": {**OPSD_LOSS, "kind": "reverse_kl"}},
    "grpo+opsd": {"distillation": OPSD_LOSS},
    "sdpo": {"distillation": {**OPSD_LOSS, "tokens": "top_k_tail"}},
    "sdpg-urkl": {"distillation": SDPG_LOSS, "anchor": {"kind": "urkl", "coefficient": 0.001}},
    "sdpg-ufkl": {"distillation": SDPG_LOSS, "anchor": {"kind": "ufkl", "coefficient": 0.001}},
    "bicc": {"conditioning": {"kind": "bilateral", "share": 0.4, "context_tokens": None}},
    "bicc+rcc": {"conditioning": {"kind": "bilateral", "share": 0.4, "context_tokens": None}},
}
OFF = {
    "overlong": {"kind": "none"},
    "conditioning": {"kind": "none"},
    "distillation": {"kind": "none"},
    "anchor": {"kind": "none", "coefficient": 0.001},
    "token_mask": {"kind": "none"},
}


@pytest.mark.parametrize("name", TABLE)
def test_a_preset_is_its_row_of_the_table(name: str) -> None:
    made = method(name=name)
    surrogate, teacher = made.surrogate, made.teacher
    clips = (surrogate.clip_low, surrogate.clip_high) if surrogate.kind == "clip" else ()
    assert TABLE[name] == (
        made.baseline.kind,
        made.zero_variance.kind,
        made.shaping.kind,
        (teacher.kind, teacher.context),
        (surrogate.kind, *clips),
        surrogate.aggregation,
    )
    dumped = made.model_dump()
    assert {slot: dumped[slot] for slot in OFF} == {**OFF, **MORE.get(name, {})}
    dual_clip = 10.0 if name == "clip-cov" else None
    assert (getattr(surrogate, "dual_clip", None), surrogate.entropy_bonus) == (dual_clip, 0)
    assert dumped["correction"] == {"kind": "truncate", "level": "token", "high": 2.0}
    templates = {
        "cast-public": "{{ prompt }}\n\n[Student response]\n",
        "sdft": "{{ prompt }}\n\nThis is an example for a response to the question:\n"
        "{{ solution or answer }}\n\n"
        "Now answer with a response of your own, including the thinking process.",
    }
    skipped = 3 if name == "sdft" else 0
    assert (teacher.skip_tokens, teacher.template) == (skipped, templates.get(name))
    assert teacher.chat == (name != "cast-public")


def test_the_table_is_whole() -> None:
    assert list(PRESETS) == list(TABLE)
    assert [method(name=name).name for name in PRESETS] == list(PRESETS)
    assert all(preset.summary and preset.paper for preset in PRESETS.values())
    assert method() == method(name="grpo")


def test_another_name_of_the_same() -> None:
    assert ALIASES == {"sdpg": "sdpg-urkl"}
    assert method(name="sdpg") == method(name="sdpg-urkl")
    assert method(name="sdpg").name == "sdpg-urkl"


CAST_SHAPING: dict[str, Any] = {
    "kind": "cast", "positive_range": (0.8, 1.05), "negative_range": (0.95, 1.2), "lam": 1.0,
    "decay_steps": 0, "dead_band": None, "flip": "both", "flip_size": "kappa", "tau_rms": 2.0,
    "tau_floor": 0.5, "tau_nats": None, "kappa_correct": 0.5, "kappa_wrong": 0.5, "clamp": 1.2,
}  # fmt: skip
MEAN_STD: dict[str, Any] = {
    "kind": "mean_std", "std": "population", "eps": 1e-6,
    "multi_objective_aggregation": "sum_then_normalize",
}  # fmt: skip
NUMBERS: list[tuple[str, str, dict[str, Any]]] = [
    ("grpo", "baseline", MEAN_STD),
    ("reinforce++", "baseline", {
        "kind": "batch_std", "of": "centred", "std": "population", "eps": 1e-6,
    }),
    ("lite-ppo", "baseline", {
        "kind": "batch_std", "of": "rewards", "std": "population", "eps": 1e-6,
    }),
    ("rcc", "baseline", {
        "kind": "rcc", "reduction": "sum", "clip": True, "std": "population", "eps": 1e-6,
    }),
    ("cast", "zero_variance", {
        "kind": "signed", "b_correct": 1.0, "b_wrong": 1.0, "decay_steps": 0,
    }),
    ("dapo", "zero_variance", {"kind": "resample", "max_rounds": 10}),
    ("rl-zvp", "zero_variance", {"kind": "entropy", "alpha": 0.1}),
    ("cast", "shaping", CAST_SHAPING),
    ("cast-public", "baseline", {**MEAN_STD, "std": "sample", "eps": 1e-4}),
    ("cast-public", "shaping", {**CAST_SHAPING, "tau_nats": 0.0, "flip_size": "other_side"}),
    ("cast-port", "baseline", MEAN_STD),
    ("cast-port", "shaping", {
        **CAST_SHAPING, "lam": 0.5, "dead_band": (0.95, 1.05), "flip": "none",
    }),
    ("gspo", "surrogate", {
        "kind": "gspo", "level": "sequence", "range_low": 3e-4, "range_high": 4e-4,
        "aggregation": "sequence_mean", "entropy_bonus": 0.0,
    }),
    ("cispo", "surrogate", {
        "kind": "cispo", "weight_low": 0.0, "weight_high": 5.0, "aggregation": "token_mean",
        "entropy_bonus": 0.0,
    }),
    ("dppo", "surrogate", {
        "kind": "dppo", "divergence": "tv", "divergence_low": None, "divergence_high": None,
        "ratio_cap": 20.0, "aggregation": "token_mean", "entropy_bonus": 0.0,
    }),
    ("sapo", "surrogate", {
        "kind": "sapo", "tau_pos": 1.0, "tau_neg": 1.05, "aggregation": "sequence_mean",
        "entropy_bonus": 0.0,
    }),
    ("rlsd", "shaping", {"kind": "rlsd", "eps_w": 0.2, "lam": 0.5, "decay_steps": 50}),
    ("rlrt", "shaping", {"kind": "rlrt", "eps_w": 1.0, "lam": 0.5, "decay_steps": 0}),
    ("oar-p", "shaping", {
        "kind": "oar-p", "threshold": 0.3, "gain": 1.0, "floor": 0.1, "score": "last",
        "conclude": None, "stride": 1, "budget": None,
    }),
    ("oar-g", "shaping", {
        "kind": "oar-g", "threshold": 0.3, "gain": 1.0, "floor": 0.1, "score": "answer_mean",
        "conclude": None, "noise_std": 1e-3,
    }),
]  # fmt: skip


@pytest.mark.parametrize(("name", "slot", "numbers"), NUMBERS)
def test_the_numbers_of_a_slot(name: str, slot: str, numbers: dict[str, Any]) -> None:
    assert method(name=name).model_dump()[slot] == numbers


@pytest.mark.parametrize(
    ("settings", "bounds"),
    [
        ({}, (0.15, 0.15)),
        ({"divergence": "kl"}, (0.05, 0.05)),
        ({"divergence": "kl", "divergence_high": 0.2}, (0.05, 0.2)),
        ({"divergence_low": 0.0}, (0.0, 0.15)),
    ],
)
def test_a_divergence_has_bounds_of_its_own(
    settings: dict[str, Any], bounds: tuple[float, float]
) -> None:
    surrogate = method(name="dppo", surrogate=settings).surrogate
    assert isinstance(surrogate, Dppo) and surrogate.bounds == bounds


def test_the_teachers_numbers() -> None:
    cast = method(name="cast").teacher
    assert (cast.every, cast.decay) == (10, 0.99)
    assert [method(name=f"cast-{name}").teacher.every for name in ("public", "port")] == [10, 50]
    assert method(name="opsd").teacher.decay == 0.999, "of `ema`, for those who choose it"
    assert method(name="sdpo").teacher.decay == 0.95
    assert method(name="sdft").teacher.decay == 0.99
    assert method(name="opd").teacher.pathless, "its user names it"


NEEDS = {
    "high-entropy": {"policy_logprobs", "entropies"},
    "clip-cov": {"policy_logprobs"},
    "rl-zvp": {"policy_logprobs", "entropies"},
    "cast": {"policy_logprobs", "teacher_logprobs"},
    "cast-public": {"policy_logprobs", "teacher_logprobs"},
    "cast-port": {"policy_logprobs", "teacher_logprobs"},
    "opsd": {"teacher_prompt_token_ids"},
    "opd": {"teacher_prompt_token_ids"},
    "sdft": {"teacher_prompt_token_ids"},
    "grpo+opsd": {"teacher_prompt_token_ids"},
    "rlsd": {"policy_logprobs", "teacher_logprobs"},
    "rlrt": {"policy_logprobs", "teacher_logprobs"},
    "sdpo": {"teacher_prompt_token_ids"},
    "sdpg-urkl": {"teacher_prompt_token_ids", "ref_logprobs"},
    "sdpg-ufkl": {"teacher_prompt_token_ids", "ref_logprobs"},
    "oar-p": {"importance_perturb"},
    "oar-g": {"importance_grad"},
    "bicc": {"policy_logprobs", "bilateral_logprobs", "bilateral_prompt_token_ids"},
    "rcc": {"policy_logprobs", "ref_logprobs"},
    "bicc+rcc": {
        "policy_logprobs",
        "bilateral_logprobs",
        "bilateral_prompt_token_ids",
        "ref_logprobs",
    },
}
TOLD_BY_DATA = {"opsd", "sdft", "grpo+opsd", "rlsd", "sdpg-urkl", "sdpg-ufkl"}
TOLD_BY_PEERS = {"rlrt", "sdpo"}


@pytest.mark.parametrize("name", TABLE)
def test_what_a_method_asks_for(name: str) -> None:
    """CAST's teacher never sees the answer; pure distillation alone compares no rewards."""
    made = method(name=name)
    assert made.needs == NEEDS.get(name, set())
    assert made.listens == (
        name in TOLD_BY_DATA | TOLD_BY_PEERS | {"opd", "cast", "cast-public", "cast-port"}
    )
    assert made.told_by_data == (name in TOLD_BY_DATA)
    assert made.told_by_peers == (name in TOLD_BY_PEERS)
    assert made.compares == (name not in ("opsd", "opd", "sdft", "sdpo"))
    by_sign = ["the verdict decides no direction"] if name == "cast-public" else []
    assert all(said in told for said, told in zip(by_sign, made.warnings(), strict=True))
