"""What the numbers of a gap show, in words, and what they do not."""

from __future__ import annotations

from typing import Any

from castctl.diagnosis.diagnosis import Diagnosis
from castctl.report.diagnostics.words import answer, cell, few, share, share_cell, side_of
from castctl.report.marks import number, percent

NOISE = 1e-4
"""Nats: a median gap below is what float32 passes leave of equal log-probs."""


def gap_answer(diagnosis: Diagnosis) -> tuple[str, str]:
    """How well the teacher's mean gap tells correct from incorrect, and how often its sign would
    mislead."""
    numbers = diagnosis.numbers
    if one_sided := _one_sided(numbers):
        return one_sided, "So nothing is shown of what the teacher can tell apart."
    found = numbers["all"]
    if not any(cell["tokens"] for cell in found["cells"].values()):
        return "There is no gap, so there is nothing to learn from it.", _dead(diagnosis)
    auc, excess = numbers["separation"]["all"]["mean_gap"], found["agreement_excess"]
    told = {
        1: "correct completions have the higher mean gap",
        -1: "incorrect completions have the higher mean gap",
    }.get(side_of(auc, 0.5), "the mean gap is not shown to tell correct from incorrect")
    words = f"{told[0].upper()}{told[1:]}: AUC {cell(auc)}"
    if _rivalled(numbers["separation"]):
        words += "; the policy's own log-prob does as well"
    agrees = {1: "better than chance", -1: "worse than chance"}.get(
        side_of(excess), "not shown to be better than chance"
    )
    return answer(
        f"{words}.",
        f"Its sign would push {share_cell(found['misleading_share'], '%')} of the tokens the wrong "
        f"way, {agrees}; they hold {share_cell(found['misleading_mass'], '%')} of its size.",
        found["prompts"],
    )


def gap_words(diagnosis: Diagnosis) -> list[str]:
    """Paragraphs: who was read, the sides, the noise, the separation, and what it is not."""
    numbers = diagnosis.numbers
    if one_sided := _one_sided(numbers):
        return [*_teacher(diagnosis), one_sided, *_limits(diagnosis)]
    if not any(cell["tokens"] for cell in numbers["all"]["cells"].values()):
        return [*_teacher(diagnosis), _dead(diagnosis)]
    return [
        *_teacher(diagnosis),
        _sides(numbers["all"]["cells"]),
        _misleading(numbers["all"]),
        _separates(numbers["separation"]),
        *_decays(numbers["decay"]),
        *_limits(diagnosis),
    ]


def _one_sided(numbers: dict[str, Any]) -> str:
    if numbers["correct"] and numbers["incorrect"]:
        return ""
    kind = "incorrect" if numbers["correct"] else "correct"
    return f"There is no {kind} completion here, so nothing can be compared."


def _teacher(diagnosis: Diagnosis) -> list[str]:
    kinds = {(step["teacher_settings"] or {}).get("kind") for step in diagnosis.steps}
    told = {step["teacher_context"] for step in diagnosis.steps}
    if kinds == {None}:
        return ["Nothing says who the teacher was: its log-probs were made elsewhere."]
    who = {
        "current": "the policy itself",
        "initial": "the initial policy",
        "snapshot": "an earlier policy, renewed every few steps",
        "ema": "an average of past policies",
        "model": "a model of its own",
    }
    names = " and ".join(sorted(who.get(str(kind), "weights nobody named") for kind in kinds))
    saw = {"none": "the student's own prompt", "answer": "the answer", "solution": "the solution",
           "solution_or_answer": "the solution where there is one, else the answer",
           "peer": "another, correct completion of the prompt",
           "other": "the solution or answer of another problem"}  # fmt: skip
    sees = " and ".join(sorted(saw.get(str(each), "what nobody recorded") for each in told))
    words = f"The teacher is {names}, reading {sees}."
    if kinds & {"initial", "snapshot", "ema", "model"} and diagnosis.name == "opsd-gaps":
        words += (
            " Its weights are not the policy's, so the gap holds what the answer tells and how the "
            "two models differ; with --set method.teacher.kind=current only the first is left."
        )
    return [words]


def _sides(cells: dict[str, Any]) -> str:
    right = cells["positive_correct"]["tokens"] + cells["negative_correct"]["tokens"]
    wrong = cells["positive_incorrect"]["tokens"] + cells["negative_incorrect"]["tokens"]

    def side(verdict: str, total: int) -> str:
        positive, negative = cells[f"positive_{verdict}"], cells[f"negative_{verdict}"]
        if not total:
            return f"{verdict} completions have no token with a gap"
        return (
            f"in {verdict} completions the teacher prefers {percent(positive['tokens'] / total)} "
            f"of the tokens with a gap, by {number(_size(positive)) or 0} nats on average, and "
            f"doubts the others by {number(_size(negative)) or 0}"
        )

    words = f"{side('correct', right)}; {side('incorrect', wrong)}."
    medians = [cell["quantiles"].get("0.5") for cell in cells.values() if cell["tokens"]]
    if medians and all(abs(median) < NOISE for median in medians):
        words += (
            " Half of every cell's gaps are below a ten-thousandth of a nat, which is rounding: "
            "read means and shares of |g|, not shares of tokens."
        )
    return words[0].upper() + words[1:]


def _size(cell: dict[str, Any]) -> float | None:
    mean = cell["mean"]["mean"]
    return None if mean is None else abs(mean)


def _misleading(found: dict[str, Any]) -> str:
    words = (
        f"An update that followed the sign alone, knowing nothing of correctness, would go the "
        f"wrong way on {share(found['misleading_share'])} of the tokens with a gap and "
        f"{share(found['misleading_mass'])} of its size."
    )
    excess = found["agreement_excess"]
    if excess["mean"] is None or excess["low"] is None:
        return words
    words += (
        f" In mixed groups the sign agrees with the advantage's on "
        f"{percent(found['agreement']['mean'])} of the tokens; unrelated signs of the same "
        f"frequencies would on {percent(found['agreement_by_chance']['mean'])}. "
    )
    if excess["low"] > 0:
        return words + "It agrees more often than chance."
    if excess["high"] < 0:
        return words + "It agrees less often than chance."
    return words + "The interval of the difference includes 0: no agreement beyond chance is shown."


def _separates(found: dict[str, Any]) -> str:
    auc = found["all"]["mean_gap"]
    if auc is None:
        return "Correct and incorrect completions cannot be told apart: one kind is missing."
    words = f"A completion's mean gap tells correct from incorrect with an AUC of {_auc(auc)}"
    words += f": {_verdict(auc)}."
    inner = found["within_prompt"]["mean_gap"]["auc"]
    if inner is not None:
        words += (
            f" Among completions of one prompt, where its difficulty plays no part, it is "
            f"{_auc(inner)}: {_verdict(inner)}."
        )
    if _rivalled(found):
        words += (
            f" The policy's own mean log-prob, for which no teacher is needed, has an AUC of "
            f"{_auc(found['all']['mean_logprob'])}, at least as far from chance."
        )
    return words


def _rivalled(found: dict[str, Any]) -> bool:
    """Whether the policy's own log-prob tells correct from incorrect as well as the gap."""
    gap, rival = (found["all"][score] for score in ("mean_gap", "mean_logprob"))
    return rival is not None and abs(rival["mean"] - 0.5) >= abs(gap["mean"] - 0.5)


def _auc(estimate: dict[str, Any]) -> str:
    if estimate["low"] is None:
        return f"{estimate['mean']:.3f}"
    return f"{estimate['mean']:.3f} (95 % interval {estimate['low']:.3f} to {estimate['high']:.3f})"


def _verdict(estimate: dict[str, Any]) -> str:
    if estimate["low"] is None:
        return "without an interval, so nothing follows for other prompts"
    if estimate["low"] > 0.5:
        return "correct ones have the higher gap"
    if estimate["high"] < 0.5:
        return "incorrect ones have the higher gap"
    return "chance, 0.5, lies inside, so no separation is shown"


def _decays(decay: dict[str, Any]) -> list[str]:
    found = []
    for key, what in (("entropy", "the policy's entropy"), ("position", "the way to the end")):
        if decay[key] is None:
            continue
        rates = {name: cell["rate"] for name, cell in decay[key]["cells"].items()}
        known = {n: r for n, r in rates.items() if r["mean"] is not None and r["low"] is not None}
        falls = [name for name, rate in known.items() if rate["low"] > 0]
        rises = [name for name, rate in known.items() if rate["high"] < 0]
        said = [f"falls with {what} in {_named(falls)}" if falls else "",
                f"rises with {what} in {_named(rises)}" if rises else ""]  # fmt: skip
        if any(said):
            found.append("signal to noise " + " and ".join(filter(None, said)))
        elif known:
            found.append(f"no cell's signal to noise is shown to change with {what}")
    if not found:
        return []
    words = "; ".join(found)
    return [f"{words[0].upper()}{words[1:]}."]


def _named(cells: list[str]) -> str:
    if len(cells) == 4:
        return "all four cells"
    return ", ".join(
        f"teacher-{name.split('_')[0]} tokens of {name.split('_')[1]} completions" for name in cells
    )


def _dead(diagnosis: Diagnosis) -> str:
    if not diagnosis.numbers["all"]["tokens"]:
        return "No token of a completion with a reward has a gap: its teacher was not heard."
    return (
        "The gap is zero everywhere: teacher and policy are the same model under the same prompt, "
        "as at step 0 and right after a refresh. Diagnose a later step, or a teacher of other "
        "weights."
    )


def _limits(diagnosis: Diagnosis) -> list[str]:
    prompts = diagnosis.numbers["all"]["prompts"]
    words = (
        "What this does not show: whether training on the gap helps, since what separates after "
        "the fact may not teach; anything about other models, prompts or teachers' templates; or a "
        "cause, since length, difficulty and the policy's confidence go with both gap and "
        "correctness. Intervals are over prompts: other prompts would move the numbers by about as "
        "much; another model or another seed may move them more."
    )
    return [words, *few(prompts)]
