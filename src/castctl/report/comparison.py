"""The tables of a comparison, and the words that go with them."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from castctl.comparison.numbers import STAGES, Comparison, EntryNumbers
from castctl.report.marks import line, number
from castctl.report.page import plain_table, title
from castctl.stages.evaluate.statistics import Estimate

LONGEST_NAME = 30


def comparison_page(comparison: Comparison) -> Group:
    """Accuracy and cost, a row an entry each, and what the numbers can and cannot tell."""
    pages: list[RenderableType] = [
        title(f"Accuracy on {line(comparison.task)} in per cent, ± half of a 95 % interval"),
        _accuracy(comparison),
        title("Cost: seconds of a step by stage, groups of zero variance, tokens of all seeds"),
        _cost(comparison),
        Text(),
    ]
    return Group(*pages, *(Text(line(words, 1000)) for words in notes(comparison)))


def _accuracy(comparison: Comparison) -> Table:
    k = comparison.k
    table = plain_table(
        "entry", "seeds", f"avg@{k} before", "after", f"pass@{k} before", "after", "difference"
    )
    for entry in comparison.entries:
        table.add_row(
            _name(entry), str(len(entry.seeds)),
            _points(entry.avg_before), _points(entry.avg_after),
            _points(entry.pass_before), _points(entry.pass_after),
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
            "" if share is None else f"{share:.1%}",
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
    clock = "Seconds are as the clock told them: whatever else ran on the machine is in them"
    if comparison.machines > 1:
        clock += f", and these runs were made on {comparison.machines} different machines"
    said.append(f"{clock}.")
    return said
