"""The page of completions judged again: what changed, and what that does to the accuracy."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.text import Text

from castctl.report.marks import line
from castctl.report.page import plain_table, title
from castctl.report.tables import interval
from castctl.stages.evaluate.rescore import Regraded, Rescored
from castctl.stages.evaluate.statistics import Estimate

SHOWN = 20
"""Changes listed; `--json` has all."""
MANY = 0.05
"""Share of castctl's own completions without a box that is worth a word."""


def rescored_page(rescored: Rescored) -> RenderableType:
    """For each set of completions: verdicts before and after, accuracy, and what changed."""
    foreign = rescored.run is not None
    pages = [page for part in rescored.parts for page in _part(part, foreign)]
    if foreign:
        pages.append(Text(f"\nrun: {line(rescored.run)}"))
    elif not all(part.written for part in rescored.parts):
        pages.append(Text("\nNothing stored was changed; --overwrite makes rewards and results "
                          "again", "dim"))  # fmt: skip
    return Group(*pages)


def _part(part: Regraded, foreign: bool) -> list[RenderableType]:
    of = f"{part.problems:,} problems, {part.completions:,} completions"
    pages: list[RenderableType] = [title(line(part.path)), Text(of, "dim"), _graders(part)]
    pages += [_verdicts(part), *map(Text, _accuracy(part))]
    if part.unboxed and (foreign or part.unboxed > MANY * part.completions):
        pages.append(
            Text(
                f"{part.unboxed:,} of {part.completions:,} completions hold no \\boxed{{}}, and "
                "castctl's grader reads nothing else: they count as unanswered",
                "yellow",
            )
        )
    pages += [Text(f"note: {line(note, 400)}", "yellow") for note in part.notes]
    if part.changes:
        pages += [title(f"Completions that changed ({len(part.changes):,})"), *_changes(part)]
    return pages


def _graders(part: Regraded) -> Text:
    old = "no verdicts before" if part.old_grader is None else f"before: {line(part.old_grader)}"
    return Text(f"{old}; now: {line(part.new_grader)}")


def _verdicts(part: Regraded) -> RenderableType:
    table = plain_table("before", "now", "completions", right=False)
    table.columns[2].justify = "right"
    for move in part.moves:
        style = "" if move.old in (None, move.new) else "bold"
        names = (Text(line(move.old or "-")), Text(line(move.new)))
        table.add_row(*names, f"{move.count:,}", style=style)
    return table


def _accuracy(part: Regraded) -> list[str]:
    fewest, most = part.samples
    name = f"avg@{fewest}" if fewest == most else f"avg over {fewest} to {most}"
    after = f"{name} now {interval(part.after)}"
    if part.before is None or part.difference is None:
        return [after]
    return [
        f"{name} before {interval(part.before)}, now {interval(part.after)}",
        f"difference {_points(part.difference)} points, paired over problems",
    ]


def _points(difference: Estimate) -> str:
    mean = f"{100 * difference.mean:+.1f}"
    if difference.low is None or difference.high is None:
        return mean
    return f"{mean} ({100 * difference.low:+.1f} to {100 * difference.high:+.1f})"


def _changes(part: Regraded) -> list[RenderableType]:
    table = plain_table("completion", "problem", "extracted", "gold", "before", "now", right=False)
    for change in part.changes[:SHOWN]:
        table.add_row(
            Text(line(f"{change.prompt_id[:8]}/{change.sample}")),
            Text(line(change.problem, 60)),
            Text(line(change.extracted or "", 40)),
            Text(line(change.answer or "", 40)),
            Text(line(change.old)),
            Text(line(change.new)),
        )
    left = len(part.changes) - SHOWN
    return [table, *([Text(f"… {left:,} more: --json has them", "dim")] if left > 0 else [])]
