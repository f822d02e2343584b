"""What `castctl recipes` says: those that come with castctl, in short, and one as it resolves."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from castctl.recipe.files import Part, find_recipe, known_recipes, read_source
from castctl.recipe.reader import dump_recipe, load_recipe
from castctl.recipe.trust import runs_code
from castctl.report.marks import line
from castctl.report.page import plain_table


@dataclass(frozen=True)
class VariantFacts:
    """A variant by its name, what its file says it is, and the file's path."""

    name: str
    about: str
    path: Path


@dataclass(frozen=True)
class RecipeFacts:
    """A recipe in short, with all its variants, those of what it extends too."""

    name: str
    path: Path
    about: str
    method: str
    model: str
    data: str
    steps: int
    variants: list[VariantFacts]


def all_facts() -> list[RecipeFacts]:
    """Every recipe that comes with castctl."""
    return [_facts_of(name, path) for name, path in known_recipes().items()]


def _facts_of(name: str, path: Path) -> RecipeFacts:
    source, recipe = read_source(path), load_recipe(path)
    return RecipeFacts(
        name=name,
        path=path,
        about=source.parts[-1].about,
        method=recipe.method.name,
        model=recipe.model.path,
        data=recipe.data.path,
        steps=recipe.train.steps,
        variants=_facts_of_variants(source.variants.values()),
    )


def _facts_of_variants(variants: Iterable[Part]) -> list[VariantFacts]:
    return [VariantFacts(each.of.variant or "", each.about, each.of.file) for each in variants]


def recipes_table(recipes: Iterable[RecipeFacts]) -> Table:
    """A row a recipe, its variants beside it; narrow enough for 80 columns."""
    table = plain_table("recipe", "what it is", "its variants", right=False)
    for column in table.columns[:2]:
        column.no_wrap = True
    for recipe in recipes:
        own = [f":{each.name}" for each in recipe.variants if each.path == recipe.path]
        others = {each.path.stem: None for each in recipe.variants if each.path != recipe.path}
        told = " ".join([*own, *(f"those of {name}" for name in others)])
        table.add_row(Text(recipe.name, "bold"), Text(line(recipe.about)), Text(line(told)))
    return table


def recipe_text(name: str | Path, tiny: bool = False) -> str:
    """One recipe, or one variant, with all it extends and every default in place: YAML after
    comments that say what it is, and so a recipe again."""
    found, source, recipe = find_recipe(name), read_source(name), load_recipe(name, tiny=tiny)
    comments = [f"{found} --tiny" if tiny else str(found), source.parts[-1].about]
    comments += [f"runs code: {setting}, {code}" for setting, code in runs_code(recipe).items()]
    if found.variant is None and source.variants:
        width = max(map(len, source.variants))
        comments.append("its variants:")
        comments += [f"  :{each:{width}}  {of.about}" for each, of in source.variants.items()]
    said = "\n".join(f"# {line(each, 1000)}".rstrip() for each in comments if each)
    return f"{said}\n{dump_recipe(recipe)}".rstrip("\n")


def recipe_json(name: str | Path, tiny: bool = False) -> dict[str, Any]:
    """The same for programs."""
    found, source, recipe = find_recipe(name), read_source(name), load_recipe(name, tiny=tiny)
    return {
        "name": found.name,
        "path": found.file,
        "tiny": tiny,
        "about": source.parts[-1].about,
        "variants": _facts_of_variants(source.variants.values()),
        "runs_code": runs_code(recipe),
        "recipe": recipe.model_dump(mode="json"),
    }
