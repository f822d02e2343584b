"""The page of `castctl explain`: what a step does, memory, settings, warnings."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich import box
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from castctl.explanation import ExplainedSetting, Explanation
from castctl.report.marks import line
from castctl.report.page import plain_table, title, value_text
from castctl.train.estimate import Memory

LESS = {
    "reading prompts": "sampling.max_rows",
    "sampling": "sampling.max_rows",
    "scoring": "train.microbatch_tokens or train.head_chunk_tokens",
    "update, output head": "train.microbatch_tokens, or set train.gradient_checkpointing=true",
    "update, backward pass": "train.microbatch_tokens, or set train.gradient_checkpointing=true",
}
"""What to lower where a phase is the largest."""

TABLE_WIDTH = 100
"""Columns of a terminal from which on settings fit into a table with their meaning."""


def explanation_page(explanation: Explanation) -> Group:
    """All sections, the warnings last."""
    recipe, warnings = explanation.recipe, explanation.warnings
    pages: list[RenderableType] = [
        Text(
            f"{recipe.method.name} trains model {line(recipe.model.path)} on data "
            f"{line(recipe.data.path)}.",
            "bold",
        ),
        title("A step"),
        _facts(_step(explanation)),
        title("The run"),
        _facts(_run(explanation)),
    ]
    if explanation.memory is None:
        reason = line(explanation.memory_missing)
        pages += [title("Memory"), Text(f"memory: not estimated; {reason}", "yellow")]
    else:
        pages += _memory(explanation.memory, explanation)
    by_section: dict[str, list[ExplainedSetting]] = {}
    for setting in explanation.settings:
        by_section.setdefault(setting.key.rpartition(".")[0], []).append(setting)
    for section, settings in by_section.items():
        pages += [title(section or "recipe"), _Settings(settings)]
    pages += [title("Warnings"), *(Text(line(w), "yellow") for w in warnings or ["none"])]
    return Group(*pages)


def _step(explanation: Explanation) -> dict[str, str]:
    """What the stages of one step do."""
    recipe, work = explanation.recipe, explanation.work
    passes = ", ".join(
        f"teacher ({_teacher(explanation)})" if name == "teacher" else name
        for name in work.scoring_passes
    )
    turns = _count(work.training_passes, "pass", "passes")
    return {
        "rollout": f"{work.prompts:,} prompts x {work.samples:,} samples = {work.completions:,} "
        f"completions of at most {recipe.sampling.max_tokens:,} tokens, {work.tokens:,} in all",
        "score": f"{work.completions:,} answers verified; all completions read forward by: "
        + passes,
        "shape": "advantages from the files alone, without a model",
        "train": f"{turns} forward and backward over the completions that have an advantage, "
        f"{_count(work.optimizer_steps, 'optimizer step')}",
    }


def _teacher(explanation: Explanation) -> str:
    teacher = explanation.recipe.method.teacher
    return {
        "snapshot": f"a snapshot, renewed every {_count(teacher.every, 'step')}",
        "ema": f"an average with decay {teacher.decay:g}",
        "initial": "the policy of step 0",
    }[teacher.kind]


def _run(explanation: Explanation) -> dict[str, str]:
    """What adds up over the steps."""
    recipe, work = explanation.recipe, explanation.work
    problems = "all problems" if recipe.eval.limit is None else f"{recipe.eval.limit:,} problems"
    kept = "the best and the last" if recipe.train.keep == "best_and_last" else "all"
    return {
        "steps": f"{work.steps:,}: {work.total_completions:,} completions, at most "
        f"{work.total_tokens:,} tokens, {_count(work.total_optimizer_steps, 'optimizer step')}",
        "evaluations": f"{len(work.evaluations):,}, each {_count(work.eval_samples, 'sample')} of "
        f"{problems} of {line(recipe.eval.task)}: {_after(work.evaluations)}",
        "checkpoints": f"{len(work.checkpoints):,}: {_after(work.checkpoints)}; {kept} stay",
    }


def _memory(memory: Memory, explanation: Explanation) -> list[RenderableType]:
    recipe = explanation.recipe
    table = plain_table("held from the first update on", "GiB")
    for part, size in memory.held.items():
        table.add_row(part, _gib(size) if size else "none")
    for phase, parts in memory.phases.items():
        table.add_row()
        table.add_row(Text(phase, "bold"), _gib(sum(parts.values())))
        for part, size in parts.items():
            table.add_row(f"  {part}", _gib(size))
    table.add_row()
    table.add_row(Text(f"memory, together ({memory.peak_phase})", "bold"), _gib(memory.together))
    table.add_row("all logits of a step at once would take", _gib(memory.all_logits))
    note = (
        f"{memory.parameters:,} float32 weights, passes in {memory.arithmetic}. Phases take turns; "
        "the largest counts. All is counted at its longest: prompts of "
        f"{recipe.data.max_prompt_tokens:,} tokens (data.max_prompt_tokens), completions of "
        f"{recipe.sampling.max_tokens:,}. On a CPU, Python and its libraries add about 0.6 GiB."
    )
    pages: list[RenderableType] = [title("Memory"), Text(note), Text(), table]
    if memory.peak_phase in LESS:
        pages.append(Text(f"To need less, lower {LESS[memory.peak_phase]}."))
    return pages


@dataclass(frozen=True)
class _Settings:
    """One section's settings: a table, or a paragraph each where it would not fit."""

    settings: list[ExplainedSetting]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        if options.max_width >= TABLE_WIDTH:
            yield _table(self.settings)
        else:
            for setting in self.settings:
                yield from _paragraph(setting)


def _paragraph(setting: ExplainedSetting) -> Iterator[RenderableType]:
    said = [f"{setting.key.rpartition('.')[2]} = {value_text(setting.value)}"]
    if setting.origin:
        said.append(f"from {setting.origin}, default {value_text(setting.default)}")
    if setting.choice:
        said.append(setting.choice)
    yield Text("; ".join(map(line, said)), "bold" if setting.origin else "")
    yield Padding(Text(setting.meaning, "dim"), (0, 0, 0, 4))


def _table(settings: list[ExplainedSetting]) -> Table:
    """Columns that would be empty are left out."""
    changed = any(setting.origin for setting in settings)
    chosen = any(setting.choice for setting in settings)
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    table.add_column("setting", no_wrap=True)
    table.add_column("value", max_width=24, overflow="fold")
    if changed:
        table.add_column("default", max_width=16, overflow="fold")
        table.add_column("from", max_width=16, overflow="fold")
    if chosen:
        table.add_column("choice", no_wrap=True)
    table.add_column("meaning", ratio=1)
    for setting in settings:
        cells = [setting.key.rpartition(".")[2], value_text(setting.value)]
        if changed:
            cells += [value_text(setting.default), setting.origin] if setting.origin else ["", ""]
        if chosen:
            cells.append(setting.choice or "")
        style = "bold" if setting.origin else ""
        table.add_row(*(Text(line(cell), style) for cell in cells), Text(setting.meaning))
    return table


def _facts(facts: dict[str, str]) -> Table:
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(no_wrap=True)
    table.add_column(ratio=1)
    for name, text in facts.items():
        table.add_row(Text(name), Text(text))
    return table


def _after(steps: Sequence[int]) -> str:
    """Steps in words: the first three and the last."""
    shown = [str(step) for step in steps[:3]]
    if len(steps) > 4:
        shown.append("...")
    if len(steps) > 3:
        shown.append(str(steps[-1]))
    return f"after {', '.join(shown)} steps"


def _count(number: int, one: str, many: str | None = None) -> str:
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def _gib(size: int) -> str:
    return f"{size / 2**30:.3f}"
