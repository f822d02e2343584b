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

MORE = "Intervals are over problems. --full prints every table, and what they do not show."


def comparison_page(comparison: Comparison, full: bool) -> Group:
    """What was found, and accuracy, a row an entry; in full all of the accuracy, the cost, and what
    the numbers can and cannot tell."""
    pages: list[RenderableType] = [
        *map(Text, _answer(comparison)),
        title(f"Accuracy on {line(comparison.task)} in per cent, ± half of a 95 % interval"),
        _accuracy(comparison, full),
    ]
    if not full:
        unequal = (Text(line(words, 1000)) for words in _unequal(comparison))
        return Group(*pages, Text(), *unequal, Text(MORE, "dim"))
    pages += [
        title("Cost: seconds of a step by stage, groups of zero variance, tokens of all seeds"),
        _cost(comparison),
        Text(),
    ]
    return Group(*pages, *(Text(line(words, 1000)) for words in notes(comparison)))


def _answer(comparison: Comparison) -> tuple[str, str]:
    entries = comparison.entries
    second = against(
        entries[0].name, {e.name: e.difference for e in entries if e.difference is not None}
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


def against(first: str, differences: Mapping[str, Estimate]) -> str:
    """What tells entries from the first one, in points; the largest where there are many."""
    if not differences:
        return "There is nothing to set it against."
    largest = sorted(differences, key=lambda name: -abs(differences[name].mean))[:TOLD]
    told = [f"{short_name(name)} {_verdict(differences[name])}" for name in largest]
    more = len(differences) - len(told)
    rest = f"; {more} more below" if more else ""
    return f"Against {short_name(first)}, in points: {'; '.join(told)}{rest}."


def _verdict(difference: Estimate) -> str:
    found = signed(difference)
    if difference.low is not None and difference.low > 0:
        return f"is higher, {found}"
    if difference.high is not None and difference.high < 0:
        return f"is lower, {found}"
    return f"shows no difference, {found}"


def signed(estimate: Estimate) -> str:
    """A difference in points with its interval."""
    mean = f"{100 * estimate.mean:+.1f}"
    if estimate.low is None or estimate.high is None:
        return mean
    return f"{mean} ({100 * estimate.low:+.1f} to {100 * estimate.high:+.1f})"


def _accuracy(comparison: Comparison, full: bool) -> Table:
    k = comparison.k
    passes = (f"pass@{k} before", "after") if full else ()
    table = plain_table("entry", "seeds", f"avg@{k} before", "after", *passes, "difference, points")
    for entry in comparison.entries:
        solved = (_points(entry.pass_before), _points(entry.pass_after)) if full else ()
        table.add_row(
            _name(entry), str(len(entry.seeds)),
            _points(entry.avg_before), _points(entry.avg_after), *solved,
            Text(_points(entry.difference, "+"), "bold" if _excludes_zero(entry) else ""),
        )  # fmt: skip
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


def _points(estimate: Estimate | None, sign: str = "") -> str:
    """A share in per cent and half the width of its interval, which is symmetric."""
    if estimate is None:
        return ""
    mean = f"{100 * estimate.mean:{sign}.1f}"
    if estimate.high is None:
        return mean
    return f"{mean} ± {100 * (estimate.high - estimate.mean):.1f}"


def _excludes_zero(entry: EntryNumbers) -> bool:
    found = entry.difference
    return bool(found and found.low is not None and found.high is not None
                and (found.low > 0 or found.high < 0))  # fmt: skip


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
        "what other problems would change, not what other seeds would."
    ]
    several = [entry for entry in entries if len(entry.seeds) > 1]
    if several:
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
