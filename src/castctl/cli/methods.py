"""`castctl methods`."""

from typing import Annotated

import typer

from castctl.cli import options as opt


def register(app: typer.Typer) -> None:
    app.command("methods")(methods)


def methods(
    name: Annotated[
        str | None, typer.Argument(help="Show this one, with every setting of its slots.")
    ] = None,
    as_json: opt.JsonOption = False,
    quiet: opt.QuietOption = False,
    debug: opt.DebugOption = False,
) -> None:
    """List the methods, or show what one of them is made of, and whose choice each value is."""
    from castctl.report.marks import print_json
    from castctl.report.methods import MethodsTable, all_facts, method_json, method_page
    from castctl.report.tables import show

    if name is None:
        facts = all_facts()
        print_json({"methods": facts}) if as_json else show(MethodsTable(facts))
    else:
        print_json(method_json(name)) if as_json else show(method_page(name))
