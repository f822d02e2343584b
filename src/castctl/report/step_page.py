"""The pages of a step and of a part."""

from __future__ import annotations

import json

from rich.columns import Columns
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from castctl.inspection.part import PartView
from castctl.inspection.spread import Spread
from castctl.inspection.step import GroupView, StageView, StepView
from castctl.report.marks import bar, block, histogram, line, number, size
from castctl.report.page import headline, plain_table, title, value_text
from castctl.report.tables import step_table
from castctl.stages.measures import Measures
from castctl.stages.names import called

VERDICTS = {
    "correct": ("✓", "green"), "wrong": ("✗", "red"), "no_answer": ("?", "yellow"),
    "truncated": ("~", "yellow"), "timeout": ("t", "magenta"), "error": ("!", "magenta"),
}  # fmt: skip
"""Mark and colour of each verdict."""


def step_page(view: StepView, limit: int) -> Group:
    """What a step holds and says; `limit` groups are shown one by one."""
    pages: list[RenderableType] = [headline(view.path, f"step {view.step}")]
    pages += [title("Stages"), _stages(view.stages), "", _made(view)]
    for name, label in (("groups_", "Groups"), ("verdict_", "Verdicts")):
        if shares := _shares(view, name):
            pages += [title(label), shares]
    if view.spreads:
        pages += [title("Tokens"), _spreads(view.spreads)]
    rest: Measures = {key: value for key, value in view.measures.items()
            if value is not None and not key.startswith(("groups_", "verdict_"))}  # fmt: skip
    if rest:
        pages += ["", *_measures(rest)]
    if view.groups:
        pages += [title("Completions"), _groups(view.groups[:limit])]
        if len(view.groups) > limit:
            pages.append(
                Text(f"… {len(view.groups) - limit} more prompts: --limit shows them", "dim")
            )
        pages.append(_key())
    return Group(*pages)


def _stages(stages: list[StageView]) -> Table:
    table = plain_table("stage", "parts", "rows", "size", "made")
    table.columns[-1].justify = "left"
    for stage in stages:
        foreign = f"{len(stage.foreign)} of {len(stage.parts)} parts elsewhere"
        if len(stage.foreign) == len(stage.parts):
            foreign = "elsewhere"
        table.add_row(
            stage.stage, str(len(stage.parts)), f"{stage.rows:,}", size(stage.bytes),
            foreign if stage.foreign else "by castctl",
        )  # fmt: skip
    return table


def _made(view: StepView) -> Table:
    """The settings of each stage, those of a section on one line."""
    grid = Table.grid(padding=(0, 2))
    for stage in view.stages:
        sections: dict[str, list[str]] = {}
        for key, value in stage.made.items():
            section, _, name = key.rpartition(".")
            value = called(value, view.names) if name == "model" else value
            sections.setdefault(section, []).append(f"{name} {value_text(value)}")
        for index, (section, values) in enumerate(sections.items()):
            grid.add_row(
                Text(stage.stage if index == 0 else "", "bold"),
                Text(line(section), "dim"), Text(line(", ".join(values), 600)),
            )  # fmt: skip
        if stage.differing:
            keys = line(", ".join(stage.differing))
            grid.add_row(stage.stage, "", Text(f"differs between parts: {keys}", "yellow"))
    return grid


def _measures(measures: Measures) -> list[RenderableType]:
    """The measures in two tables side by side, those that are lists in one below."""
    lists: Measures = {k: value for k, value in measures.items() if isinstance(value, list)}
    keys = [key for key in measures if key not in lists]
    half = -(-len(keys) // 2)
    pair = [step_table({key: measures[key] for key in part})
            for part in (keys[:half], keys[half:]) if part]  # fmt: skip
    return [Columns(pair, padding=(0, 2)), *([step_table(lists)] if lists else [])]


def _shares(view: StepView, prefix: str) -> Table | None:
    shares = {key.removeprefix(prefix): value for key, value in view.measures.items()
              if key.startswith(prefix) and isinstance(value, float) and value > 0}  # fmt: skip
    if not shares:
        return None
    grid = Table.grid(padding=(0, 2))
    for name, share in shares.items():
        style = VERDICTS.get(name, ("", "cyan"))[1]
        grid.add_row(name.replace("_", " "), f"{share:6.1%}", Text(bar(share), style))
    return grid


def _spreads(spreads: dict[str, Spread]) -> Group:
    table = plain_table("", "tokens", "mean", "std", "min", "5 %", "median", "95 %", "max")
    shapes = Table.grid(padding=(0, 1))
    for name, s in spreads.items():
        values = (s.mean, s.std, s.min, s.q05, s.median, s.q95, s.max)
        table.add_row(name, f"{s.count:,}", *map(number, values))
        bars = Text(histogram(s.histogram), "cyan")
        shapes.add_row(name, Text(number(s.min), justify="right"), bars, number(s.max))
    return Group(table, "", shapes)


def _groups(groups: list[GroupView]) -> Table:
    table = plain_table("prompt", "group", "samples", "problem", right=False)
    for group in groups:
        marks = Text()
        for verdict in group.verdicts[:64]:
            marks.append(*VERDICTS.get(verdict, ("·", "")))
        if len(group.verdicts) > 64:
            marks.append(f" … ({len(group.verdicts) - 64} more)")
        table.add_row(
            Text(line(group.prompt_id, 24)), group.kind.replace("_", " "), marks,
            Text(line(group.problem or "", 60)),
        )  # fmt: skip
    return table


def _key() -> Text:
    marks = ((f" {mark} ", name.replace("_", " "), style) for name, (mark, style) in
             VERDICTS.items())  # fmt: skip
    return Text.assemble(*((text, style) for mark, name, style in marks
                           for text, style in ((mark, style), (name, "dim"))))  # fmt: skip


def part_page(view: PartView) -> Group:
    """A part's columns and what its metadata says."""
    facts = f"{view.stage}, {view.rows:,} rows, {size(view.bytes)}, content {view.hash}"
    table = plain_table("column", "type", "nulls", "values", "size", "")
    table.columns[1].justify = "left"
    for column in view.columns:
        table.add_row(
            Text(line(column.name)), Text(line(column.type)), f"{column.nulls:,}",
            number(column.values), size(column.bytes),
            "" if column.known else "beyond the contract",
        )  # fmt: skip
    pages: list[RenderableType] = [headline(view.path, ""), Text(facts), "", table]
    if view.missing:
        pages.append(Text(f"not in the file, and so null: {', '.join(view.missing)}", "dim"))
    if view.metadata is None:
        return Group(*pages, title("Made elsewhere: it carries no castctl metadata"))
    said = json.dumps(view.metadata, indent=2, ensure_ascii=False)
    return Group(*pages, title("Metadata"), Text(block(said, 20_000)))
