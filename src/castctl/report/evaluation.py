"""What an evaluation found, for a terminal and for a paper."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from castctl.comparison.evaluations import EvaluationComparison
from castctl.report.comparison import MORE, OVER_PROBLEMS, against, highest, short_name, signed
from castctl.report.marks import line, percent
from castctl.report.page import plain_table, title
from castctl.report.tables import eval_table, interval
from castctl.stages.evaluate.statistics import Estimate

TOLD = 3
"""Tasks told in words."""

MANY_CUT = 0.05
"""Share of cut completions that is worth a word."""

Labelled = tuple[str, dict[str, Any]]
"""A model's name for people, and a result."""


def tasks_page(model: str, results: Sequence[tuple[str, dict[str, Any]]], full: bool) -> Group:
    """One model on several tasks: what was found, and a row each by the name of its folder; in full
    how many completions were cut, and their length."""
    rows = [(f"{name}, {result['problems']:,} problems", result) for name, result in results]
    table = eval_table(rows, heading=model, full=full)
    notes = [Text(note, "dim") for note in endpoint_notes([result for _, result in results])]
    return Group(*map(Text, _answer(model, results)), table, *notes)


def endpoint_notes(results: Sequence[dict[str, Any]]) -> list[str]:
    """What those results of them that came from a server do not have, and what it counted itself;
    nothing where none did."""
    told = [each for result in results if isinstance(each := result.get("endpoint"), dict)]
    if not told:
        return []
    counted = all(each.get("lengths") for each in told)
    lengths = "lengths are as it counts them" if counted else "it counts no lengths"
    notes = [
        f"Asked at {line(told[0].get('url'))}, which shows no tokens: there are no log-probs and "
        f"nothing to score, shape or colour; {lengths}."
    ]
    lists = [each.get("left_to_server") for each in told]
    left = sorted({line(name) for each in lists if isinstance(each, list) for name in each})
    if left:
        notes.append(f"It takes no {', '.join(left)}: what it does about that is its own.")
    return notes


def _answer(model: str, results: Sequence[tuple[str, dict[str, Any]]]) -> tuple[str, str]:
    told = list(results)[:TOLD]
    rest = f", and {len(results) - TOLD} more" if len(results) > TOLD else ""
    scores = (f"{_percent(result['avg'])} on {line(name)}" for name, result in told)
    solved = (
        f"{_share(result['pass'][str(result['k'])])} by at least one of {result['k']} samples, "
        f"{_share(result['maj'])} by majority"
        for _, result in told
    )
    cut = max((result["truncated_share"] or 0.0 for _, result in results), default=0.0)
    second = f"Problems solved: {'; '.join(solved)}{rest}."
    if cut >= MANY_CUT:
        second += f" Up to {percent(cut)} of the completions are cut: --max-tokens may be too low."
    return f"{line(model)} answers right: {', '.join(scores)}{rest}.", second


def _percent(told: dict[str, Any]) -> str:
    """A share in per cent and its interval, in running text."""
    found = Estimate(**told)
    bounds = (
        "" if found.low is None else f" ({100 * found.low:.1f} to {100 * (found.high or 0):.1f})"
    )
    return f"{100 * found.mean:.1f}%{bounds}"


def _share(told: dict[str, Any]) -> str:
    return f"{100 * told['mean']:.1f}%"


def markdown(results: Sequence[Labelled]) -> str:
    """Results as a Markdown table that a paper can take: percentages with their 95 % interval over
    problems, and how the samples were drawn.

    pass@k and maj@k are headed by the samples a problem that all results have, or else by `k`.
    """
    counts = {result["k"] for _, result in results}
    k = str(counts.pop()) if len(counts) == 1 else "k"
    rows = [
        ("model", "task", "problems", "k", f"avg@{k} (95 % CI)", f"pass@{k} (95 % CI)",
         f"maj@{k} (95 % CI)", "temperature", "max tokens"),
        ("---", "---", "---:", "---:", "---:", "---:", "---:", "---:", "---:"),
        *(_row(model, result) for model, result in results),
    ]  # fmt: skip
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _row(model: str, result: dict[str, Any]) -> tuple[str, ...]:
    estimates = (result["avg"], result["pass"][str(result["k"])], result["maj"])
    sampling = result.get("sampling") or {}
    return (
        cell(model), cell(result["task"]), f"{result['problems']}", f"{result['k']}",
        *(interval(Estimate(**each)) for each in estimates),
        cell(sampling.get("temperature", "")), cell(sampling.get("max_tokens", "")),
    )  # fmt: skip


def cell(text: object) -> str:
    """Text as it is, none of it Markdown."""
    return "".join(f"\\{char}" if char in "\\|<*[`" else char for char in line(text))


def paired_page(comparison: EvaluationComparison, full: bool) -> Group:
    """What was found, each evaluation's numbers, and what tells it from the first one, problem by
    problem; in full all of them, and what they mean."""
    entries, first = comparison.entries, comparison.entries[0]
    counted = f"{comparison.problems:,} problems"
    differences = {e.name: e.against_first.difference for e in entries if e.against_first}
    pages: list[RenderableType] = [
        Text(highest("avg@k", {entry.name: entry.avg for entry in entries})),
        Text(against(first.name, differences)),
        title(f"{line(comparison.task)}, {counted}: per cent, with 95 % intervals over problems"),
        _accuracies(comparison, full),
    ]
    if len(entries) > 1:
        told = _differences(comparison, full)
        pages += [title(f"Against {short_name(first.name)}, in points"), told]
    notes = _notes(comparison) if full else _unequal(comparison)
    pages += [Text(), *(Text(line(words, 1000)) for words in notes)]
    return Group(*pages, *([] if full else [Text(f"{OVER_PROBLEMS} {MORE}", "dim")]))


def _accuracies(comparison: EvaluationComparison, full: bool) -> Table:
    names = (f"pass@{comparison.pass_k}", "maj@k") if full else ()
    table = plain_table("entry", "k", "avg@k", *names)
    for entry in comparison.entries:
        told = (entry.avg, entry.pass_at, entry.maj) if full else (entry.avg,)
        table.add_row(Text(short_name(entry.name)), str(entry.k), *map(interval, told))
    return table


def _differences(comparison: EvaluationComparison, full: bool) -> Table:
    moved = ("gained", "lost") if full else ()
    table = plain_table("entry", "difference", "p", *moved, "detectable")
    for entry in comparison.entries:
        found = entry.against_first
        if found is None:
            continue
        counts = (f"{len(found.gained):,}", f"{len(found.lost):,}") if full else ()
        table.add_row(
            Text(short_name(entry.name)),
            signed(found.difference),
            _p_value(found.p_value),
            *counts,
            "" if found.detectable is None else f"{100 * found.detectable:.1f}",
        )  # fmt: skip
    return table


def _p_value(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def _notes(comparison: EvaluationComparison) -> list[str]:
    """What the numbers mean, what they cannot tell, and what the entries differ in."""
    said = [f"Graded by {comparison.grader}."]
    others = len(comparison.entries) - 1
    if others:
        said += [
            "Differences are of avg@k, paired over the problems, with Student's 95 % interval; p "
            "is of a two-sided test that flips their signs. Gained and lost: problems solved more "
            "and less often.",
            f"Detectable: the true difference that {comparison.problems:,} problems, differing as "
            "these do, would show four times in five. A smaller one needs more problems; more "
            "samples of these help only as far as they steady each problem's value.",
        ]
    if others > 1:
        said.append(
            f"About one in twenty of {others} differences would have p below 0.05 even if nothing "
            "differed."
        )
    if len({entry.k for entry in comparison.entries}) > 1:
        said.append(
            "The entries have different numbers of samples: avg@k and pass@"
            f"{comparison.pass_k} estimate one thing with any, maj@k does not."
        )
    return said + _unequal(comparison)


def _unequal(comparison: EvaluationComparison) -> list[str]:
    return [f"The entries differ in {fact}." for fact in comparison.unequal]
