"""`castctl init`."""

from pathlib import Path
from typing import Annotated

import typer

from castctl.cli import options as opt
from castctl.errors import UserError
from castctl.report.console import say, tell


def register(app: typer.Typer) -> None:
    app.command("init")(init)


def init(
    file: Annotated[Path, typer.Argument(help="File to write.")] = Path("recipe.yaml"),
    method: opt.MethodOption = None,
    model: opt.ModelOption = None,
    data: opt.DataOption = None,
    set_: opt.SetOption = None,
    full: Annotated[
        bool,
        typer.Option("--full", help="Write every setting, those at their default as comments."),
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Write over a file that is there.")
    ] = False,
    quiet: opt.QuietOption = False,
    debug: opt.DebugOption = False,
) -> None:
    """Write a recipe to start from, with what each setting does beside it."""
    from castctl.cli.context import Asked, next_command
    from castctl.recipe.starter import starter
    from castctl.shards.part import write_text

    if file.is_dir():
        raise UserError(f"{file} is a folder; name a file in it, such as {file / 'recipe.yaml'}")
    if file.exists() and not overwrite:
        raise UserError(f"{file} is there already; name another file, or add --overwrite")
    asked = Asked(None, set_, method=method, model={"path": model}, data={"path": data})
    recipe, _ = asked.new_recipe()
    for warning in recipe.check_training():
        say(f"castctl: warning: {warning}")
    write_text(file, starter(recipe, full=full))
    tell(f"recipe: {file}")
    next_command(f"castctl train {file}")
