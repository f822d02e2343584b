"""`castctl export`."""

from pathlib import Path
from typing import Annotated

import typer

from castctl.cli import options as opt


def register(app: typer.Typer) -> None:
    app.command("export")(export)


def export(
    run: Annotated[str, typer.Argument(metavar="RUN", help="Run, by name or path.")],
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="A folder that is not there.")],
    step: Annotated[
        int | None, typer.Option("--step", min=1, help="Its checkpoint; the last by default.")
    ] = None,
    merged: Annotated[
        bool, typer.Option("--merged", help="A whole model, the adapter merged into it.")
    ] = False,
    trust_remote_code: opt.TrustRemoteCodeOption = False,
    quiet: opt.QuietOption = False,
    debug: opt.DebugOption = False,
) -> None:
    """Write a run's trained model, or its adapter, into a folder that other tools load."""
    from castctl.cli.context import Asked
    from castctl.report.console import say, tell
    from castctl.runs.run import open_run

    asked = Asked(trust_remote_code=trust_remote_code)
    target = asked.changed(open_run(run))

    from castctl.stages.export import export_policy

    step = export_policy(target, step, folder, merged=merged)
    say(f"{target.path}, step {step}:")
    tell(str(folder))
