"""`castctl recipes`."""

from typing import Annotated

import typer

from castctl.cli import options as opt
from castctl.report.console import say, tell


def register(app: typer.Typer) -> None:
    app.command("recipes")(recipes)


def recipes(
    name: Annotated[
        str | None,
        typer.Argument(help="Print this one with all it extends and every default in place."),
    ] = None,
    as_json: opt.JsonOption = False,
    quiet: opt.QuietOption = False,
    debug: opt.DebugOption = False,
) -> None:
    """List the recipes that come with castctl, or print one, or one of yours, as it resolves."""
    from castctl.report.marks import print_json

    if name is not None:
        _show_one(name, as_json)
        return

    from castctl.recipe.reader import recipes_folder
    from castctl.report.recipes import RecipesTable, all_facts
    from castctl.report.tables import show

    facts = all_facts()
    if as_json:
        print_json({"folder": recipes_folder(), "recipes": facts})
        return
    show(RecipesTable(facts))
    say("Next: castctl train NAME, or castctl recipes NAME to read one")


def _show_one(name: str, as_json: bool) -> None:
    from castctl.recipe.reader import dump_recipe, find_recipe, load_recipe
    from castctl.report.marks import print_json

    path = find_recipe(name)
    recipe = load_recipe(path)
    if as_json:
        print_json({"name": path.stem, "path": path, "recipe": recipe.model_dump(mode="json")})
    else:
        tell(f"# {path}\n{dump_recipe(recipe)}".rstrip("\n"))
