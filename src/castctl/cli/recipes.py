"""`castctl recipes`."""

from typing import Annotated

import typer

from castctl.cli import options as opt
from castctl.errors import UserError
from castctl.report.console import say, tell


def register(app: typer.Typer) -> None:
    app.command("recipes")(recipes)


def recipes(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="[NAME[:VARIANT]]",
            help="Print this one with all it extends and every default in place.",
        ),
    ] = None,
    tiny: opt.TinyOption = False,
    as_json: opt.JsonOption = False,
    quiet: opt.QuietOption = False,
    debug: opt.DebugOption = False,
) -> None:
    """List the recipes that come with castctl, or print one, or one of yours, as it resolves."""
    from castctl.recipe.files import recipes_folder
    from castctl.report.marks import print_json
    from castctl.report.recipes import all_facts, recipe_json, recipe_text, recipes_table
    from castctl.report.tables import show

    if name is not None:
        print_json(recipe_json(name, tiny)) if as_json else tell(recipe_text(name, tiny))
    elif tiny:
        raise UserError("--tiny changes one recipe; name it, as in castctl recipes NAME --tiny")
    elif as_json:
        print_json({"folder": recipes_folder(), "recipes": all_facts()})
    else:
        show(recipes_table(all_facts()))
        say("Next: castctl train NAME:VARIANT; --tiny tries its method on the embedded model")
