"""What `castctl recipes` says: those that come with castctl, in short."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.padding import Padding
from rich.text import Text

from castctl.recipe.reader import known_recipes, load_recipe
from castctl.report.marks import line
from castctl.report.page import plain_table
from castctl.report.settings import TABLE_WIDTH


@dataclass(frozen=True)
class RecipeFacts:
    """A recipe in short; `summary` is the first comment of its file."""

    name: str
    path: Path
    method: str
    model: str
    data: str
    steps: int
    summary: str


def all_facts() -> list[RecipeFacts]:
    """Every recipe that comes with castctl."""
    return [_facts_of(name, path) for name, path in known_recipes().items()]


def _facts_of(name: str, path: Path) -> RecipeFacts:
    recipe = load_recipe(path)
    return RecipeFacts(
        name=name,
        path=path,
        method=recipe.method.name,
        model=recipe.model.path,
        data=recipe.data.path,
        steps=recipe.train.steps,
        summary=_first_comment(path),
    )


def _first_comment(path: Path) -> str:
    first = path.read_text(encoding="utf-8").partition("\n")[0]
    return first.removeprefix("#").strip() if first.startswith("#") else ""


@dataclass(frozen=True)
class RecipesTable:
    """A row a recipe, or a paragraph where rows would not fit."""

    recipes: list[RecipeFacts]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        if options.max_width >= TABLE_WIDTH:
            yield self._table()
        else:
            for recipe in self.recipes:
                yield from _paragraph(recipe)

    def _table(self) -> RenderableType:
        table = plain_table("recipe", "method", "model", "data", "steps", "what it is", right=False)
        for column in table.columns:
            column.no_wrap = column.header in ("recipe", "method", "steps")
        table.columns[4].justify = "right"
        for recipe in self.recipes:
            cells = (recipe.method, _last(recipe.model), _last(recipe.data), str(recipe.steps))
            table.add_row(
                Text(recipe.name, "bold"), *(Text(line(cell)) for cell in cells),
                Text(line(recipe.summary)),
            )  # fmt: skip
        return table


def _paragraph(recipe: RecipeFacts) -> Iterator[RenderableType]:
    yield Text(recipe.name, "bold")
    short = f"{recipe.method}, {recipe.model}, {recipe.data}, {recipe.steps:,} steps"
    text = Text.assemble(f"{line(recipe.summary)}\n", (line(short), "dim"))
    yield Padding(text, (0, 0, 0, 4))


def _last(path: str) -> str:
    """A hub id without its owner, which would take the width of two columns."""
    return path.rpartition("/")[2]
