"""The page of completions judged again: what changed, and what that does to the accuracy."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.text import Text

from castctl.report.comparison import signed
from castctl.report.marks import line
from castctl.report.page import plain_table, title
from castctl.report.tables import interval
from castctl.stages.evaluate.rescore import Regraded, Rescored

SHOWN = 20
"""Changes listed; `--json` has all."""
MANY = 0.05
"""Share of castctl's own completions without a box that is worth a word."""


def rescored_page(rescored: Rescored, full: bool) -> RenderableType:
    """What was found, and for each set of completions verdicts before and after and accuracy; in
    full the completions that changed."""
    foreign = rescored.run is not None
    pages: list[RenderableType] = [*map(Text, _answer(rescored.parts))]
    pages += [page for part in rescored.parts for page in _part(part, foreign, full)]
    if foreign:
        pages.append(Text(f"\nrun: {line(rescored.run)}"))
    elif not all(part.written for part in rescored.parts):
        pages.append(Text("\nNothing stored was changed; --overwrite makes rewards and results "
                          "again", "dim"))  # fmt: skip
    return Group(*pages)


def _answer(parts: Sequence[Regraded]) -> tuple[str, str]:
    """How many verdicts changed, and what that does to the accuracy that it moves most."""
    count = sum(part.completions for part in parts)
    if all(part.old_grader is None for part in parts):
        first = f"{count:,} completions judged for the first time."
    else:
        changed = sum(len(part.changes) for part in parts)
        first = f"{changed:,} of {count:,} completions are worth something else now."
    known = [part for part in parts if part.difference is not None]
    if not known:
        return first, f"{_accuracy(parts[0])[0]}."
    most = max(known, key=lambda part: abs(part.difference.mean) if part.difference else 0.0)
    told = _accuracy(most)
    where = f"{line(_short(most, parts))}: " if len(parts) > 1 else ""
    return first, f"{where}{told[0]}; {told[1]}."


def _short(part: Regraded, parts: Sequence[Regraded]) -> str:
    """The task of a part, and its step where another part is of that task too."""
    task = part.path.parent
    alone = sum(each.path.parent == task for each in parts) == 1
    return task.name if alone else f"{task.name}/{part.path.name}"


def _part(part: Regraded, foreign: bool, full: bool) -> list[RenderableType]:
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
    if part.changes and not full:
        pages.append(Text("--full lists the completions that changed", "dim"))
    elif part.changes:
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
        f"difference {signed(part.difference)} points, paired over problems",
    ]


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
