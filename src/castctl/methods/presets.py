"""The methods by name: what each sets in the slots, and where it comes from."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

Slots = dict[str, Any]

PAPER, OURS = "paper", "ours"
SCRIPTS = "public scripts, attribution inferred"
"""Whose choice a value is."""


@dataclass(frozen=True)
class Preset:
    """A named method: one line, its paper, and its settings where they differ from the defaults.

    `whose` choice these are; `open` names the slots and settings (dotted) that it leaves open, so
    that what stands there is ours.
    """

    summary: str
    paper: str
    slots: Slots = field(default_factory=dict)
    open: tuple[str, ...] = ()
    whose: str = PAPER


PRIVILEGED: Slots = {"context": "solution_or_answer"}
"""A teacher that sees the solution where there is one, else the answer."""
DAPO_SURROGATE: Slots = {"clip_high": 0.28, "aggregation": "token_mean"}
SCAFFOLD = "{{ prompt }}\n\n[Student response]\n"
"""The user text of the public scripts' teacher, which reads no chat template."""
DEMONSTRATION = (
    "{{ prompt }}\n\nThis is an example for a response to the question:\n"
    "{{ solution or answer }}\n\n"
    "Now answer with a response of your own, including the thinking process."
)
"""The user text of SDFT's teacher, by its paper's code."""
OPSD_TEACHER: Slots = {"kind": "initial", "decay": 0.999, **PRIVILEGED}


def _sdpg(anchor: str) -> Slots:
    return {
        "teacher": {"kind": "current", **PRIVILEGED},
        "surrogate": {"kind": "reinforce", "aggregation": "token_mean"},
        "distillation": {"kind": "reverse_kl", "coefficient": 0.001, "gate": True},
        "anchor": {"kind": anchor},
    }


PRESETS: dict[str, Preset] = {
    "grpo": Preset("Rewards compared within the group", "arXiv 2402.03300"),
    "dr-grpo": Preset(
        "GRPO without dividing by deviation or length",
        "arXiv 2503.20783",
        {"baseline": {"kind": "mean"}, "surrogate": {"aggregation": "constant"}},
    ),
    "rloo": Preset(
        "Each reward against the mean of the others",
        "arXiv 2402.14740",
        {"baseline": {"kind": "leave_one_out"}, "surrogate": {"aggregation": "token_mean"}},
        ("surrogate",),
    ),
    "maxrl": Preset(
        "Each reward minus the group's mean, over that mean: hard problems weigh more",
        "arXiv 2602.02710",
        {"baseline": {"kind": "maxrl"}, "surrogate": {"aggregation": "token_mean"}},
        ("surrogate",),
    ),
    "reinforce++": Preset(
        "With baseline: rewards less the group's mean, over the step's deviation of them",
        "arXiv 2501.03262",
        {"baseline": {"kind": "batch_std"}, "surrogate": {"aggregation": "token_mean"}},
        ("surrogate",),
    ),
    "lite-ppo": Preset(
        "Rewards compared within the group, scaled by the step's deviation of rewards; token mean",
        "arXiv 2508.08221",
        {
            "baseline": {"kind": "batch_std", "of": "rewards"},
            "surrogate": {"aggregation": "token_mean"},
        },
    ),
    "dapo": Preset(
        "GRPO with a higher clip, token mean, dropped groups replaced, long answers penalised",
        "arXiv 2503.14476",
        {
            "zero_variance": {"kind": "resample"},
            "overlong": {"kind": "penalty"},
            "surrogate": DAPO_SURROGATE,
        },
    ),
    "high-entropy": Preset(
        "DAPO, its policy loss over the fifth of the tokens with the highest entropy",
        "arXiv 2506.01939",
        {
            "zero_variance": {"kind": "resample"},
            "overlong": {"kind": "penalty"},
            "surrogate": DAPO_SURROGATE,
            "token_mask": {"kind": "high_entropy"},
        },
    ),
    "clip-cov": Preset(
        "GRPO without its clip, and without tokens drawn from those of high covariance",
        "arXiv 2505.22617",
        {
            "zero_variance": {"kind": "resample"},
            "surrogate": {
                "clip_low": 1.0,
                "clip_high": 1.0,
                "dual_clip": 10.0,
                "aggregation": "token_mean",
            },
            "token_mask": {"kind": "clip_cov"},
        },
    ),
    "rl-zvp": Preset(
        "GRPO, and groups without variance teach by the verifier's sign and each token's entropy",
        "arXiv 2509.21880",
        {"zero_variance": {"kind": "entropy"}, "surrogate": DAPO_SURROGATE},
        ("zero_variance.alpha", "surrogate"),
    ),
    "gspo": Preset(
        "GRPO with one clipped ratio a completion, the geometric mean of its tokens'",
        "arXiv 2507.18071",
        {"surrogate": {"kind": "gspo"}},
    ),
    "cispo": Preset(
        "REINFORCE weighted by the clipped ratio, so that no token loses its gradient",
        "arXiv 2506.13585",
        {"surrogate": {"kind": "cispo", "aggregation": "token_mean"}},
    ),
    "dppo": Preset(
        "A trust region by how far a token's probability moved, and not by its ratio",
        "arXiv 2602.04879",
        {"surrogate": {"kind": "dppo", "aggregation": "token_mean"}},
        ("surrogate.aggregation",),
    ),
    "sapo": Preset(
        "A smooth gate on the ratio in the clip's place",
        "arXiv 2511.20347",
        {"surrogate": {"kind": "sapo"}},
    ),
    "cast": Preset(
        "An answer-free self-teacher shapes and flips token advantages; no group is silent",
        "arXiv 2606.00172",
        {
            "zero_variance": {"kind": "signed"},
            "shaping": {"kind": "cast"},
            "teacher": {"kind": "snapshot"},
            "surrogate": DAPO_SURROGATE,
        },
        ("teacher", "surrogate"),
    ),
    "cast-public": Preset(
        "CAST as public scripts run it: the gap's sign is each token's direction, right or wrong",
        "arXiv 2606.00172",
        {
            "baseline": {"kind": "mean_std", "std": "sample", "eps": 1e-4},
            "zero_variance": {"kind": "signed"},
            "overlong": {"kind": "mask"},
            "shaping": {"kind": "cast", "tau_nats": 0.0, "flip_size": "other_side"},
            "teacher": {"kind": "snapshot", "template": SCAFFOLD, "chat": False},
            "surrogate": DAPO_SURROGATE,
        },
        ("surrogate.aggregation",),
        SCRIPTS,
    ),
    "cast-port": Preset(
        "CAST as a later port runs it: no flips, and small gaps shape nothing",
        "arXiv 2606.00172",
        {
            "zero_variance": {"kind": "signed"},
            "shaping": {"kind": "cast", "lam": 0.5, "dead_band": (0.95, 1.05), "flip": "none"},
            "teacher": {"kind": "snapshot", "every": 50},
            "surrogate": DAPO_SURROGATE,
        },
        ("shaping.dead_band", "surrogate.aggregation"),
        SCRIPTS,
    ),
    "opsd": Preset(
        "Distillation alone, from the model itself when it sees the solution",
        "arXiv 2601.18734",
        {
            "baseline": {"kind": "none"},
            "teacher": OPSD_TEACHER,
            "surrogate": {"kind": "none", "aggregation": "token_mean"},
            "distillation": {"kind": "jsd"},
        },
        ("teacher.decay", "surrogate.aggregation"),
    ),
    "opd": Preset(
        "Distillation alone, from another model of the same vocabulary, which you name",
        "arXiv 2306.13649",
        {
            "baseline": {"kind": "none"},
            "teacher": {"kind": "model"},
            "surrogate": {"kind": "none", "aggregation": "token_mean"},
            "distillation": {"kind": "reverse_kl"},
        },
        ("surrogate.aggregation",),
    ),
    "sdft": Preset(
        "Distillation alone, from the model's own average when it sees a demonstration",
        "arXiv 2601.19897",
        {
            "baseline": {"kind": "none"},
            "teacher": {
                "kind": "ema",
                "decay": 0.99,
                "skip_tokens": 3,
                "template": DEMONSTRATION,
                **PRIVILEGED,
            },
            "surrogate": {"kind": "none", "aggregation": "token_mean"},
            "distillation": {"kind": "reverse_kl"},
        },
        ("surrogate.aggregation",),
    ),
    "grpo+opsd": Preset(
        "The losses of GRPO and OPSD added",
        "arXiv 2601.18734",
        {"teacher": OPSD_TEACHER, "distillation": {"kind": "jsd"}},
        ("teacher.decay",),
    ),
    "rlsd": Preset(
        "The verifier's direction, scaled by a teacher that sees the solution",
        "arXiv 2604.03128",
        {
            "shaping": {"kind": "rlsd"},
            "teacher": {"kind": "current", **PRIVILEGED},
            "surrogate": DAPO_SURROGATE,
        },
        ("surrogate",),
    ),
    "rlrt": Preset(
        "Reinforces right completions where the teacher would have gone elsewhere",
        "arXiv 2605.10781",
        {
            "shaping": {"kind": "rlrt"},
            "teacher": {"kind": "current", "context": "peer"},
            "surrogate": DAPO_SURROGATE,
        },
        ("surrogate",),
    ),
    "sdpo": Preset(
        "Distillation alone, from the model itself when it sees a correct completion of the group",
        "arXiv 2601.20802",
        {
            "baseline": {"kind": "none"},
            "teacher": {"kind": "ema", "decay": 0.95, "context": "peer"},
            "surrogate": {"kind": "none", "aggregation": "token_mean"},
            "distillation": {"kind": "jsd", "tokens": "top_k_tail", "top_k": 100},
        },
        ("surrogate.aggregation",),
    ),
    "sdpg-urkl": Preset(
        "REINFORCE, reverse KL to the solution-reading self on right completions, k2 anchor",
        "arXiv 2606.04036",
        _sdpg("urkl"),
        ("surrogate.aggregation",),
    ),
    "sdpg-ufkl": Preset(
        "The same with the k3 anchor", "arXiv 2606.04036", _sdpg("ufkl"), ("surrogate.aggregation",)
    ),
    "oar-p": Preset(
        "Credit by how much replacing a token changes the answer",
        "arXiv 2601.07408",
        {"shaping": {"kind": "oar-p"}},
    ),
    "oar-g": Preset(
        "Credit by the answer's gradient at a token's embedding",
        "arXiv 2601.07408",
        {"shaping": {"kind": "oar-g"}},
    ),
    "bicc": Preset(
        "Ratios under a prompt that shows the group's opposite completions",
        "arXiv 2603.13134",
        {"conditioning": {"kind": "bilateral"}},
    ),
    "rcc": Preset(
        "GRPO's baseline corrected by the covariance of reward and confidence",
        "arXiv 2603.13134",
        {"baseline": {"kind": "rcc"}},
    ),
    "bicc+rcc": Preset(
        "Bilateral conditioning and the corrected baseline together",
        "arXiv 2603.13134",
        {"baseline": {"kind": "rcc"}, "conditioning": {"kind": "bilateral"}},
    ),
}
"""In the order of `castctl methods`."""

ALIASES = {"sdpg": "sdpg-urkl"}
"""Other names of the same."""


def preset(name: object) -> tuple[str, Preset]:
    """The method of that name and its own name; `ValueError` naming the nearest where there is
    none."""
    import difflib

    known = [*PRESETS, *ALIASES]
    if not isinstance(name, str) or name not in known:
        near = difflib.get_close_matches(str(name).lower(), known, n=1, cutoff=0.6)
        hint = f"the nearest is {near[0]}" if near else f"there are {', '.join(PRESETS)}"
        raise ValueError(f"no method {name!r}; {hint} (castctl methods)")
    name = ALIASES.get(name, name)
    return name, PRESETS[name]
