"""`castctl diagnose`."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from castctl.cli import options as opt
from castctl.errors import UserError
from castctl.report.console import progress, say, tell

if TYPE_CHECKING:
    from castctl.cli.context import Asked
    from castctl.diagnosis.diagnosis import Diagnosis
    from castctl.diagnosis.subject import ChosenStep, Subject
    from castctl.runs.run import Run

PROMPTS = 64
"""Prompts of the embedded default that are rolled out where there is no run at all."""


def register(app: typer.Typer) -> None:
    app.command("diagnose")(diagnose)


def diagnose(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="[NAME]",
            help="opsd-gaps, self-gaps, groups, flips, credit, confidence or engine; without a "
            "name they are explained.",
        ),
    ] = None,
    subject: Annotated[
        str | None,
        typer.Argument(
            metavar="[RUN|SHARDS]",
            help="A run, RUN/step-00012, or a folder of steps made elsewhere; else the newest run, "
            "or rollouts of the embedded model where there is none.",
        ),
    ] = None,
    step: Annotated[
        list[int] | None,
        typer.Option("--step", min=0, help="Step to read; may be repeated. All that serve, else."),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            help="Weights that score policy and teacher anew, such as RUN/checkpoints/step-00010.",
        ),
    ] = None,
    context: Annotated[
        str | None,
        typer.Option(
            "--context",
            help="other: opsd-gaps of a teacher that is told another problem's answer, to see "
            "whether knowing the right one is what separates.",
        ),
    ] = None,
    recipe: opt.RecipeOption = None,
    tiny: opt.TinyOption = False,
    set_: opt.SetOption = None,
    engine: opt.EngineOption = None,
    device: opt.DeviceOption = None,
    dtype: opt.DtypeOption = None,
    trust_remote_code: opt.TrustRemoteCodeOption = False,
    trust_verifier: opt.TrustVerifierOption = False,
    full: opt.FullOption = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Compute again what an earlier diagnosis computed.")
    ] = False,
    as_json: opt.JsonOption = False,
    quiet: opt.QuietOption = False,
    debug: opt.DebugOption = False,
) -> None:
    """See what a run's numbers mean: the answer, tables, plots, NAME.json and an HTML page.

    Signals that are missing are computed into diagnose/, never over the run's own.
    """
    if name is None:
        _explain()
        return

    from castctl.diagnosis.catalog import find_diagnostic, require_context

    diagnostic = find_diagnostic(name)
    require_context(name, context)

    from castctl.cli.context import Asked
    from castctl.diagnosis.runner import diagnose as run_diagnostic
    from castctl.diagnosis.runner import output_folder

    asked = Asked(
        recipe, set_, tiny=tiny, model={"path": model, "device": device, "dtype": dtype},
        engine={"kind": engine},
        trust_remote_code=trust_remote_code, trust_verifier=trust_verifier,
    )  # fmt: skip
    found = _subject(subject, asked, model is not None)
    if context is not None:
        found = replace(found, retaught=True, others=True)
    say(f"{diagnostic.name} of {found.path}")
    diagnosis, steps = run_diagnostic(
        diagnostic, found, asked=list(step or ()), progress=progress(), overwrite=overwrite
    )
    out = output_folder(found, diagnostic)
    page = _write(diagnosis, found, steps, out)
    _show(diagnosis, out, page, full, as_json)


def _explain() -> None:
    from castctl.diagnosis.catalog import DIAGNOSTICS
    from castctl.report.page import plain_table
    from castctl.report.tables import show

    table = plain_table("diagnostic", "the question it answers", "reads", right=False)
    for each in DIAGNOSTICS.values():
        reads = sorted(each.need.signals) or ["rewards"]
        table.add_row(each.name, each.question, ", ".join(reads))
    show(table)
    say("Next: castctl diagnose opsd-gaps")


def _subject(name: str | None, asked: "Asked", named: bool) -> "Subject":
    """What is to be diagnosed: what the name stands for, the newest run, or one made now."""
    from castctl.diagnosis.subject import Subject
    from castctl.inspection.target import find_target
    from castctl.runs.kind import WORKED, newest_run
    from castctl.runs.run import Run

    if name is None and newest_run(*WORKED) is None:
        made = _embedded_rollouts(asked)
        return Subject(made.path, [made.step(0)], made)
    target = find_target(name)
    if target.part is not None:
        raise UserError(f"{name} is one part; name its step, {target.path.parent.parent}")
    run = target.run
    if run is not None and (asked.changes or asked.trusts):
        run = asked.changed(run)
    elif run is None and asked.changes:
        run = Run(target.path, asked.new_recipe()[0])
    weights = None
    if run is not None and named:
        from castctl.stages.policies import chosen_policy

        weights = chosen_policy(run)
    retaught = any(each.strip().startswith("method.teacher") for each in asked.overrides)
    return Subject(target.path, target.steps, run, weights, retaught)


def _embedded_rollouts(asked: "Asked") -> "Run":
    """A run with the first step's rollouts, judged and scored, and nothing trained."""
    from castctl.runs.run import create_run, discarded_if_empty
    from castctl.stages.one_step import rollout_stage, score_stage
    from castctl.stages.policies import policy_at

    recipe, origins = asked.new_recipe()
    if asked.recipe is None:
        train = recipe.train.model_copy(update={"prompts_per_step": PROMPTS})
        recipe = recipe.model_copy(update={"train": train})
    run = create_run(recipe, None, "diagnose", origins)
    say(
        f"There is no run here: rolling out {recipe.train.prompts_per_step} prompts into {run.path}"
    )
    with discarded_if_empty(run):
        source = policy_at(run, 0)
        rollout_stage(run, 0, source, progress=progress())
        score_stage(run, 0, source, {"entropies"}, progress=progress())
    return run


def _write(
    diagnosis: "Diagnosis", subject: "Subject", steps: "list[ChosenStep]", out: Path
) -> Path:
    """The plots and the HTML page of a diagnosis."""
    from castctl.report.diagnosis_page import write_diagnosis_page
    from castctl.report.diagnostics import section_of, write_pictures

    section = section_of(diagnosis)
    write_pictures(section, out)
    page = out / "report.html"
    folders = [step.folder for step in steps]
    write_diagnosis_page(page, diagnosis, section, subject.run, folders, progress())
    return page


def _show(diagnosis: "Diagnosis", out: Path, page: Path, full: bool, as_json: bool) -> None:
    from castctl.report.diagnostics import section_of
    from castctl.report.marks import print_json
    from castctl.report.section_page import section_page
    from castctl.report.tables import show

    if as_json:
        print_json(diagnosis)
        return
    show(section_page(section_of(diagnosis), full))
    plots = sum(1 for _ in out.glob("*.png"))
    tell(f"{out}: {diagnosis.name}.json, {plots} plots, report.html")
    say(f"Open {page} in a browser to see completions token by token.")
