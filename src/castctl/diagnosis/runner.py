"""Run one diagnostic on a subject: choose, compute what is missing, measure, write down."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from castctl.diagnosis.diagnosis import Context, Diagnosis, Diagnostic, read_diagnosis
from castctl.diagnosis.needs import OTHER
from castctl.diagnosis.subject import ChosenStep, Subject, choose_steps, read_chosen
from castctl.inspection.tokens import TokenTexts, run_tokenizer
from castctl.methods import MethodSettings
from castctl.methods.cast import CastShaping
from castctl.methods.correction import NoCorrection
from castctl.progress import Progress
from castctl.recipe.recipe import Recipe
from castctl.shards.part import plain
from castctl.stages.names import called, model_names

Facts = dict[str, Any]


def output_folder(subject: Subject, diagnostic: Diagnostic) -> Path:
    """Where everything of a diagnosis lies."""
    own = subject.home / "diagnose" / diagnostic.name
    return own / OTHER if subject.others else own


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
    own = recipe.method.shaping.kind == "cast"
    cast = recipe.method if own else MethodSettings(name="cast")
    assert isinstance(cast.shaping, CastShaping)
    corrects = recipe.method.surrogate.trains  # else nothing reads the weights
    context = Context(
        texts=TokenTexts(run_tokenizer(subject.run)),
        seed=recipe.seed,
        cast=cast.shaping,
        zero_variance=cast.zero_variance,
        seconds={step.folder.step: step.seconds for step in steps if step.seconds},
        correction=recipe.method.correction if corrects else NoCorrection(),
    )
    numbers = plain(diagnostic.measure(read_chosen(steps, diagnostic.need, progress), context))
    facts = [step.facts() for step in steps]
    if subject.others:
        numbers["told_own"] = _told_own(out.parent / f"{diagnostic.name}.json", facts)
    diagnosis = Diagnosis(
        name=diagnostic.name,
        question=diagnostic.question,
        subject=_describe(subject),
        steps=facts,
        numbers=numbers,
        notes=_notes(facts, subject),
        seed=recipe.seed,
    )
    diagnosis.write(out / f"{diagnostic.name}.json")
    return diagnosis, steps


def _told_own(file: Path, facts: list[Facts]) -> Facts | None:
    """The separation by a teacher that was told each problem's own answer, from the diagnosis of
    the same steps by the same weights; None where there is none."""
    if not file.is_file():
        return None
    own = read_diagnosis(file)
    keys = ("step", "parts", "policy", "teacher", "skip_tokens")
    same = [[each[key] for key in keys] for each in own.steps] == [
        [each[key] for key in keys] for each in facts
    ]
    found: Facts = own.numbers["separation"]
    return {"all": found["all"], "within_prompt": found["within_prompt"]} if same else None


def _describe(subject: Subject) -> dict[str, object]:
    run = subject.run
    if run is None:
        return {"path": str(subject.path)}
    recipe = run.recipe
    return {
        "path": str(subject.path),
        "run": str(run.path),
        "method": recipe.method.name,
        "model": subject.began.path,
        "data": recipe.data.path,
    }


def _notes(facts: list[Facts], subject: Subject) -> list[str]:
    """What a reader must know of where the numbers come from."""
    notes, names = [], model_names(subject.run)
    for (stages, policy, teacher), steps in _grouped(facts, "computed", "policy", "teacher"):
        if not stages:
            continue
        words = (
            f"{' and '.join(stages).capitalize()} of {_listed(steps)} were computed under diagnose/"
        )
        if "signals" in stages:
            words += f", the policy's log-probs with {called(policy, names)}"
            words += f" and the teacher's with {called(teacher, names)}" if teacher else ""
        notes.append(f"{words}.")
    for (sampler, policy), steps in _grouped(facts, "sampler", "policy"):
        if sampler and policy and sampler != policy:
            notes.append(
                f"The rollouts of {_listed(steps)} were sampled by {called(sampler, names)} and "
                f"are scored by {called(policy, names)}: where those are other weights, the "
                "log-probs are a reader's, not the author's."
            )
    partial = [fact for fact in facts if fact["parts"] < fact["of_parts"]]
    if partial:
        notes.append(
            f"{_listed([f['step'] for f in partial]).capitalize()} is read as far as it is whole: "
            f"{sum(f['parts'] for f in partial)} of {sum(f['of_parts'] for f in partial)} parts."
        )
    if len(facts) < len(subject.steps):
        words = f"Read: {len(facts)} of the {len(subject.steps)} steps there."
        if any("signals" in fact["computed"] for fact in facts):
            words += (
                " What is missing is computed for steps with a checkpoint at their start; --model "
                "names weights for others."
            )
        notes.append(words)
    return notes


def _grouped(facts: list[Facts], *keys: str) -> list[tuple[list[Any], list[int]]]:
    """The different values of some facts, each with the steps that have them."""
    found: list[tuple[list[Any], list[int]]] = []
    for fact in facts:
        values = [fact[key] for key in keys]
        for known, steps in found:
            if known == values:
                steps.append(fact["step"])
                break
        else:
            found.append((values, [fact["step"]]))
    return found


def _listed(steps: list[int]) -> str:
    shown = ", ".join(map(str, steps[:6])) + (", ..." if len(steps) > 6 else "")
    return f"step {shown}" if len(steps) == 1 else f"steps {shown}"
