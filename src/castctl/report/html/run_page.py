"""The page of a run, of a step, or of shards made elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from castctl.inspection.run import DEFAULT, RunView, SettingView, view_run
from castctl.inspection.target import Target
from castctl.recipe.split import task_of
from castctl.report.document import Section, Sheet
from castctl.report.evaluation import endpoint_notes
from castctl.report.html.curves import curve_pictures, measures_sheet
from castctl.report.html.page import write_page
from castctl.report.html.payload import Completions
from castctl.report.marks import percent
from castctl.report.page import value_text, when
from castctl.report.tables import interval, measure_text
from castctl.stages.evaluate.results import Result, kind_of, task_name
from castctl.stages.evaluate.statistics import Estimate


def write_run_page(
    path: Path,
    target: Target,
    completions: Completions,
    diagnosis: Sequence[Section] = (),
) -> None:
    """Write the page of what `target` stands for: its course, evaluations, diagnosis, completions
    and recipe. Raises `UserError` where the file cannot be written."""
    view = view_run(_alone(target))
    sections = [
        *_notes(view, completions), *_course(view, target), *_evaluation(view), *diagnosis,
        *_recipe(view.settings),
    ]  # fmt: skip
    title = (
        view.name if target.step is None else f"{target.path.absolute().parent.name}, {view.name}"
    )
    write_page(path, title, run_facts(view), sections, completions)


def _alone(target: Target) -> Target:
    """A step of an evaluation has no part in the measures of the run around it."""
    inside = target.run is not None and target.path.parent.absolute() == target.run.path.absolute()
    return target if target.step is None or inside else Target(target.path, None, target.step)


def run_facts(view: RunView) -> dict[str, str]:
    """What a run is, in few words by name."""
    if not view.manifest:
        return {"Folder": str(view.path), "State": view.state, "Steps": str(len(view.steps))}
    chosen = {setting.key: setting.value for setting in view.settings}
    facts = {
        "Method": chosen["method.name"], "Model": chosen["model.path"], "Data": chosen["data.path"],
        "Runs code": ", ".join(view.runs_code.values()) or None,
        "Steps": f"{view.steps_done} of {view.steps_of}", "State": view.state,
        "Seed": chosen["seed"], "Begun": when(view.manifest.get("created")),
        "castctl": _version(view.manifest), "Machine": _machine(view.manifest),
    }  # fmt: skip
    return {name: value_text(value) for name, value in facts.items() if value is not None}


def _version(manifest: dict[str, Any]) -> str:
    commit = manifest.get("git_commit")
    return f"{manifest.get('castctl')}{f' ({str(commit)[:10]})' if commit else ''}"


def _machine(manifest: dict[str, Any]) -> str | None:
    machine, libraries = manifest.get("machine"), manifest.get("libraries")
    if not isinstance(machine, dict):
        return None
    said = [f"{machine.get('system')}, {machine.get('cores')} cores",
            f"Python {manifest.get('python')}"]  # fmt: skip
    if isinstance(libraries, dict) and libraries.get("torch"):
        said.append(f"torch {libraries['torch']}")
    return ", ".join(said)


def _notes(view: RunView, completions: Completions) -> list[Section]:
    """What could not be read, where there is no other place to say so."""
    notes = [*view.notes, *(f"step {s.step}: {s.problem}" for s in view.steps if s.problem)]
    if completions.shown == 0:
        notes += completions.notes or ["There are no completions yet."]
    return [Section("notes", "Notes", list(notes))] if notes else []


def _course(view: RunView, target: Target) -> list[Section]:
    """The curves of several steps, or the measures of one."""
    rows = [{"step": step.step, **step.measures} for step in view.steps if step.measures]
    if not rows:
        return []
    if len(rows) == 1:
        measures = [[name.replace("_", " "), _measure(name, value)]
                    for name, value in rows[0].items()
                    if name != "step" and value is not None]  # fmt: skip
        return [Section("course", "Measures", [Sheet("Measures of the step", ["", "value"],
                                                     measures)])]  # fmt: skip
    own = None if target.run is None else task_name(task_of(target.run.recipe))
    # Evaluations with other settings have another name.
    held_out = [r for r in view.evaluations if r.get("name", task_name(r["task"])) == own]
    pictures = curve_pictures(rows, held_out)
    return [Section("course", "Course", [*pictures, measures_sheet(rows)])]


def _measure(name: str, value: object) -> str:
    values = value if isinstance(value, list) else [value]
    return ", ".join(measure_text(name, v) or "none" if isinstance(v, int | float) else str(v)
                     for v in values)  # fmt: skip


def _evaluation(view: RunView) -> list[Section]:
    sheets: list[str | Sheet | Any] = [
        _results(list(results)) for _, results in groupby(view.evaluations, kind_of)
    ]
    return [Section("evaluation", "Evaluation", sheets)] if sheets else []


def _results(results: list[Result]) -> Sheet:
    name, k = kind_of(results[0])
    rows = [
        [
            f"step {result['step']}",
            interval(Estimate(**result["avg"])),
            interval(Estimate(**result["pass"][str(k)]), with_bounds=False),
            interval(Estimate(**result["maj"]), with_bounds=False),
            percent(result["truncated_share"], ""),
            "" if (length := result["length_mean"]) is None else f"{length:.0f}",
        ]
        for result in results
    ]
    return Sheet(
        title=f"{name}, in per cent",
        headings=["", f"avg@{k} (95 % interval)", f"pass@{k}", f"maj@{k}", "cut off", "tokens"],
        rows=rows,
        note=" ".join(["Intervals are over problems.", *endpoint_notes(results)]),
    )


def _recipe(settings: list[SettingView]) -> list[Section]:
    """What differs from the defaults, and every setting folded behind it."""
    if not settings:
        return []
    changed = [s for s in settings if s.origin != DEFAULT]
    names = ["setting", "value", "default", "from"]
    sheets: list[str | Sheet | Any] = [
        Sheet("Settings that are not defaults", names, [_setting(s) for s in changed], right=False),
        Sheet("Every setting", names, [_setting(s) for s in settings], right=False),
    ]
    return [Section("recipe", "Recipe", sheets)]


def _setting(setting: SettingView) -> list[str]:
    values = (value_text(setting.value), value_text(setting.default))
    return [setting.key, *values, setting.origin or "not recorded"]
