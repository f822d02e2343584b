"""The page of `castctl explain`: what a step does, memory, settings, warnings."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.text import Text

from castctl.diagnosis.kept import lost_answers
from castctl.explain.engine import EngineMemory, Fit
from castctl.explain.estimate import Memory
from castctl.explain.explanation import Explanation
from castctl.explain.gpu import TrainingFit
from castctl.recipe.choices import ExplainedSetting
from castctl.recipe.split import holds_out, task_of
from castctl.recipe.trust import runs_code
from castctl.report.marks import line
from castctl.report.page import code_line, plain_table, title
from castctl.report.settings import SettingsTable, facts_table

PASSES = {
    "bilateral": "policy (after the opposite completions)",
    "perturbation": "policy (from each reasoning token on, once for each)",
    "gradient": "policy (twice, and once backward)",
}
"""What a pass of the score stage is, where its name does not say it."""

LESS = {
    "reading prompts": "sampling.max_rows",
    "sampling": "sampling.max_rows",
    "scoring": "train.microbatch_tokens or train.head_chunk_tokens",
    "update, output head": "train.microbatch_tokens, or set train.gradient_checkpointing=true",
    "update, backward pass": "train.microbatch_tokens, or set train.gradient_checkpointing=true",
}
"""What to lower where a phase is the largest."""


def explanation_page(explanation: Explanation) -> Group:
    """All sections, the warnings last."""
    recipe, warnings = explanation.recipe, explanation.warnings
    pages: list[RenderableType] = [
        Text(
            f"{recipe.method.name} trains model {line(recipe.model.path)} on data "
            f"{line(recipe.data.path)}.",
            "bold",
        ),
        *(code_line(setting, code) for setting, code in runs_code(recipe).items()),
        title("A step"),
        facts_table(_step(explanation)),
        title("The run"),
        facts_table(_run(explanation)),
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
        pages += [title(section or "recipe"), SettingsTable(settings)]
    pages += [title("Warnings"), *(Text(line(w), "yellow") for w in warnings or ["none"])]
    return Group(*pages)


def _step(explanation: Explanation) -> dict[str, str]:
    """What the stages of one step do."""
    recipe, work = explanation.recipe, explanation.work
    readers = PASSES | {"teacher": f"teacher ({_teacher(explanation)})"}
    passes = ", ".join(readers.get(name, name) for name in work.scoring_passes)
    rounds = recipe.method.zero_variance.rounds
    distills = recipe.method.distillation.divergence_spec is not None
    turns = _count(work.training_passes, "pass", "passes")
    return {
        "rollout": f"{work.prompts:,} prompts x {work.samples:,} samples = {work.completions:,} "
        f"completions of at most {recipe.sampling.max_tokens:,} tokens, {work.tokens:,} in all"
        + (
            f"; up to {rounds} such rounds, to replace groups without variance"
            if rounds > 1
            else ""
        ),
        "score": f"{work.completions:,} answers verified; all completions read forward by: "
        + passes,
        "shape": "advantages from the files alone, without a model",
        "train": f"{turns} forward and backward over the completions that have a gradient, "
        + (f"which the teacher ({_teacher(explanation)}) reads forward, " if distills else "")
        + _count(work.optimizer_steps, "optimizer step"),
    }


def _teacher(explanation: Explanation) -> str:
    teacher = explanation.recipe.method.teacher
    told = {"none": "", "peer": ", told a correct completion"}.get(
        teacher.context, ", told the answer"
    )
    return {
        "snapshot": f"a snapshot, renewed every {_count(teacher.every, 'step')}",
        "ema": f"an average with decay {teacher.decay:g}",
        "initial": "the policy of step 0",
        "current": "the policy itself",
        "model": line(teacher.path),
        "none": "none",
    }[teacher.kind] + told


def _run(explanation: Explanation) -> dict[str, str]:
    """What adds up over the steps."""
    recipe, work = explanation.recipe, explanation.work
    problems = "all problems" if recipe.eval.limit is None else f"{recipe.eval.limit:,} problems"
    task = line(task_of(recipe))
    if holds_out(recipe):
        task += (
            f", {recipe.eval.held_out:,} problems of the data, chosen by hash and not trained on "
            "(of small data about a quarter)"
        )
    kept = "the best and the last" if recipe.train.keep == "best_and_last" else "all"
    lost = lost_answers(recipe)
    return {
        "steps": f"{work.steps:,}: {work.total_completions:,} completions, at most "
        f"{work.total_tokens:,} tokens, {_count(work.total_optimizer_steps, 'optimizer step')}",
        "evaluations": f"{len(work.evaluations):,}, each {_count(work.eval_samples, 'sample')} of "
        f"{problems} of {task}: {_after(work.evaluations)}",
        "checkpoints": f"{len(work.checkpoints):,}: {_after(work.checkpoints)}; {kept} stay",
        **({"diagnoses": lost} if lost else {}),
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
    if memory.moved:
        table.add_row()
        table.add_row(
            Text("sent to other ranks in a step", "bold"), _gib(sum(memory.moved.values()))
        )
        for part, size in memory.moved.items():
            table.add_row(f"  {part}", _gib(size))
    note = (
        f"{_weights(memory)}, passes in {memory.arithmetic}. Phases take turns; "
        "the largest counts. All is counted at its longest: prompts of "
        f"{recipe.data.max_prompt_tokens:,} tokens (data.max_prompt_tokens), completions of "
        f"{recipe.sampling.max_tokens:,}; a longer prompt of an evaluation is not. On a CPU, "
        "Python and its libraries add about 0.6 GiB."
    )
    name = "Memory" + f" of each of {memory.ranks} ranks" * (memory.ranks > 1)
    pages: list[RenderableType] = [title(name), Text(note), Text(), table]
    if memory.fits:
        pages += [Text(), facts_table({fit.gpu: _trains(fit) for fit in memory.fits}), Text()]
    if memory.peak_phase in LESS:
        pages.append(Text(f"To need less, lower {LESS[memory.peak_phase]}."))
    return pages if memory.engine is None else [*pages, *_engine(memory.engine)]


def _weights(memory: Memory) -> str:
    """How many weights there are, and which train."""
    if memory.trained == memory.parameters:
        return f"{memory.parameters:,} float32 weights"
    return (
        f"{memory.parameters:,} weights that do not train, their linear layers in "
        f"{memory.resting}; {memory.trained:,} of the adapter, in float32"
    )


def _trains(fit: TrainingFit) -> str:
    """Whether training fits into a GPU, CUDA's own share included."""
    return f"{fit.total / 2**30:.1f} GiB: training takes {_of(fit.needed, fit.fits)}"


def _engine(engine: EngineMemory) -> list[RenderableType]:
    """What an engine with weights of its own takes, and what fits."""
    table = plain_table(f"in {engine.arithmetic}" + ", on each GPU" * engine.on_gpu, "GiB")
    table.add_row("weights", _gib(engine.weights))
    table.add_row("one pass, and drawing tokens", _gib(engine.one_pass))
    table.add_row(f"cache of one completion of {engine.longest:,} tokens, prompt included",
                  _gib(engine.completion))  # fmt: skip
    if engine.shares:
        table.add_row("beside it, what training holds while it samples", _gib(engine.beside))
    table.add_row()
    for part, size in engine.host.items():
        table.add_row(f"host: {part}", _gib(size))
    share = f"engine.gpu_memory_utilization={engine.utilization:g}"
    where = (
        f"It takes {share} of a GPU in turns with training: it rests while completions are scored "
        "and trained on, and training keeps its weights, gradients, moments and copies there while "
        "it samples."
        if engine.shares
        else f"It takes {share} of a GPU of its own."
        if engine.on_gpu
        else "It is on the CPU, beside the rest."
    )
    pages: list[RenderableType] = [
        title("The engine's memory"),
        Text(f"vLLM samples in a process of its own. {where} None of this is measured on a GPU."),
        Text(),
        table,
    ]
    if engine.fits:
        pages += [Text(), facts_table({fit.gpu: _fit(fit) for fit in engine.fits})]
    return pages


def _fit(fit: Fit) -> str:
    """Whether training and sampling fit into a GPU."""
    said = [f"training takes {_of(fit.training, fit.trains)}"] if fit.training else []
    said += [
        f"sampling {_of(fit.sampling, fit.samples)}, with {fit.completions:,} of the longest "
        "completions side by side",
        "no share fits" if fit.most is None else f"a share of up to {fit.most:g} fits",
    ]
    return f"{fit.total / 2**30:.1f} GiB: {'; '.join(said)}"


def _of(size: int, fits: bool) -> str:
    return f"{size / 2**30:.1f}" + ("" if fits else " (does not fit)")


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
