"""`castctl export`."""

from pathlib import Path
from typing import Annotated

import typer

from castctl.cli import options as opt
from castctl.errors import UserError
from castctl.writers import FORMATS, known_format


def register(app: typer.Typer) -> None:
    app.command("export")(export)


def export(
    run: Annotated[str, typer.Argument(metavar="RUN", help="Run, by name or path.")],
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="A folder that is not there.")],
    as_: Annotated[
        str,
        typer.Option("--as", help="; ".join(f"{name}: {what}" for name, what in FORMATS.items())),
    ] = "model",
    step: Annotated[
        int | None,
        typer.Option(
            "--step",
            min=0,
            help="Its checkpoint, the last by default; its rollouts or evaluations, all of them.",
        ),
    ] = None,
    merged: Annotated[
        bool, typer.Option("--merged", help="A whole model, the adapter merged into it.")
    ] = False,
    trust_remote_code: opt.TrustRemoteCodeOption = False,
    quiet: opt.QuietOption = False,
    debug: opt.DebugOption = False,
) -> None:
    """Write a run's trained model, its rollouts or its evaluations into a folder that other tools
    load."""
    from castctl.cli.context import Asked
    from castctl.report.console import say, tell
    from castctl.runs.run import open_run

    if known_format(as_) != "model" and merged:
        raise UserError(f"--merged is of a model, not of --as {as_}; leave it out")
    target = Asked(trust_remote_code=trust_remote_code).changed(open_run(run))

    from castctl.writers.export import export_run

    step = export_run(target, folder, as_, step, merged=merged)
    say(f"{target.path}, {'every step' if step is None else f'step {step}'}, as {as_}:")
    tell(str(folder))
