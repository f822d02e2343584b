"""What a teacher that is told another problem's answer separates, beside one that is told its own.

The mean gap of a completion under each is judged by its AUC. Where the wrong answer does nearly as
well as the right one, knowing the answer is not what works.
"""

from __future__ import annotations

from typing import Any

from castctl.diagnosis.diagnosis import Diagnosis
from castctl.report.diagnostics.words import answer, cell, side_of
from castctl.report.document import Sheet
from castctl.report.marks import percent

NEARLY = 0.8
"""Share of the right answer's distance from chance from which another's does nearly as well
(ours)."""


def control_answer(diagnosis: Diagnosis) -> tuple[str, str]:
    """Whether another problem's answer separates right from wrong, and what follows."""
    numbers = diagnosis.numbers
    prompts = numbers["all"]["prompts"]
    if not (numbers["correct"] and numbers["incorrect"]):
        return "One kind of completion is missing, so nothing can be compared.", ""
    other = numbers["separation"]["all"]["mean_gap"]
    first = {
        1: "Told another problem's answer, the teacher still tells correct from incorrect",
        -1: "Told another problem's answer, the teacher prefers incorrect completions",
    }.get(side_of(other, 0.5), "Told another problem's answer, the teacher is not shown to tell "
          "correct from incorrect")  # fmt: skip
    return answer(f"{first}: AUC {cell(other)}.", _verdict(numbers, other), prompts)


def _verdict(numbers: dict[str, Any], other: dict[str, Any] | None) -> str:
    own = (numbers["told_own"] or {}).get("all", {}).get("mean_gap")
    if own is None:
        return "castctl diagnose opsd-gaps on the same steps puts the right answer's AUC beside it."
    words = f"Told the right one: AUC {cell(own)}. "
    if side_of(own, 0.5) != 1:
        return words + "Neither is shown to work, so nothing follows."
    if side_of(other, 0.5) != 1:
        return words + "So what separates is its knowledge of the answer."
    assert other is not None, "its side is known"
    share = (other["mean"] - 0.5) / (own["mean"] - 0.5)
    if share >= NEARLY:
        return words + (
            "Another's answer does nearly as well, so knowing the answer is not what works."
        )
    return words + (
        f"Another's answer keeps {percent(share)} of its distance from chance: that much is not "
        "knowledge of the answer."
    )


def control_sheet(numbers: dict[str, Any]) -> Sheet:
    """The AUC of the mean gap under another problem's answer and under the own one."""
    rows = []
    for label, found in (
        ("another problem's answer", numbers["separation"]),
        ("the own answer", numbers["told_own"]),
    ):
        if found is not None:
            rows.append([label, cell(found["all"]["mean_gap"]),
                         cell(found["within_prompt"]["mean_gap"]["auc"])])  # fmt: skip
    headings = ("the teacher is told", "all completions", "within prompts")
    note = "The other problem is one of the same step with another answer, drawn by the seed."
    return Sheet("AUC of the mean gap", headings, rows, note, first=headings)
