"""What the gap of a teacher shows: tables and words. Its plots stand in `gap_figures`."""

from __future__ import annotations

from typing import Any

from castctl.diagnosis.diagnosis import Diagnosis
from castctl.diagnosis.pool import CELLS
from castctl.report.diagnostics.agreement import agreement_sheet, agreement_words
from castctl.report.diagnostics.gap_control import control_answer, control_sheet
from castctl.report.diagnostics.gap_figures import NAMES, gap_pictures
from castctl.report.diagnostics.gap_words import gap_answer, gap_words
from castctl.report.diagnostics.words import around, cell, spelled
from castctl.report.document import Section, Sheet
from castctl.report.marks import counted, number, percent, step_name

SCORES = {
    "mean_gap": "mean gap",
    "mean_positive_gap": "mean positive gap",
    "mean_negative_gap": "mean negative gap",
    "mean_logprob": "no teacher: mean log-prob",
    "length": "no teacher: length",
}

TOLD = 6
"""Carrying tokens told of each cell; NAME.json has more."""

CONTEXTS = 3


def section(diagnosis: Diagnosis) -> Section:
    """The gap in four cells, its noise, and how well it tells correct from incorrect."""
    numbers = diagnosis.numbers
    title = {
        "opsd-gaps": "Gaps of a teacher that sees the answer",
        "self-gaps": "Gaps of the answer-free teacher",
    }[diagnosis.name]
    told = "told_own" in numbers
    if told:
        title = "Gaps of a teacher that is told another problem's answer"
    blocks: list[Any] = [
        *([control_sheet(numbers)] if told else []),
        _cells("Gap in the four cells, in nats", numbers["all"], main=True),
        _noise(numbers),
        _separation(numbers["separation"]),
        *gap_words(diagnosis),
        *gap_pictures(diagnosis),
        _cells("The same in mixed groups alone", numbers["mixed"], main=False),
        _tokens(numbers["tokens"]),
        _contexts(numbers["contexts"]),
    ]
    if len(numbers["by_step"]) > 1:
        blocks.append(_steps(numbers["by_step"]))
    if "alive" in numbers:
        blocks.append(_alive(numbers["alive"]))
        blocks += [agreement_sheet(numbers["agreement"]), *agreement_words(numbers["agreement"])]
    found = control_answer(diagnosis) if told else gap_answer(diagnosis)
    return Section(diagnosis.name, title, blocks, answer=found)


def _cells(title: str, found: dict[str, Any], main: bool) -> Sheet:
    rows = []
    for name in CELLS:
        own = found["cells"][name]
        quantiles = [
            number(own["quantiles"].get(q)) for q in ("0.01", "0.05", "0.5", "0.95", "0.99")
        ]
        rows.append(
            [NAMES[name], f"{own['tokens']:,}", percent(own["share"]["mean"]),
             number(own["mean"]["mean"]), number(own["std"]), *quantiles,
             percent(own["tail_mass"])]
        )  # fmt: skip
    note = (
        "Positive: the teacher finds the token likelier than the policy did. "
        f"{found['completions']:,} completions of {found['prompts']:,} prompts, "
        f"{found['tokens']:,} tokens, {percent(found['zero_share'])} of them with a gap of exactly "
        "0 and in no cell. Tail: the share of a cell's sum of |g| that the 1 % of all tokens with "
        f"the largest |g| carry (above {number(found['tail_edge'])} nats)."
    )
    headings = (
        "cell",
        "tokens",
        "share",
        "mean",
        "std",
        "1 %",
        "5 %",
        "median",
        "95 %",
        "99 %",
        "tail",
    )
    first = ("cell", "tokens", "share", "mean", "std", "tail") if main else ()
    return Sheet(title, headings, rows, note, first=first)


def _noise(numbers: dict[str, Any]) -> Sheet:
    decay = numbers["decay"]
    rows = []
    for name in CELLS:
        own = numbers["all"]["cells"][name]
        rows.append(
            [NAMES[name], percent(own["agrees"]), percent(own["disagrees"]),
             percent(own["undirected"]), "yes" if own["misleads"] else "no",
             percent(own["mass_share"]["mean"]), cell(own["snr"], 2),
             _rate(decay["entropy"], name), _rate(decay["position"], name)]
        )  # fmt: skip
    headings = (
        "cell", "with A", "against A", "no A", "misleads", "of |g|", "signal to noise",
        "decay per nat", "to the end",
    )  # fmt: skip
    note = (
        "With A and against A: tokens whose sign is that of their completion's group-relative "
        "advantage, or the other; no A: their group's rewards are equal. Misleads: who follows the "
        "sign without knowing what is correct goes the wrong way. Signal to noise: |mean| over the "
        "standard deviation; of noise without any direction it would be about 1 in a cell, 1.3 "
        "where that is normal, and less where its tails are long. Decay: how fast its logarithm "
        "falls with the policy's entropy, and from the completion's begin to its end; above 0 it "
        "falls. Brackets: 95 % intervals over "
        "prompts."
    )
    return Sheet("Noise of the cells", headings, rows, note)


def _rate(decay: dict[str, Any] | None, name: str) -> str:
    return "" if decay is None else cell(decay["cells"][name]["rate"], 2)


def _separation(found: dict[str, Any]) -> Sheet:
    rows = [
        [label, cell(found["all"][score]), cell(found["mixed"][score]),
         cell(found["within_prompt"][score]["auc"])]
        for score, label in SCORES.items()
    ]  # fmt: skip
    note = (
        "AUC: how often a correct completion scores higher than an incorrect one, ties half; 0.5 "
        "is chance, below 0.5 incorrect ones score higher. Intervals are bootstrapped over "
        "prompts. Within prompts: only completions of one prompt are compared, then prompts are "
        "averaged."
    )
    headings = ("score of a completion", "all completions", "mixed groups", "within prompts")
    title = "Separation of correct from incorrect completions, AUC"
    first = ("score of a completion", "all completions", "within prompts")
    return Sheet(title, headings, rows, note, first=first)


def _tokens(found: dict[str, list[dict[str, Any]]]) -> Sheet:
    rows = [
        [NAMES[name] if place == 0 else "", spelled(token), f"{token['count']:,}",
         percent(token["mass_share"]), number(token["mean"]), percent(token["share"])]
        for name in CELLS
        for place, token in enumerate(found[name][:TOLD])
    ]  # fmt: skip
    headings = ("cell", "token", "tokens", "share of |g|", "mean gap", "of its occurrences")
    return Sheet("Tokens that carry most of each cell's gap", headings, rows)


def _contexts(found: dict[str, list[dict[str, Any]]]) -> Sheet:
    rows = [
        [NAMES[name] if place == 0 else "", number(context["gap"]),
         f"{step_name(context['step'])}, {context['prompt_id'][:8]}/{context['sample']}",
         around(context)]
        for name in CELLS
        for place, context in enumerate(found[name][:CONTEXTS])
    ]  # fmt: skip
    headings = ("cell", "gap", "where", "the token in «» and what stands about it")
    return Sheet("Places with the largest gaps, one a prompt", headings, rows, right=False)


def _steps(steps: list[dict[str, Any]]) -> Sheet:
    rows = [
        [str(counted(step["step"])), f"{step['tokens']:,}", number(step["rms"]),
         *(number(step["cells"][name]["mean"]["mean"]) for name in CELLS),
         percent(step["misleading_share"]), cell(step["auc"])]
        for step in steps
    ]  # fmt: skip
    headings = ("step", "tokens", "RMS", "+ correct", "- correct", "+ incorrect", "- incorrect",
                "misleading", "AUC of mean gap")  # fmt: skip
    return Sheet("Step by step: mean gap of each cell, in nats", headings, rows)


def _alive(steps: list[dict[str, Any]]) -> Sheet:
    rows = [
        [str(counted(step["step"])), "" if step["age"] is None else str(step["age"]),
         number(step["rms"]), number(step["mean_size"]),
         percent(step["beyond_tenth"]), percent(step["beyond_tau"])]
        for step in steps
    ]  # fmt: skip
    headings = ("step", "teacher's age", "RMS", "mean |g|", "beyond 0.1 nats", "beyond tau")
    note = "Tau is CAST's threshold of flipping, and A below its advantage, by the run's settings "
    note += "or CAST's defaults."
    return Sheet("How much of the gap is alive, in nats", headings, rows, note)
