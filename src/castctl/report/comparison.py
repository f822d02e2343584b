"""The tables of a comparison, and the words that go with them."""

from __future__ import annotations

from collections.abc import Mapping

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from castctl.comparison.numbers import STAGES, Comparison, EntryNumbers
from castctl.report.marks import line, number, percent
from castctl.report.page import plain_table, title
from castctl.report.tables import interval
from castctl.stages.evaluate.statistics import Estimate

LONGEST_NAME = 30
TOLD = 3
"""Differences told in words."""

MORE = "--full prints every table, and what they do not show."
OVER_PROBLEMS = "Intervals are over problems."
OVER_BOTH = "Intervals are over problems, and in the row below an entry over its seeds."


def comparison_page(comparison: Comparison, full: bool) -> Group:
    """What was found, and accuracy, a row an entry; in full all of the accuracy, the cost, and what
    the numbers can and cannot tell."""
    pages: list[RenderableType] = [
        *map(Text, _answer(comparison)),
        title(f"Accuracy on {line(comparison.task)} in per cent, with 95 % intervals"),
        _accuracy(comparison),
    ]
    if not full:
        unequal = (Text(line(words, 1000)) for words in _unequal(comparison))
        several = any(entry.over_seeds for entry in comparison.entries)
        intervals = OVER_BOTH if several else OVER_PROBLEMS
        return Group(*pages, Text(), *unequal, Text(f"{intervals} {MORE}", "dim"))
    pages += [
        title(f"Problems solved by one of {comparison.k} samples, in per cent"),
        _solved(comparison),
        title("Cost: seconds of a step by stage, groups of zero variance, tokens of all seeds"),
        _cost(comparison),
        Text(),
    ]
    return Group(*pages, *(Text(line(words, 1000)) for words in notes(comparison)))


def _answer(comparison: Comparison) -> tuple[str, str]:
    entries = comparison.entries
    second = against(
        entries[0].name,
        {e.name: e.difference for e in entries if e.difference is not None},
        {e.name: e.over_seeds.difference for e in entries if e.over_seeds},
    )
    if any(len(entry.seeds) == 1 for entry in entries):
        second += " One seed may be luck."
    return highest(
        f"avg@{comparison.k} after training", {e.name: e.avg_after for e in entries}
    ), second


def highest(what: str, accuracies: Mapping[str, Estimate]) -> str:
    """Which of some entries has the highest accuracy."""
    name = max(accuracies, key=lambda each: accuracies[each].mean)
    lead = "Highest " if len(accuracies) > 1 else ""
    return f"{lead}{what}: {short_name(name)}, {interval(accuracies[name])} %."


def against(
    first: str,
    differences: Mapping[str, Estimate],
    over_seeds: Mapping[str, Estimate | None] | None = None,
) -> str:
    """What tells entries from the first one over problems, and over seeds where there are several,
    in points; the largest where there are many."""
    if not differences:
        return "There is nothing to set it against."
    largest = sorted(differences, key=lambda name: -abs(differences[name].mean))[:TOLD]
    seeds = over_seeds or {}
    told = [
        f"{short_name(name)} {_verdict(differences[name], seeds.get(name))}" for name in largest
    ]
    more = len(differences) - len(told)
    rest = f"; {more} more below" if more else ""
    return f"Against {short_name(first)}, in points: {'; '.join(told)}{rest}."


def _verdict(difference: Estimate, over_seeds: Estimate | None) -> str:
    side, found = _side(difference), signed(difference)
    only = ""
    if over_seeds is not None:
        found += f", over seeds {_bounds(over_seeds)}"
        only = "" if _side(over_seeds) == side else " with these seeds"
    if not side:
        return f"shows no difference, {found}"
    return f"is {'higher' if side > 0 else 'lower'}{only}, {found}"


def _side(difference: Estimate | None) -> int:
    """1 where the whole interval lies above 0, -1 where below, 0 where neither is shown."""
    if difference is None or difference.low is None or difference.high is None:
        return 0
    return int(difference.low > 0) - int(difference.high < 0)


def signed(estimate: Estimate) -> str:
    """A difference in points with its interval."""
    mean = f"{100 * estimate.mean:+.1f}"
    if estimate.low is None or estimate.high is None:
        return mean
    return f"{mean} ({_bounds(estimate)})"


def _bounds(difference: Estimate) -> str:
    if difference.low is None or difference.high is None:
        return "no interval"
    return f"{100 * difference.low:+.1f} to {100 * difference.high:+.1f}"


def _accuracy(comparison: Comparison) -> Table:
    """A row an entry over problems, and one below it over its seeds where it has several."""
    before = f"avg@{comparison.k} before"
    table = plain_table("entry", "seeds", before, "after", "difference, points")
    for entry in comparison.entries:
        told = entry.avg_before, entry.avg_after, entry.difference
        table.add_row(_name(entry), str(len(entry.seeds)), *_estimates(*told))
        if (over := entry.over_seeds) is not None:
            told = over.avg_before, over.avg_after, over.difference
            table.add_row("  over seeds", "", *_estimates(*told))
    return table


def _estimates(before: Estimate, after: Estimate, difference: Estimate | None) -> list[Text]:
    moved = "" if difference is None else signed(difference)
    return [
        Text(interval(before)), Text(interval(after)),
        Text(moved, "bold" if _side(difference) else ""),
    ]  # fmt: skip


def _solved(comparison: Comparison) -> Table:
    table = plain_table("entry", f"pass@{comparison.k} before", "after")
    for entry in comparison.entries:
        known = (entry.pass_before, entry.pass_after)
        table.add_row(_name(entry), *("" if each is None else interval(each) for each in known))
    return table


def _cost(comparison: Comparison) -> Table:
    table = plain_table("entry", "steps", *STAGES, "all", "zero variance", "generated tokens")
    for entry in comparison.entries:
        share = entry.zero_variance_share
        table.add_row(
            _name(entry), str(entry.steps),
            *(_seconds(seconds) for seconds in entry.seconds_per_step.values()),
            percent(share),
            f"{entry.generated_tokens:,}",
        )  # fmt: skip
    return table


def short_name(name: str) -> str:
    """An entry's name on one line, a long one without its middle: names differ at their ends."""
    whole = line(name)
    if len(whole) <= LONGEST_NAME:
        return whole
    return f"{whole[: LONGEST_NAME // 2]}…{whole[1 - LONGEST_NAME // 2 :]}"


def _name(entry: EntryNumbers) -> Text:
    return Text(short_name(entry.name))


def _seconds(value: float | None) -> str:
    return f"{value:,.0f}" if value is not None and value >= 100 else number(value)


def notes(comparison: Comparison) -> list[str]:
    """What was counted, what the intervals tell and what they do not, a line each."""
    said = [_counted(comparison), *_intervals(comparison), *_unequal(comparison)]
    said.append(_clock(comparison))
    names = {entry.name for entry in comparison.entries}
    for entry in comparison.entries:
        stem, _, count = entry.name.rpartition("-")
        if stem in names and count.isdigit():  # told apart from another of its name
            said.append(f"{entry.name} is {entry.source}.")
    return said


def _counted(comparison: Comparison) -> str:
    first, *others = comparison.entries
    words = f"{comparison.problems} problems, {comparison.k} samples of each for every seed"
    if others:
        seeds = {len(entry.seeds) for entry in comparison.entries}
        words += f"; the difference is accuracy after, minus that of {first.name}, paired over the "
        words += f"{comparison.problems} problems"
        words += f" ({', '.join(map(str, sorted(seeds)))} {'seed' if seeds == {1} else 'seeds'}"
        words += " an entry)"
    return f"{words}."


def _intervals(comparison: Comparison) -> list[str]:
    entries = comparison.entries
    said = [
        "An interval is over problems, each one's value its mean over seeds and samples: it tells "
        "what other problems would change, not what other seeds would. It is Student's, and of "
        "shares near 0 or 100 % Wilson's, as castctl eval has it."
    ]
    several = [entry for entry in entries if len(entry.seeds) > 1]
    if several:
        said.append(
            "The row over seeds has Student's interval of the seeds' own means, the difference "
            "paired by the seeds that both have: it tells what other seeds would change, and of "
            "two seeds it is very wide."
        )
        spreads = [f"{entry.name} {_seed_range(entry)}" for entry in several]
        said.append(f"From seed to seed avg@{comparison.k} after was: {', '.join(spreads)}.")
    if len(several) < len(entries):
        lone = "Every entry" if not several else "An entry"
        said.append(f"{lone} of one seed cannot tell a method from the luck of its seed.")
    if len(entries) > 2:
        said.append(
            f"About one in twenty of {len(entries) - 1} differences would exclude 0 even if "
            "nothing differed."
        )
    if any(entry.pass_after is None for entry in entries):
        said.append("No pass@k stands where rewards are more than right or wrong.")
    return said


def _seed_range(entry: EntryNumbers) -> str:
    values = [100 * run.avg_after for run in entry.runs]
    return f"{min(values):.1f} to {max(values):.1f}"


def _unequal(comparison: Comparison) -> list[str]:
    """What differs between the entries that a reader would take to be equal."""
    entries = comparison.entries
    said = []
    if len({tuple(entry.seeds) for entry in entries}) > 1:
        seeds = (f"{entry.name} {', '.join(map(str, entry.seeds))}" for entry in entries)
        said.append(f"The entries do not have the same seeds: {'; '.join(seeds)}.")
    if len({entry.steps for entry in entries}) > 1:
        said.append("The entries were trained for different numbers of steps.")
    return said


def _clock(comparison: Comparison) -> str:
    clock = "Seconds are as the clock told them: whatever else ran on the machine is in them"
    if comparison.machines > 1:
        clock += f", and these runs were made on {comparison.machines} different machines"
    return f"{clock}."
