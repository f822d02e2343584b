"""The page of a run, and of what `--verify` found."""

from __future__ import annotations

from itertools import groupby

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from castctl.inspection.run import DEFAULT, RunView, SettingView, StepRow
from castctl.inspection.verify import Verification
from castctl.report.evaluation import endpoint_notes
from castctl.report.marks import finite, line, number, size, sparkline
from castctl.report.page import code_line, headline, plain_table, title, value_text, when
from castctl.report.tables import eval_table, measure_text
from castctl.stages.evaluate.results import Result, kind_of
from castctl.stages.train.metrics import value_of

CURVES = {
    "reward": "reward_mean", "mixed": "groups_mixed", "length": "length_mean",
    "entropy": "entropy_mean", "gap": "gap_rms", "grad": "grad_norm",
}  # fmt: skip
"""Measures followed over the steps."""

FIRST_STEPS, LAST_STEPS = 5, 25
"""Rows shown of a long run."""


def run_page(view: RunView) -> Group:
    """Where a run stands, how it went, and what made it."""
    pages: list[RenderableType] = [headline(view.name, view.state), *_facts(view)]
    pages += [code_line(setting, code) for setting, code in view.runs_code.items()]
    pages += [Text(f"note: {line(note)}", "yellow") for note in view.notes]
    pages += _curves(view.steps)
    for _, results in groupby(view.evaluations, kind_of):
        shown = list(results)
        pages += ["", _evaluations(shown), *map(Text, endpoint_notes(shown))]
    if view.steps:
        pages += [title("Steps"), *_steps(view.steps)]
    if view.checkpoints:
        saved = ", ".join(
            f"step {c.step} ({size(c.bytes)}{', with teacher' if c.teacher else ''})"
            for c in view.checkpoints
        )
        pages += [title("Checkpoints"), Text(saved)]
    if view.settings:
        pages += _settings(view.settings)
    return Group(*pages)


def _facts(view: RunView) -> list[RenderableType]:
    facts: list[RenderableType] = [Text(f"{line(view.path)}  {size(view.bytes)}", "dim")]
    if not view.manifest:
        return [*facts, Text("no manifest: these shards were made elsewhere")]
    manifest = view.manifest
    chosen = {setting.key: setting.value for setting in view.settings}
    facts.append(
        Text(
            f"{line(chosen['method.name'])}, model {line(chosen['model.path'])}, "
            f"data {line(chosen['data.path'])}, seed {chosen['seed']}; "
            f"{view.steps_done} of {view.steps_of} steps"
        )
    )
    libraries, machine = manifest.get("libraries"), manifest.get("machine")
    made = [f"castctl {manifest.get('castctl')} ({(str(manifest.get('git_commit')))[:10]})",
            f"Python {manifest.get('python')}"]  # fmt: skip
    if isinstance(libraries, dict):
        made += [f"{name} {version}" for name, version in libraries.items() if version]
    if isinstance(machine, dict):
        made.append(f"{machine.get('system')}, {machine.get('cores')} cores")
    facts.append(Text(f"begun {when(manifest.get('created'))} with {line(', '.join(made), 400)}"))
    return facts


def _curves(steps: list[StepRow]) -> list[RenderableType]:
    """The course of a few measures over the steps."""
    if len(steps) < 2:
        return []
    grid = Table.grid(padding=(0, 2))
    for label, name in CURVES.items():
        values = [finite(value_of(step.measures, name)) for step in steps]
        known = [value for value in values if value is not None]
        if known:
            ends = " to ".join(measure_text(name, known[at], 3) for at in (0, -1))
            grid.add_row(label, Text(sparkline(values), "cyan"), ends)
    return [title("Course"), grid]


def _evaluations(results: list[Result]) -> Table:
    best = max(results, key=lambda result: (result["avg"]["mean"], -result["step"]))
    return eval_table(
        (f"step {result['step']}{' (best)' if result is best else ''}", result)
        for result in results
    )


def _steps(steps: list[StepRow]) -> list[RenderableType]:
    table = plain_table("step", "parts", "rows", "size", *CURVES, "s")
    left_out = range(FIRST_STEPS, len(steps) - LAST_STEPS)
    for index, step in enumerate(steps):
        if index in left_out:
            if index == left_out[0]:
                table.add_row("…")
            continue
        m = step.measures
        numbers = [measure_text(name, finite(value_of(m, name)), 3) for name in CURVES.values()]
        table.add_row(
            str(step.step), _parts(step.parts), f"{step.rows:,}", size(step.bytes), *numbers,
            number(finite(m.get("seconds")), 2),
        )  # fmt: skip
    notes = [Text(f"step {step.step}: {line(step.problem, 400)}", "yellow")
             for step in steps if step.problem is not None]  # fmt: skip
    if left_out:
        notes.append(Text(f"… {len(left_out)} more steps: --json has them", "dim"))
    return [table, *notes]


def _parts(parts: dict[str, int]) -> str:
    """How many parts each stage has; one number where all have the same."""
    if len(set(parts.values())) == 1:
        return str(next(iter(parts.values())))
    return ", ".join(f"{stage} {count}" for stage, count in parts.items() if count)


def _settings(settings: list[SettingView]) -> list[RenderableType]:
    changed = [setting for setting in settings if setting.origin != DEFAULT]
    count = f"{len(changed)} of {len(settings)}; --json has all"
    pages: list[RenderableType] = [title(f"Settings that are not defaults ({count})")]
    for setting in changed:  # a table of them would break words at 80 columns
        origin = "" if setting.origin is None else f"from {line(setting.origin)}; "
        default = f"{origin}default {line(value_text(setting.default))}"
        pages.append(Text(f"{line(setting.key)} = {line(value_text(setting.value))}"))
        pages.append(Padding(Text(default, "dim"), (0, 0, 0, 4)))
    return pages


def verification_page(found: Verification) -> Group:
    """A line a problem, and what was read."""
    problems = [Text(line(problem, 1000), "red") for problem in found.problems]
    made = f", {len(found.foreign)} of them made elsewhere" if found.foreign else ""
    elsewhere = [Text(f"made elsewhere: {line(path)}", "dim") for path in found.foreign]
    if count := len(found.unsealed):
        elsewhere.append(Text(f"{count} of an older castctl, which wrote no checksums", "dim"))
    count = len(found.problems)
    verdict = f"{count} problem{'s' * (count != 1)}" if count else "whole"
    return Group(*problems, *elsewhere, Text(f"{found.files} files read{made}: {verdict}"))
