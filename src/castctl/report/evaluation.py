"""What an evaluation found, for a terminal and for a paper."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from castctl.comparison.evaluations import EvaluationComparison
from castctl.report.comparison import short_name
from castctl.report.marks import line
from castctl.report.page import plain_table, title
from castctl.report.tables import eval_table, interval
from castctl.stages.evaluate.statistics import Estimate

Labelled = tuple[str, dict[str, Any]]
"""A model's name for people, and a result."""


def tasks_table(model: str, results: Iterable[tuple[str, dict[str, Any]]]) -> Table:
    """One model on several tasks, a row each by the name of its folder."""
    rows = [(f"{name}, {result['problems']:,} problems", result) for name, result in results]
    return eval_table(rows, heading=model)


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
        _cell(model), _cell(result["task"]), f"{result['problems']}", f"{result['k']}",
        *(interval(Estimate(**each)) for each in estimates),
        _cell(sampling.get("temperature", "")), _cell(sampling.get("max_tokens", "")),
    )  # fmt: skip


def _cell(text: object) -> str:
    """Text as it is, none of it Markdown."""
    return "".join(f"\\{char}" if char in "\\|<*[`" else char for char in line(text))


def paired_page(comparison: EvaluationComparison) -> Group:
    """Each evaluation's numbers, and what tells it from the first one, problem by problem."""
    first = comparison.entries[0]
    counted = f"{comparison.problems:,} problems"
    pages: list[RenderableType] = [
        title(f"{line(comparison.task)}, {counted}: per cent, with 95 % intervals over problems"),
        _accuracies(comparison),
    ]
    if len(comparison.entries) > 1:
        pages += [title(f"Against {short_name(first.name)}, in points"), _differences(comparison)]
    pages.append(Text())
    return Group(*pages, *(Text(line(words, 1000)) for words in _notes(comparison)))


def _accuracies(comparison: EvaluationComparison) -> Table:
    table = plain_table("entry", "k", "avg@k", f"pass@{comparison.pass_k}", "maj@k")
    for entry in comparison.entries:
        numbers = (interval(each) for each in (entry.avg, entry.pass_at, entry.maj))
        table.add_row(Text(short_name(entry.name)), str(entry.k), *numbers)
    return table


def _differences(comparison: EvaluationComparison) -> Table:
    table = plain_table("entry", "difference", "p", "gained", "lost", "detectable")
    for entry in comparison.entries:
        found = entry.against_first
        if found is None:
            continue
        table.add_row(
            Text(short_name(entry.name)), _signed(found.difference), _p_value(found.p_value),
            f"{len(found.gained):,}", f"{len(found.lost):,}",
            "" if found.detectable is None else f"{100 * found.detectable:.1f}",
        )  # fmt: skip
    return table


def _signed(estimate: Estimate) -> str:
    mean = f"{100 * estimate.mean:+.1f}"
    if estimate.low is None or estimate.high is None:
        return mean
    return f"{mean} ({100 * estimate.low:+.1f} to {100 * estimate.high:+.1f})"


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
    said += [f"The entries differ in {fact}." for fact in comparison.unequal]
    return said
