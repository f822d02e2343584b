"""Run one diagnostic on a subject: choose, compute what is missing, measure, write down."""

from __future__ import annotations

from pathlib import Path

from castctl.diagnose.diagnosis import Context, Diagnosis, Diagnostic
from castctl.diagnose.subject import ChosenStep, Subject, choose_steps, read_chosen
from castctl.inspection.tokens import TokenTexts, run_tokenizer
from castctl.methods.cast import CastShaping
from castctl.progress import Progress
from castctl.recipe import Recipe
from castctl.shards.part import plain


def output_folder(subject: Subject, diagnostic: Diagnostic) -> Path:
    """Where everything of a diagnosis lies: `diagnose/NAME` in the run, or beside the shards."""
    home = subject.path if subject.run is None else subject.run.path
    return home / "diagnose" / diagnostic.name


def diagnose(
    diagnostic: Diagnostic,
    subject: Subject,
    *,
    asked: list[int],
    progress: Progress,
    overwrite: bool = False,
) -> tuple[Diagnosis, list[ChosenStep]]:
    """Every number of a diagnostic, written to `NAME.json`, and the steps it was read from."""
    out = output_folder(subject, diagnostic)
    steps = choose_steps(diagnostic, subject, asked, out, progress=progress, overwrite=overwrite)
    recipe = Recipe() if subject.run is None else subject.run.recipe
    shaping = recipe.method.shaping
    context = Context(
        texts=TokenTexts(run_tokenizer(subject.run)),
        seed=recipe.seed,
        cast=shaping if isinstance(shaping, CastShaping) else CastShaping(),
        seconds={step.folder.step: step.seconds for step in steps if step.seconds},
    )
    numbers = plain(diagnostic.measure(read_chosen(steps, diagnostic.need, progress), context))
    facts = [step.facts() for step in steps]
    diagnosis = Diagnosis(
        name=diagnostic.name,
        question=diagnostic.question,
        subject=_describe(subject),
        steps=facts,
        numbers=numbers,
        notes=_notes(facts, subject, diagnostic),
        seed=recipe.seed,
    )
    diagnosis.write(out / f"{diagnostic.name}.json")
    return diagnosis, steps


def _describe(subject: Subject) -> dict[str, object]:
    run = subject.run
    if run is None:
        return {"path": str(subject.path)}
    recipe = run.recipe
    return {
        "path": str(subject.path),
        "run": str(run.path),
        "method": recipe.method.name,
        "model": recipe.model.path,
        "data": recipe.data.path,
    }


def _notes(facts: list[dict], subject: Subject, diagnostic: Diagnostic) -> list[str]:
    """What a reader must know of where the numbers come from."""
    notes = []
    computed = [fact for fact in facts if fact["computed_with"]]
    if computed:
        steps = _listed([fact["step"] for fact in computed])
        models = sorted({str(fact["computed_with"]) for fact in computed})
        alike = ", policy and teacher alike" if diagnostic.need.teacher else ""
        notes.append(
            f"What {diagnostic.name} reads was not there at {steps}: it was computed under "
            f"diagnose/{alike}, with the weights {', '.join(models)}."
        )
    other = [f for f in computed if f["sampler"] not in (None, f["computed_with"])]
    if other:
        notes.append(
            f"The rollouts of {_listed([f['step'] for f in other])} were sampled by other weights "
            f"({', '.join(sorted({str(f['sampler']) for f in other}))}): the policy here did not "
            "write these completions, so its log-probs are a reader's, not their author's."
        )
    partial = [fact for fact in facts if fact["parts"] < fact["of_parts"]]
    if partial:
        notes.append(
            f"{_listed([f['step'] for f in partial]).capitalize()} is read as far as it is whole: "
            f"{sum(f['parts'] for f in partial)} of {sum(f['of_parts'] for f in partial)} parts."
        )
    steps_there = [step for step in subject.steps if diagnostic.need.stages and step.path.is_dir()]
    if len(facts) < len(steps_there):
        notes.append(f"Read: {len(facts)} of the {len(steps_there)} steps there.")
    return notes


def _listed(steps: list[int]) -> str:
    shown = ", ".join(map(str, steps[:6])) + (", ..." if len(steps) > 6 else "")
    return f"step {shown}" if len(steps) == 1 else f"steps {shown}"
