"""The sections made of diagnoses: from JSON alone, in every case, and saying what is so."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib import rc_context
from rich.console import Console

from castctl.diagnosis import confidence, credit, engine, flips, groups
from castctl.diagnosis.data import StepData
from castctl.diagnosis.diagnosis import Context, Diagnosis, read_diagnosis
from castctl.inspection.tokens import TokenTexts
from castctl.report.diagnostics import confidence as confidence_report
from castctl.report.diagnostics import credit as credit_report
from castctl.report.diagnostics import engine as engine_report
from castctl.report.diagnostics import flips as flips_report
from castctl.report.diagnostics import groups as groups_report
from castctl.report.diagnostics import write_pictures
from castctl.report.document import Picture, Section, Sheet
from castctl.report.section_page import section_page
from random_steps import random_step

ROOMS = {
    "groups": (groups, groups_report),
    "flips": (flips, flips_report),
    "credit": (credit, credit_report),
    "confidence": (confidence, confidence_report),
    "engine": (engine, engine_report),
}
EAGER = {"name": "cast", "shaping": {"kind": "cast", "tau_floor": 0.01, "tau_rms": 0.5}}
QUIET = {"name": "cast", "shaping": {"kind": "cast", "tau_nats": 1e6}}
HOSTILE = "$\\nothing$ \x1b[31m<script>"


class HostileTexts(TokenTexts):
    """A tokenizer whose every token is an attempt on the terminal, the page and the figure."""

    def __init__(self) -> None:
        super().__init__(None)
        self.text = lambda id: HOSTILE

    def together(self, ids: Any) -> str:
        return HOSTILE * len(ids)


Make = Callable[..., Section]


@pytest.fixture
def section(tmp_path: Path) -> Make:
    """Measure steps, write the diagnosis, read it back, and make its section."""

    def make(name: str, *steps: StepData, context: Context | None = None) -> Section:
        measuring, reporting = ROOMS[name]
        numbers = measuring.measure(iter(steps), context or Context(TokenTexts(None)))
        path = tmp_path / f"{name}.json"
        Diagnosis(name, "?", {}, [], numbers, [], 0).write(path)
        return reporting.section(read_diagnosis(path))

    return make


def words_of(section: Section) -> str:
    """What it says, the answer and the paragraphs."""
    return "\n".join([*section.answer, *(b for b in section.blocks if isinstance(b, str))])


def check(section: Section) -> None:
    """Every table is even, every figure draws without a complaint, words lack no number."""
    for block in section.blocks:
        if isinstance(block, Sheet):
            assert all(len(row) == len(block.headings) for row in block.rows), block.title
            assert all(isinstance(cell, str) for row in block.rows for cell in row), block.title
        elif isinstance(block, Picture):
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                with rc_context({"text.parse_math": False}):
                    figure = block.draw()
                    figure.canvas.draw()
            for axes in figure.axes:
                assert axes.get_title(loc="left") and axes.get_ylabel()
        else:
            assert not re.search(r"\b(None|nan)\b", block), block
    names = [block.name for block in section.blocks if isinstance(block, Picture)]
    assert len(set(names)) == len(names)
    assert len(section.answer) == 2 and all(len(words) <= 240 for words in section.answer)
    assert not re.search(r"\b(None|nan)\b|  |\(\)", " ".join(section.answer)), section.answer
    page = io.StringIO()
    Console(file=page, width=80).print(section_page(section, full=False))
    answered, *rest = page.getvalue().split("\n\n")
    assert " ".join(answered.split()).endswith(" ".join(" ".join(section.answer).split()))
    assert all(len(line) <= 80 for line in page.getvalue().splitlines()) and "--full" in rest[-1]
    assert "does not show" not in page.getvalue()
    assert section.id and section.title


@pytest.mark.parametrize("name", ROOMS)
def test_several_steps(section: Make, tmp_path: Path, name: str) -> None:
    steps = [random_step(tmp_path / f"step-{n:05d}", n, step=n, method=EAGER) for n in range(6)]
    seconds = {0: {"policy": 1.0, "perturbation": 20.0, "gradient": 2.5}}
    made = section(name, *steps, context=Context(HostileTexts(), seconds=seconds))
    check(made)
    assert "does not show" in words_of(made)
    # A label that is read as mathematics could not be drawn.
    drawn = write_pictures(made, tmp_path / "plots")
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in drawn)


@pytest.mark.parametrize("name", ROOMS)
@pytest.mark.parametrize("kind", ["mixed", "all_correct", "all_wrong", "single", "unknown"])
def test_one_step_of_every_kind_of_group(
    section: Make, tmp_path: Path, name: str, kind: str
) -> None:
    kinds = (kind,) if kind != "single" else ("single", "mixed")
    data = random_step(tmp_path / "step-00000", prompts=2, parts=1, kinds=kinds)
    made = section(name, data)
    check(made)
    if name != "credit" or kind in ("mixed", "all_correct"):
        assert "too narrow" in words_of(made) or (name == "confidence" and kind == "unknown")


def test_groups_say_what_resampling_cannot(section: Make, tmp_path: Path) -> None:
    data = random_step(tmp_path / "step-00000", kinds=("all_wrong",))
    assert "would leave nothing" in words_of(section("groups", data))


def test_flips_say_why_there_are_none(section: Make, tmp_path: Path) -> None:
    high = random_step(tmp_path / "one" / "step-00000", method=QUIET)
    made = section("flips", high)
    check(made)
    assert "nothing against the verdict reached the threshold" in words_of(made)
    same = random_step(tmp_path / "two" / "step-00000", gap=0.0)
    words = words_of(section("flips", same))
    assert "the gap is zero everywhere" in words


def test_credit_says_when_nothing_is_scored(section: Make, tmp_path: Path) -> None:
    data = random_step(tmp_path / "step-00000", scored=False)
    made = section("credit", data)
    check(made)
    assert "No completion could be compared" in words_of(made)


def test_credit_of_unrelated_scores_shows_no_agreement(section: Make, tmp_path: Path) -> None:
    data = random_step(tmp_path / "step-00000", prompts=40, longest=30, kinds=("mixed",))
    words = words_of(section("credit", data))
    assert "no agreement is shown" in words and "What the two passes cost is not known" in words


def test_confidence_says_when_nothing_has_moved(section: Make, tmp_path: Path) -> None:
    made = section("confidence", random_step(tmp_path / "step-00000", drift=0.0))
    check(made)
    assert "RCC is GRPO" in words_of(made)
    assert not any(isinstance(block, Picture) for block in made.blocks)


def test_engine_names_rounding_precision_and_worse(section: Make, tmp_path: Path) -> None:
    for noise, said in ((1e-6, "rounding leaves"), (5e-3, "half precision"), (0.3, "temperature")):
        data = random_step(tmp_path / str(noise) / "step-00000", noise=noise)
        assert said in words_of(section("engine", data))


def test_engine_of_nothing_and_of_the_impossible(section: Make, tmp_path: Path) -> None:
    data = random_step(tmp_path / "step-00000")
    nothing = replace(data, sampler_N=np.full(len(data.ids_N), np.nan))
    assert "No token has log-probs of both" in words_of(section("engine", nothing))
    far = data.sampler_N.copy()
    far[0] -= 5000
    made = section("engine", replace(data, sampler_N=far))
    check(made)
    assert "beyond any number" in words_of(made)
