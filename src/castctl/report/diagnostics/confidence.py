"""Confidence: whether drift goes with reward, and what RCC's baseline makes of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from castctl.diagnosis.diagnosis import Diagnosis
from castctl.report.colors import BLACK, CORRECT, GREEN, INCORRECT
from castctl.report.diagnostics.figures import (
    along_steps,
    curve,
    name,
    panels,
    points,
    steps_of,
)
from castctl.report.diagnostics.words import (
    answer,
    cell,
    few,
    share,
    share_cell,
    side_of,
    slope,
    value,
)
from castctl.report.document import Picture, Section, Sheet
from castctl.report.marks import counted, number, percent

if TYPE_CHECKING:
    from matplotlib.figure import Figure

REDUCTIONS = {"sum": "sum over tokens", "mean": "mean over tokens"}
SIDES = {"correct": CORRECT, "incorrect": INCORRECT}
STILL = (
    "As in the first step of a run, Cov(r, d) is zero, b* is mean(r), and RCC is GRPO. Diagnose a "
    "later step."
)


def section(diagnosis: Diagnosis) -> Section:
    """Drift by reward, its covariance with reward, and RCC's baseline."""
    numbers = diagnosis.numbers
    blocks: list[str | Sheet | Picture] = [_drift(numbers), *_words(numbers)]
    if _moved(numbers):
        blocks += _pictures(numbers)
        if numbers["mixed"]:
            blocks.append(_baseline(numbers))
    if len(numbers["by_step"]) > 1:
        blocks.append(_steps(numbers["by_step"]))
    title = "Confidence: drift from the reference and RCC"
    return Section(diagnosis.name, title, blocks, answer=_answer(numbers))


def _answer(numbers: dict[str, Any]) -> tuple[str, str]:
    if not numbers["completions"]:
        return "No completion has both a reward and a reference's log-probs.", "So nothing follows."
    if not _moved(numbers):
        return "No completion has drifted: the policy is the reference.", STILL
    auc, risk = numbers["sum"]["auc_within"], numbers["baseline"]["risk"]
    goes = {1: "goes with reward", -1: "goes against reward"}.get(
        side_of(auc, 0.5), "is not shown to go with reward"
    )
    first = f"Within a prompt drift {goes}: AUC {cell(auc) or 'unknown, no pair in one group'}."
    if not numbers["mixed"]:
        return answer(first, "No group is mixed, so RCC corrects nothing.", numbers["prompts"])
    makes = {1: "larger", -1: "smaller"}.get(side_of(risk, 1.0), "no change shown")
    second = f"RCC's weighted risk is {cell(risk) or 'unknown'} times GRPO's: {makes}."
    return answer(first, second, numbers["prompts"])


def _moved(numbers: dict[str, Any]) -> bool:
    return numbers["still"] is not None and numbers["still"]["mean"] < 1


def _drift(numbers: dict[str, Any]) -> Sheet:
    rows = []
    for reduction, title in REDUCTIONS.items():
        told = numbers[reduction]
        rows.append(
            [title, *(cell(told[side]["mean"]) for side in SIDES),
             *(number(told[side]["std"]) for side in SIDES), cell(told["covariance"]),
             cell(told["auc"]), cell(told["auc_within"])]
        )  # fmt: skip
    headings = ("d of a completion", "mean, correct", "mean, incorrect", "std, correct",
                "std, incorrect", "Cov(r, d)", "AUC", "AUC within groups")  # fmt: skip
    note = (
        f"d: a completion's l_old - l_ref in nats; {numbers['completions']:,} completions of "
        f"{numbers['prompts']:,} prompts with a reward and a reference, {numbers['mixed']:,} mixed "
        "groups. Cov(r, d) within mixed groups, their mean. AUC: how often a correct completion "
        "has the higher d, ties half; 0.5 is chance. Brackets: 95 % intervals over prompts."
    )
    first = ("d of a completion", "Cov(r, d)", "AUC within groups")
    return Sheet("Drift of correct and of incorrect completions", headings, rows, note, first=first)


def _baseline(numbers: dict[str, Any]) -> Sheet:
    told = numbers["baseline"]
    rows = [
        ["shift of the baseline, b* - mean(r)", cell(told["shift"])],
        ["  its size", cell(told["shift_size"])],
        ["groups whose b* was clipped, %", share_cell(told["clipped"])],
        ["variance of the advantage, RCC / GRPO", cell(told["variance"])],
        ["second moment of the advantage, RCC / GRPO", cell(told["second_moment"])],
        ["weighted risk, RCC / GRPO", cell(told["risk"])],
        ["  of the exact b / GRPO", cell(told["risk_attainable"])],
        ["distance of mean(r) from the exact b", cell(told["error_mean"])],
        ["distance of b* from the exact b", cell(told["error_rcc"])],
    ]
    note = (
        "Weighted risk: E[w^2 (r - b)^2] / E[w^2] with w = exp(d), summed over mixed groups, which "
        "a baseline is to make small; the exact b = E[w^2 r] / E[w^2] makes it least, and b* is "
        "its first-order form. All of a group's baselines are judged on the group itself."
    )
    title, headings = "What RCC does to the baseline, mixed groups", ("", "value")
    return Sheet(title, headings, rows, note, first=headings)


def _steps(steps: list[dict[str, Any]]) -> Sheet:
    rows = [
        [str(counted(step["step"])), cell(step["drift"]), cell(step["covariance"]),
         cell(step["auc_within"]), share_cell(step["clipped"]), cell(step["risk"])]
        for step in steps
    ]  # fmt: skip
    headings = ("step", "mean d, nats", "Cov(r, d)", "AUC within groups", "clipped, %",
                "risk, RCC / GRPO")  # fmt: skip
    return Sheet("Step by step", headings, rows)


def _words(numbers: dict[str, Any]) -> list[str]:
    if not numbers["completions"]:
        return ["No completion here has both a reward and a reference's log-probs."]
    if not _moved(numbers):
        return [f"d is zero for every completion. {STILL}"]
    words = [_still(numbers), _separates(numbers["sum"])]
    if numbers["mixed"]:
        words += [_covariance(numbers), _variance(numbers["baseline"])]
        words += slope(numbers["trend"], "Cov(r, d)", " nats", 1.0)
    else:
        words.append("No group is mixed, so there is no covariance and nothing to correct.")
    words.append(
        "What this does not show: why drift goes with reward. Training on these prompts raises "
        "what was rewarded, so later steps separate because they have learned; and d grows "
        "with the length of a completion, which goes with correctness for reasons of its own "
        "(the mean over tokens leaves most of that out). The risk is that of the weighted "
        "rewards, not of a gradient: the sizes of its terms are left out. Whether RCC trains "
        "better only runs tell."
    )
    return [each for each in words if each] + few(numbers["prompts"])


def _still(numbers: dict[str, Any]) -> str:
    still = [step for step in numbers["by_step"]
             if step["drift"] and not step["drift"]["mean"]]  # fmt: skip
    if numbers["still"]["mean"] < 0.05 or not still:
        return ""
    steps = ", ".join(str(counted(step["step"])) for step in still[:6])
    return (
        f"{percent(numbers['still']['mean'])} of the tokens have not drifted at all. At step "
        f"{steps} the policy still was the reference and d is zero; such steps pull every number "
        "towards none."
    )


def _separates(told: dict[str, Any]) -> str:
    right, wrong = (told[side]["mean"] for side in SIDES)
    if right is None or wrong is None:
        return "All completions are correct, or none is, so drift cannot be set against reward."
    words = (
        f"Correct completions have drifted by {value(right)} nats, incorrect ones by "
        f"{value(wrong)}. A correct one has the higher d in {share(told['auc'])} of all pairs"
    )
    if told["auc_within"] is None:
        return f"{words}; no pair stands in one group."
    side = side_of(told["auc_within"], 0.5)
    verdict = {
        1: "drift goes with reward within a prompt",
        -1: "drift goes against reward within a prompt",
    }.get(side, "one half lies inside, so within a prompt no separation is shown")
    return f"{words}, and in {share(told['auc_within'])} of those within one group: {verdict}."


def _covariance(numbers: dict[str, Any]) -> str:
    told, baseline = numbers["sum"]["covariance"], numbers["baseline"]
    side = side_of(told)
    shown = {1: "above 0", -1: "below 0"}.get(side, "not shown to differ from 0")
    return (
        f"Cov(r, d) is {value(told)} in the mean of {numbers['mixed']:,} mixed groups, {shown}. "
        f"RCC moves the baseline by twice that, {value(baseline['shift_size'])} in size as used, "
        f"and {share(baseline['clipped'])} of the groups had to be clipped to the range of their "
        "rewards: the more, the further d is from the small values that the first-order form is "
        "made for."
    )


def _variance(told: dict[str, Any]) -> str:
    risk = side_of(told["risk"], 1.0)
    verdict = {1: "RCC makes it larger", -1: "RCC makes it smaller"}.get(
        risk, "1 lies inside or there is no interval, so no change is shown"
    )
    closer = told["error_rcc"]["mean"] < told["error_mean"]["mean"]
    nearer = "nearer" if closer else "no nearer"
    return (
        "A baseline moves all advantages of a group alike, so RCC cannot make their variance "
        f"within a group smaller; over all it is {value(told['variance'])} times GRPO's, its "
        f"mean square {value(told['second_moment'])} times. What RCC is to make small is the "
        f"variance under the weights exp(d): that risk is {value(told['risk'])} times that "
        f"of GRPO's baseline, {verdict}; the exact baseline would reach "
        f"{number(told['risk_attainable']['mean'])}. To that one b* is {nearer} than the mean "
        f"reward: {number(told['error_rcc']['mean'])} against "
        f"{number(told['error_mean']['mean'])} away."
    )


def _pictures(numbers: dict[str, Any]) -> list[Picture]:
    pictures = [
        Picture(
            "confidence-drift",
            "Drift from the reference of correct and of incorrect completions",
            "Two histograms of a completion's drift, the sum and the mean over its tokens, each "
            "for correct and for incorrect completions.",
            lambda: _draw_drift(numbers),
        )
    ]
    if numbers["mixed"]:
        pictures.append(
            Picture(
                "confidence-covariance",
                "Covariance of reward and drift",
                "A histogram of Cov(r, d) over mixed groups, and its mean by step with intervals.",
                lambda: _draw_covariance(numbers),
            )
        )
    return pictures


def _draw_drift(numbers: dict[str, Any]) -> Figure:
    figure, both = panels(1, 2)
    for axes, (reduction, title) in zip(both, REDUCTIONS.items(), strict=True):
        found = numbers[reduction]["histogram"]
        for side, color in SIDES.items():
            total = max(sum(found[side]), 1)
            shares = [100 * count / total for count in found[side]]
            axes.stairs(shares, found["edges"], fill=True, color=color, alpha=0.3)
            axes.stairs(shares, found["edges"], color=color, linewidth=1.4, label=side)
        axes.axvline(0, color=BLACK, linewidth=0.8, linestyle=":")
        name(axes, f"Drift of completions, {title}", "l_old - l_ref, nats",
             "completions of each kind, %")  # fmt: skip
        axes.legend(fontsize=8)
    return figure


def _draw_covariance(numbers: dict[str, Any]) -> Figure:
    figure, (left, right) = panels(1, 2)
    found = numbers["sum"]["covariance_histogram"]
    left.stairs(found["counts"], found["edges"], fill=True, color=GREEN, alpha=0.7)
    mean = numbers["sum"]["covariance"]["mean"]
    left.axvline(mean, color=BLACK, linewidth=1.2)
    left.axvline(0, color=BLACK, linewidth=0.8, linestyle=":")
    name(left, f"Mixed groups by covariance (line: mean {mean:.3f})", "Cov(r, d), nats", "groups")
    steps = numbers["by_step"]
    draw = curve if len(steps) > 1 else points
    draw(right, steps_of(steps), [s["covariance"] for s in steps], "", GREEN)
    right.axhline(0, color=BLACK, linewidth=0.8, linestyle=":")
    along_steps(right, steps)
    name(right, "Mean covariance by step (band: 95 %)", "step", "Cov(r, d), nats")
    return figure
