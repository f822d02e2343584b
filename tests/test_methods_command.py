"""`castctl methods`: all of them in short, and one with the settings of its slots."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from castctl.methods import PRESETS, MethodSettings
from castctl.methods.presets import SCRIPTS
from castctl.settings import settings_in
from conftest import Cli

TEACHERS = {
    "cast": ("snapshot", "none"),
    "cast-public": ("snapshot", "none"),
    "cast-port": ("snapshot", "none"),
    "opsd": ("initial", "solution_or_answer"),
    "opd": ("model", "none"),
    "sdft": ("ema", "solution_or_answer"),
    "grpo+opsd": ("initial", "solution_or_answer"),
    "rlsd": ("current", "solution_or_answer"),
    "rlrt": ("current", "peer"),
    "sdpo": ("ema", "peer"),
    "sdpg-urkl": ("current", "solution_or_answer"),
    "sdpg-ufkl": ("current", "solution_or_answer"),
}
NEEDS = {
    "high-entropy": ["entropies"],
    "rl-zvp": ["entropies"],
    "cast": ["teacher_logprobs"],
    "cast-public": ["teacher_logprobs"],
    "cast-port": ["teacher_logprobs"],
    "opsd": ["teacher_prompt_token_ids"],
    "opd": ["teacher_prompt_token_ids"],
    "sdft": ["teacher_prompt_token_ids"],
    "grpo+opsd": ["teacher_prompt_token_ids"],
    "rlsd": ["teacher_logprobs"],
    "rlrt": ["teacher_logprobs"],
    "sdpo": ["teacher_prompt_token_ids"],
    "sdpg-urkl": ["ref_logprobs", "teacher_prompt_token_ids"],
    "sdpg-ufkl": ["ref_logprobs", "teacher_prompt_token_ids"],
    "oar-p": ["importance_perturb"],
    "oar-g": ["importance_grad"],
    "bicc": ["bilateral_logprobs", "bilateral_prompt_token_ids"],
    "rcc": ["ref_logprobs"],
    "bicc+rcc": ["bilateral_logprobs", "bilateral_prompt_token_ids", "ref_logprobs"],
}
PASSES = {
    "grpo": [],
    "rl-zvp": ["policy"],
    "cast": ["policy", "teacher"],
    "cast-public": ["policy", "teacher"],
    "rlsd": ["policy", "teacher"],
    "opsd": [],  # the teacher is asked in training, for its whole distribution
    "sdpg-urkl": ["reference"],
    "oar-p": ["perturbation"],
    "bicc+rcc": ["policy", "reference", "bilateral"],
}


def one(castctl: Cli, name: str) -> dict[str, Any]:
    return json.loads(castctl("methods", name, "--json").stdout)


def settings_of(page: dict[str, Any]) -> dict[str, dict[str, Any]]:
    slots = page["slots"].values()
    return {setting["key"]: setting for slot in slots for setting in slot["settings"]}


def on_terminal(
    castctl: Cli, monkeypatch: pytest.MonkeyPatch, columns: int, *arguments: str
) -> list[str]:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", str(columns))
    shown = re.sub(r"\x1b\[[\d;]*m", "", castctl(*arguments).stdout)
    lines = [line.rstrip() for line in shown.splitlines()]
    assert max(map(len, lines)) <= columns and "…" not in shown
    return lines


def test_methods_are_listed_in_their_order(castctl: Cli) -> None:
    methods = json.loads(castctl("methods", "--json").stdout)["methods"]
    assert [method["name"] for method in methods] == list(PRESETS)
    for method in methods:
        name = method["name"]
        kind, context = TEACHERS.get(name, ("none", "none"))
        assert method["teacher"] == {"kind": kind, "context": context}, name
        assert method["needs"] == NEEDS.get(name, []), name
        assert method["paper"] == PRESETS[name].paper
    [sdpg] = [method for method in methods if method["aliases"]]
    assert (sdpg["name"], sdpg["aliases"]) == ("sdpg-urkl", ["sdpg"])


def test_the_table_fits_its_terminal(castctl: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    for columns in (100, 140):
        lines = on_terminal(castctl, monkeypatch, columns, "methods")
        [row] = [line for line in lines if line.startswith("rlsd ")]
        assert "2604.03128" in row and "current" in row and row.endswith("teacher_logprobs")
        assert [line for line in lines if line.endswith(" bilateral_prompt_token_ids")]
    lines = on_terminal(castctl, monkeypatch, 80, "methods")
    at = lines.index("rlsd  arXiv 2604.03128")
    assert lines[at + 1].startswith("    The verifier's direction")
    assert lines[at + 2] == (
        "    teacher: current, sees solution or answer; signals: teacher_logprobs"
    )


@pytest.mark.parametrize("name", PRESETS)
def test_one_method_shows_every_setting_of_its_slots(castctl: Cli, name: str) -> None:
    page = one(castctl, name)
    method, default = MethodSettings(name=name), MethodSettings()
    settings = settings_of(page)
    expected = {each.key: each for each in settings_in(method, default, "method.")}
    assert settings.keys() == expected.keys() - {"method.name"}
    for key, setting in settings.items():
        same = (expected[key].value, expected[key].default)
        assert json.loads(json.dumps(same)) == [setting["value"], setting["default"]]
        assert setting["meaning"], key
        changed = setting["value"] != setting["default"]
        assert setting["origin"] == (f"preset {name}" if changed else None)
        if changed:
            assert setting["choice"] in (PRESETS[name].whose, "ours")
    assert (page["name"], page["paper"]) == (name, PRESETS[name].paper)
    assert page["needs"] == NEEDS.get(name, [])
    if name in PASSES:
        assert page["scoring_passes"] == PASSES[name]


def test_whose_choice_a_value_is(castctl: Cli) -> None:
    choices = {
        "cast": {
            "teacher.kind": "ours", "teacher.every": "ours", "surrogate.clip_high": "ours",
            "zero_variance.kind": "paper", "shaping.positive_range": "paper",
            "shaping.tau_floor": "ours", "shaping.tau_nats": None,
        },
        "cast-public": {
            "teacher.template": SCRIPTS, "teacher.chat": SCRIPTS, "overlong.kind": SCRIPTS,
            "baseline.std": SCRIPTS, "shaping.tau_nats": SCRIPTS, "shaping.flip_size": SCRIPTS,
            "surrogate.aggregation": "ours", "shaping.positive_range": "paper",
        },
        "cast-port": {
            "shaping.flip": SCRIPTS, "teacher.every": SCRIPTS, "shaping.dead_band": "ours",
        },
        "sdpg": {
            "surrogate.kind": "paper", "surrogate.aggregation": "ours", "anchor.kind": "paper",
            "distillation.coefficient": "paper", "distillation.gate": "paper",
        },
        "rlrt": {
            "shaping.decay_steps": "paper", "shaping.eps_w": "paper", "shaping.kind": "paper",
            "teacher.kind": "paper", "teacher.context": "paper",
        },
        "sdpo": {
            "teacher.kind": "paper", "teacher.decay": "paper", "distillation.tokens": "paper",
            "surrogate.aggregation": "ours",
        },
        "oar-p": {"shaping.score": "ours"},
        "oar-g": {"shaping.score": "paper"},
    }  # fmt: skip
    for name, expected in choices.items():
        settings = settings_of(one(castctl, name))
        assert {key: settings[f"method.{key}"]["choice"] for key in expected} == expected


@pytest.mark.parametrize("columns", [80, 140])
def test_the_page_of_a_method(castctl: Cli, monkeypatch: pytest.MonkeyPatch, columns: int) -> None:
    lines = on_terminal(castctl, monkeypatch, columns, "methods", "sdpg")
    assert lines[0] == "sdpg-urkl  arXiv 2606.04036"
    facts = {name: text for line in lines for name, _, text in [line.partition("  ")] if text}
    assert facts["also called"].strip() == "sdpg"
    assert facts["read in scoring by"].strip() == "reference"
    at = lines.index("distillation")
    assert lines[at + 1] == "The loss that pulls towards the teacher's distributions."
    section = lines[at : lines.index("", at)]
    if columns == 80:
        assert "coefficient = 0.001; default 1.0; paper" in section
    else:
        assert lines[at + 2].split() == ["setting", "value", "default", "choice", "meaning"]
        [row] = [line for line in section if line.startswith("coefficient ")]
        assert row.split()[1:4] == ["0.001", "1.0", "paper"]


def test_what_is_off_is_shown_by_its_kind_alone(castctl: Cli) -> None:
    lines = castctl("methods", "grpo").stdout.splitlines()
    at = next(i for i, line in enumerate(lines) if line.startswith("teacher") and "  " not in line)
    assert lines[at + 4].split()[:2] == ["kind", "none"]
    assert not [line for line in lines if line.startswith(("decay ", "coefficient "))]
    opsd = castctl("methods", "opsd").stdout.splitlines()  # off, and yet it says what is averaged
    assert [line for line in opsd if line.startswith("aggregation ")]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("csat", "no method 'csat'; the nearest is cast"),
        ("sdgp-urkl", "the nearest is sdpg-urkl"),
        ("zzzz", "there are grpo, dr-grpo"),
        ("", "no method ''"),
    ],
)
def test_an_unknown_method_gets_one_line(castctl: Cli, name: str, words: str) -> None:
    for arguments in (("methods", name), ("methods", name, "--json")):
        done = castctl(*arguments, code=2)
        [line] = done.stderr.splitlines()
        assert line.startswith("castctl: ") and words in line and done.stdout == ""
