"""`castctl report`."""

import os
from pathlib import Path
from typing import Annotated

import typer

from castctl.cli import options as opt
from castctl.errors import UserError
from castctl.report.console import progress, say, tell

NOTES = 5
"""Parts left out of the page that are named on the terminal."""


def register(app: typer.Typer) -> None:
    app.command("report")(report)


def report(
    run: Annotated[
        str | None,
        typer.Argument(
            metavar="[RUN|STEP]", help="A run, or RUN/step-00012; the newest run by default."
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="File to write; report.html in the run by default.")
    ] = None,
    completions: Annotated[
        int, typer.Option("--completions", min=1, help="About how many completions to show.")
    ] = 10_000,
    step: Annotated[
        int | None, typer.Option("--step", min=0, help="Show the completions of this step only.")
    ] = None,
    trust_remote_code: opt.TrustRemoteCodeOption = False,
    quiet: opt.QuietOption = False,
    debug: opt.DebugOption = False,
) -> None:
    """Write one HTML file about a run that opens from disk, without a network.

    It holds the run's course, evaluations, diagnoses, recipe, and a browser of its completions.
    """
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # to look at a run is no reason to fetch a model

    from castctl.inspection.target import find_target
    from castctl.inspection.tokens import run_tokenizer
    from castctl.report.diagnostics import diagnosis_sections
    from castctl.report.html.payload import collect_completions
    from castctl.report.html.run_page import write_run_page
    from castctl.report.marks import size

    target = find_target(run)
    if target.part is not None:
        raise UserError(f"{target.path} is one part; name its run or its step")
    steps = [folder for folder in target.steps if step is None or folder.step == step]
    if step is not None and not steps:
        there = ", ".join(str(folder.step) for folder in target.steps) or "none"
        raise UserError(f"{target.path} has no step {step}; steps there: {there}")
    path = out or target.path / "report.html"
    if path.is_dir():
        raise UserError(f"--out {path} is a folder; name a file in it")
    tokenizer = run_tokenizer(target.run, trust_remote_code)
    shown = collect_completions(steps, tokenizer, completions, progress=progress())
    write_run_page(path, target, shown, diagnosis_sections(target.path))
    for note in shown.notes[:NOTES]:
        say(f"castctl: warning: {note}")
    if (more := len(shown.notes) - NOTES) > 0:
        say(f"castctl: warning: {more} more such lines are in the page")
    tell(f"report: {path} ({size(path.stat().st_size)})")
