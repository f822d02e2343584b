"""`castctl inspect`."""

import os
import shlex
from typing import TYPE_CHECKING, Annotated

import typer

from castctl.cli import options as opt
from castctl.errors import UserError
from castctl.inspection import Coloring
from castctl.report.console import progress

if TYPE_CHECKING:
    from castctl.inspection.target import Target


def register(app: typer.Typer) -> None:
    app.command("inspect")(inspect)


def inspect(
    target: Annotated[
        str | None,
        typer.Argument(
            metavar="[RUN|STEP|PART]",
            help="A run, RUN/step-00012, or RUN/step-00012/rollouts/part-00000.parquet; "
            "the newest run by default.",
        ),
    ] = None,
    prompts: Annotated[
        bool, typer.Option("--prompts", help="Show what student and teacher were asked.")
    ] = False,
    sample: Annotated[
        str | None,
        typer.Option(
            "--sample", metavar="PROMPT/N", help="Show one completion; PROMPT may be cut short."
        ),
    ] = None,
    color: Annotated[
        Coloring,
        typer.Option("--color", help="Value that colours the tokens of --sample."),
    ] = "advantage",
    verify: Annotated[
        bool, typer.Option("--verify", help="Read every file again and check it; 2 if not whole.")
    ] = False,
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="Prompts to show.")] = None,
    trust_remote_code: opt.TrustRemoteCodeOption = False,
    as_json: opt.JsonOption = False,
    quiet: opt.QuietOption = False,
    debug: opt.DebugOption = False,
) -> None:
    """Show what is on disk of a run, of one of its steps, or of a part.

    Nothing is written, no model is loaded and no code of the run's is run; --prompts and --sample
    load the tokenizer.
    """
    if sum((prompts, sample is not None, verify)) > 1:
        raise UserError("--prompts, --sample and --verify are three views; ask for one at a time")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # to look at a run is no reason to fetch a model

    from castctl.inspection.target import find_target

    found = find_target(target)
    if verify:
        _verify(found, as_json)
    elif sample is not None:
        _sample(found, sample, color, trust_remote_code, as_json)
    elif prompts:
        _prompts(found, limit or 3, trust_remote_code, as_json)
    else:
        _page(found, limit or 8, as_json)


def _page(target: "Target", limit: int, as_json: bool) -> None:
    """A run, a step or a part."""
    from castctl.cli.context import next_command
    from castctl.inspection.part import view_part
    from castctl.inspection.run import view_run
    from castctl.inspection.sample import short_name
    from castctl.inspection.step import view_step
    from castctl.report.marks import print_json
    from castctl.report.run_page import run_page
    from castctl.report.step_page import part_page, step_page
    from castctl.report.tables import show
    from castctl.stages.names import model_names

    if target.part is not None:
        part = view_part(target.path, target.part[0])
        print_json(part) if as_json else show(part_page(part))
        return
    if target.step is None:
        run = view_run(target)
        print_json(run) if as_json else show(run_page(run))
        if run.steps:
            next_command(f"castctl inspect {target.steps[-1].path}")
        return
    step = view_step(target.step, model_names(target.run))
    print_json(step) if as_json else show(step_page(step, limit))
    if step.groups and target.step.parts("rollouts"):
        group = next((group for group in step.groups if group.kind == "mixed"), step.groups[0])
        short = short_name((group.prompt_id for group in step.groups), group.prompt_id)
        sample = shlex.quote(f"{short}/{group.samples[0]}")
        next_command(f"castctl inspect {target.path} --sample {sample}")


def _prompts(target: "Target", limit: int, trust: bool, as_json: bool) -> None:
    from castctl.inspection.prompts import view_prompts
    from castctl.inspection.tokens import TokenTexts, prompt_ending, run_tokenizer
    from castctl.recipe.verifier import VerifierSettings
    from castctl.report.marks import print_json
    from castctl.report.sample import prompts_page
    from castctl.report.tables import show

    step = target.step_with("rollouts")
    tokenizer = run_tokenizer(target.run, trust)
    ending = prompt_ending(target.run, tokenizer)
    verifier = target.run.recipe.verifier if target.run else VerifierSettings()
    view = view_prompts(step, limit, TokenTexts(tokenizer), ending, verifier)
    print_json(view) if as_json else show(prompts_page(view))


def _sample(target: "Target", name: str, color: Coloring, trust: bool, as_json: bool) -> None:
    from castctl.inspection.sample import view_sample
    from castctl.inspection.scales import color_scales
    from castctl.inspection.tokens import TokenTexts, run_tokenizer
    from castctl.report.marks import print_json
    from castctl.report.sample import show_sample

    step = target.step_with("rollouts")
    view = view_sample(step, name, color, TokenTexts(run_tokenizer(target.run, trust)))
    if as_json:
        print_json(view)
    else:
        show_sample(view, color, color_scales([step]).get(color, 1.0))


def _verify(target: "Target", as_json: bool) -> None:
    """Print what is wrong, a line each; `UserError` with the count where anything is."""
    from castctl.inspection.verify import verify
    from castctl.report.marks import print_json
    from castctl.report.run_page import verification_page
    from castctl.report.tables import show

    found = verify(target, progress())
    print_json(found) if as_json else show(verification_page(found))
    if found.problems:
        count = len(found.problems)
        raise UserError(f"{target.path} is not whole: {count} problem{'s' if count > 1 else ''}")
