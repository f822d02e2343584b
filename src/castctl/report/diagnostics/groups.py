"""Groups: what they are, how much of a batch teaches, and what resampling would cost."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from castctl.diagnosis.diagnosis import Diagnosis
from castctl.report.axes import whole_numbers
from castctl.report.colors import BLACK, GROUPS, ORANGE
from castctl.report.diagnostics.figures import (
    along_steps,
    curve,
    legend_below,
    name,
    panels,
    points,
    steps_of,
)
from castctl.report.diagnostics.words import answer, cell, few, share, share_cell, slope
from castctl.report.document import Picture, Section, Sheet
from castctl.report.marks import counted, number

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

KINDS = {
    "mixed": ("mixed", GROUPS["mixed"], "o"),
    "all_correct": ("all correct", GROUPS["all_correct"], "^"),
    "all_wrong": ("all wrong", GROUPS["all_wrong"], "v"),
    "single": ("single", GROUPS["single"], "s"),
}
RULES = {"zero": "zero advantage (GRPO)", "signed": "the verifier's sign (CAST)"}


def section(diagnosis: Diagnosis) -> Section:
    """The kinds of groups, the share of a batch with gradient, verdicts, and the steps."""
    numbers = diagnosis.numbers
    blocks: list[str | Sheet | Picture] = [
        _kinds(numbers),
        _gradient(numbers),
        *_words(numbers),
        *_pictures(numbers),
        _verdicts(numbers),
        _smaller(numbers),
    ]
    if len(numbers["by_step"]) > 1:
        blocks.append(_steps(numbers["by_step"]))
    return Section(
        diagnosis.name, "Groups and the gradient they carry", blocks, answer=_answer(numbers)
    )


def _answer(numbers: dict[str, Any]) -> tuple[str, str]:
    kinds, zero, signed = (numbers["kinds"], *(numbers["gradient"][rule] for rule in RULES))
    if kinds["mixed"] is None:
        return "There is no group here.", "So nothing can be said of what teaches."
    pure = (f"{share_cell({**kinds[kind], 'low': None}, '%')} are {kind.replace('_', ' ')}"
            for kind in ("all_correct", "all_wrong"))  # fmt: skip
    first = f"{share_cell(kinds['mixed'], '%')} of the groups are mixed; {', '.join(pure)}."
    second = f"By GRPO's rule {share_cell(zero['tokens'], '%')} of the tokens carry an advantage"
    if signed is not None:
        second += f", by CAST's {share_cell({**signed['tokens'], 'low': None}, '%')}"
    return answer(first, f"{second}.", numbers["prompts"])


def _kinds(numbers: dict[str, Any]) -> Sheet:
    rows = [[title, share_cell(numbers["kinds"][kind])] for kind, (title, _, _) in KINDS.items()]
    note = (
        f"{numbers['groups']:,} groups of {numbers['prompts']:,} prompts, "
        f"{numbers['completions']:,} completions, {len(numbers['by_step'])} steps. Single: fewer "
        "than two completions with a reward. Brackets: 95 % intervals over prompts."
    )
    headings = ("kind", "share of groups, %")
    return Sheet("Kinds of groups", headings, rows, note, first=headings)


def _gradient(numbers: dict[str, Any]) -> Sheet:
    rows = [
        [title, share_cell(told["completions"]), share_cell(told["tokens"]),
         number(told["batch"]), number(told["effective"])]
        for rule, title in RULES.items()
        if (told := numbers["gradient"][rule]) is not None and "batch" in told
    ]  # fmt: skip
    headings = ("groups without variance get", "completions, %", "tokens, %", "completions a step",
                "effective")  # fmt: skip
    note = (
        "What has an advantage other than 0, GRPO's in mixed groups. Effective: how many "
        "completions of equal size would weigh as much, (sum |A|)^2 / sum A^2, mean over steps."
    )
    return Sheet("How much of a batch carries gradient", headings, rows, note, first=headings[:3])


def _verdicts(numbers: dict[str, Any]) -> Sheet:
    rows = [
        [verdict.replace("_", " "), share_cell(told)]
        for verdict, told in numbers["verdicts"].items()
        if told and told["mean"]
    ]
    note = f"{numbers['unjudged']:,} completions have no reward and enter no group's statistics."
    return Sheet("Verdicts", ("verdict", "share of completions, %"), rows, note)


def _smaller(numbers: dict[str, Any]) -> Sheet:
    rows = [[k, share_cell(told)] for k, told in numbers["mixed_at"].items()]
    note = "The chance that so many of a group's judged completions, drawn at random, are mixed."
    return Sheet("Mixed groups by group size", ("completions", "mixed, %"), rows, note)


def _steps(steps: list[dict[str, Any]]) -> Sheet:
    rows = [
        [str(counted(step["step"])), str(step["groups"]), cell(step["reward"], 2),
         *(share_cell(step["kinds"][kind]) for kind in ("mixed", "all_correct", "all_wrong")),
         share_cell(step["gradient"]["zero"]["tokens"]),
         number(step["gradient"]["zero"]["effective"]), cell(step["rounds"], 2)]
        for step in steps
    ]  # fmt: skip
    headings = ("step", "groups", "reward", "mixed, %", "all correct, %", "all wrong, %",
                "tokens with gradient, %", "effective", "DAPO's groups")  # fmt: skip
    note = "Gradient, effective: where groups without variance get none. DAPO's groups: rolled out "
    return Sheet("Step by step", headings, rows, note + "for each one kept.")


def _words(numbers: dict[str, Any]) -> list[str]:
    kinds = numbers["kinds"]
    if kinds["mixed"] is None:
        return ["There is no group here."]
    words = [
        f"{share(kinds['mixed'])} of the groups are mixed: only these hold right and wrong answers "
        f"to one prompt, and under GRPO only these teach. {share(kinds['all_correct'])} are all "
        f"correct and {share(kinds['all_wrong'])} all wrong.",
        _carries(numbers),
        _resampling(numbers),
    ]
    words += slope(numbers["trend"], "the share of mixed groups")
    words.append(
        "What this does not show: that an advantage which is not zero helps. CAST's signed base "
        "gives every token of such a group the same push, and whether that teaches or only "
        "sharpens is a question for a comparison of runs. Nor does it say how many groups would be "
        "mixed with more samples than were drawn. Intervals hold the prompts for a sample of many; "
        "within a run the policy changes from step to step."
    )
    return words + few(numbers["prompts"])


def _carries(numbers: dict[str, Any]) -> str:
    zero, signed = numbers["gradient"]["zero"], numbers["gradient"]["signed"]
    a_step = numbers["completions"] / max(len(numbers["by_step"]), 1)
    words = (
        f"With GRPO's rule {share(zero['tokens'])} of the completion tokens carry an advantage: of "
        f"{number(a_step)} completions a step {number(zero['batch'])}, which weigh as much as "
        f"{number(zero['effective'])} of equal size."
    )
    if signed is None:
        return words + " Rewards are not all 0 or 1, so CAST's signed base does not apply."
    return words + (
        f" With CAST's signed base it is {share(signed['tokens'])} of the tokens, and "
        f"{number(signed['batch'])} completions that weigh as {number(signed['effective'])}."
    )


def _resampling(numbers: dict[str, Any]) -> str:
    rounds = numbers["rounds"]
    if rounds is None:
        return "No group is mixed, so dropping the others as DAPO does would leave nothing."
    low, high = rounds["low"], rounds["high"]
    bounds = "" if low is None else f" (95 % interval {number(low)} to {_upper(high)})"
    return (
        f"To fill a step with mixed groups alone DAPO would roll out {number(rounds['mean'])} "
        f"groups{bounds} for each that it keeps, and more where it works in whole rounds."
    )


def _upper(bound: float | None) -> str:
    return "any number" if bound is None else number(bound)


def _pictures(numbers: dict[str, Any]) -> list[Picture]:
    pictures = [
        Picture(
            "groups-by-step",
            "Kinds of groups and the share of tokens with gradient, step by step",
            "Two plots over the steps: the share of mixed, all-correct and all-wrong groups, and "
            "the share of completion tokens whose advantage is not zero under both rules.",
            lambda: _draw_steps(numbers),
        )
    ]
    if numbers["correct"]:
        pictures.append(
            Picture(
                "groups-correct",
                "How many completions of a group are correct, and how many make it mixed",
                "A bar chart of groups by their number of correct completions, and a curve of the "
                "share of groups that a smaller number of their completions would leave mixed.",
                lambda: _draw_correct(numbers),
            )
        )
    return pictures


def _draw_steps(numbers: dict[str, Any]) -> Figure:
    figure, (left, right) = panels(1, 2)
    steps = numbers["by_step"]
    at = steps_of(steps)
    draw = curve if len(at) > 1 else points
    for kind, (title, color, marker) in KINDS.items():
        told = [step["kinds"][kind] for step in steps]
        if any(each and each["mean"] for each in told):
            draw(left, at, told, title, color, scale=100, marker=marker)
    for rule, color, marker in (("zero", BLACK, "o"), ("signed", ORANGE, "s")):
        if all(step["gradient"][rule] for step in steps):
            told = [step["gradient"][rule]["tokens"] for step in steps]
            draw(right, at, told, RULES[rule], color, scale=100, marker=marker)
    name(left, "Groups of each kind (bands: 95 %)", "step", "share of groups, %")
    name(right, "Tokens with an advantage other than 0", "step", "share of completion tokens, %")
    for axes in (left, right):
        _percent_axis(axes)
        along_steps(axes, steps)
    return figure


def _percent_axis(axes: Axes) -> None:
    axes.set_ylim(0, 100)
    legend_below(axes, 3)


def _draw_correct(numbers: dict[str, Any]) -> Figure:
    figure, (left, right) = panels(1, 2)
    sizes = numbers["correct"]
    size = max(sizes, key=lambda each: sum(sizes[each]))  # that of most groups
    counts = sizes[size]
    mixed = [GROUPS["mixed"]] * (len(counts) - 2)
    colors = [GROUPS["all_wrong"], *mixed, GROUPS["all_correct"]]
    bars = left.bar(range(len(counts)), counts, color=colors)
    left.bar_label(bars, fontsize=7)
    name(left, f"Groups of {size} judged completions", "correct completions of the group",
         "groups")  # fmt: skip
    whole_numbers(left)
    told = numbers["mixed_at"]
    curve(right, [int(k) for k in told], list(told.values()), "mixed", GROUPS["mixed"], scale=100)
    name(right, "Groups that would be mixed with fewer completions", "completions a group",
         "share of groups, %")  # fmt: skip
    right.set_ylim(0, 100)
    whole_numbers(right)
    return figure
