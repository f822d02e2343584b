"""`castctl runs`."""

import typer

from castctl.cli import options as opt
from castctl.report.console import say


def register(app: typer.Typer) -> None:
    app.command("runs")(runs)


def runs(
    as_json: opt.JsonOption = False,
    quiet: opt.QuietOption = False,
    debug: opt.DebugOption = False,
) -> None:
    """List the runs, newest first."""
    from castctl.inspection.listing import list_runs
    from castctl.report.marks import print_json
    from castctl.report.runs import runs_table
    from castctl.report.tables import show
    from castctl.runs.run import runs_root

    rows = list_runs()
    if as_json:
        print_json({"root": runs_root(), "runs": rows})
    elif rows:
        show(runs_table(rows))
    else:
        say(f"no runs in {runs_root()}; start with castctl train --method cast")
