"""The prompts of a run: read once, checked once, and then the same for every step and resume."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from castctl.data.conversation import earlier_in
from castctl.data.order import further_prompts, step_prompts
from castctl.data.prompts import Prompts, drop, load_prompts, require_answers
from castctl.data.rendering import AT_ONCE
from castctl.data.teacher_template import TeacherTemplate
from castctl.data.templates import PromptTemplate
from castctl.errors import UserError
from castctl.progress import Progress
from castctl.recipe.recipe import DataSettings, Recipe, VerifierSettings
from castctl.runs.run import Run
from castctl.shards.part import Metadata, atomic_file
from castctl.shards.stage import describe_difference
from castctl.verify.golds import gold_notes

log = logging.getLogger(__name__)


def prepare_prompts(run: Run, tokenizer: Any, progress: Progress) -> pa.Table:
    """The run's prompts: read from its folder, or loaded, filtered and written there first.

    What is left out (too long, no answer, nothing for the teacher to be told) stands in
    `dropped.parquet` with the reason.
    """
    folder, recipe = run.prompts_folder, run.recipe
    template, teacher = PromptTemplate(tokenizer, recipe.data), _privileged(recipe, tokenizer)
    settings: Metadata = {  # the date counts where a template writes it, in its version
        "settings": recipe.data.model_dump(mode="json", exclude={"teacher_template", "date"}),
        "templates": {"prompt": template.version},
    }
    if teacher is not None:
        settings["context"] = teacher.context
    if folder.has("prompts", 0):
        there = folder.read("prompts", 0)
        made = there.metadata or settings
        if different := [key for key in settings if made.get(key) != settings[key]]:
            raise UserError(
                f"{run.path} has its prompts already, with "
                f"{describe_difference(made, settings, different)}; start another run"
            )
        return there.table
    prompts = training_prompts(recipe, tokenizer, progress)
    with atomic_file(run.path / "dropped.parquet") as stream:
        pq.write_table(prompts.dropped, stream)
    run.record(
        data={"path": recipe.data.path, "revision": prompts.revision, "notes": prompts.notes}
    )
    folder.make("prompts", 0, {}, settings, lambda: prompts.table)
    return folder.read("prompts", 0).table


def training_prompts(recipe: Recipe, tokenizer: Any, progress: Progress) -> Prompts:
    """The prompts that a recipe trains on, loaded and filtered."""
    template, teacher = PromptTemplate(tokenizer, recipe.data), _privileged(recipe, tokenizer)
    return usable_prompts(recipe.data, recipe.verifier, template, progress, teacher)


def _privileged(recipe: Recipe, tokenizer: Any) -> TeacherTemplate | None:
    """The prompt of a teacher that is told more than the student; None without one."""
    method = recipe.method
    return TeacherTemplate(tokenizer, recipe.data, method.teacher) if method.privileged else None


def usable_prompts(
    data: DataSettings,
    verifier: VerifierSettings,
    template: PromptTemplate,
    progress: Progress,
    teacher: TeacherTemplate | None = None,
) -> Prompts:
    """Load prompts and drop, with a count, those without an answer, longer than allowed for the
    student or a privileged `teacher`, or without what that one is told.

    A verifier of the user's may do without answers. Raises `UserError` when none is left.
    """
    prompts = load_prompts(data)
    if verifier.function is None:
        prompts = require_answers(prompts)
    if teacher is not None:
        prompts = _require_what_is_told(prompts, teacher)
    columns = [prompts.table[name].to_pylist() for name in ("problem", "earlier")]
    asked = [(problem, earlier_in(cell)) for problem, cell in zip(*columns, strict=True)]
    lengths = np.zeros(len(asked), np.int64)
    with progress.task("prompts", len(asked), "prompts") as advance:
        for start in range(0, len(asked), AT_ONCE):
            some = asked[start : start + AT_ONCE]
            lengths[start : start + AT_ONCE] = template.lengths(some, data.max_prompt_tokens)
            advance(len(some))
    if not lengths.all():
        raise UserError("a prompt renders to no token at all; look at data.prompt_template")
    too_long = lengths > data.max_prompt_tokens
    if too_long.all():
        raise UserError(
            f"every prompt is longer than data.max_prompt_tokens={data.max_prompt_tokens} "
            f"(the shortest has {lengths.min()} or more); raise it"
        )
    prompts = drop(prompts, too_long.tolist(), "too long")
    doubts = gold_notes(prompts.table["answer"].to_pylist(), verifier, progress)
    prompts = replace(prompts, notes=[*prompts.notes, *doubts])
    for note in prompts.notes:
        log.warning("%s: %s", data.path, note)
    if prompts.dropped.num_rows:
        reasons = prompts.dropped["reason"].value_counts().to_pylist()
        counts = ", ".join(f"{reason['counts']} {reason['values']}" for reason in reasons)
        log.warning("%s: left out %s", data.path, counts)
    return prompts


def _require_what_is_told(prompts: Prompts, teacher: TeacherTemplate) -> Prompts:
    told = zip(*(prompts.table[name].to_pylist() for name in ("answer", "solution")), strict=True)
    lacking = [teacher.lacks(*each) for each in told]
    if lacking and all(lacking):
        raise UserError(
            f"a teacher with context {teacher.context} needs the {lacking[0]}, and none of the "
            f"{len(lacking)} problems has one; name its column (data.answer_column, "
            "data.solution_column), or take another method.teacher.context"
        )
    prompts = drop(prompts, [each is not None for each in lacking], "nothing to tell the teacher")
    names = ("problem", "answer", "solution", "earlier")
    rows = zip(*(prompts.table[name].to_pylist() for name in names), strict=True)
    asked = [(problem, answer, solution, earlier_in(cell))
             for problem, answer, solution, cell in rows]  # fmt: skip
    lengths = np.array(teacher.lengths(asked), np.int64)
    too_long = lengths > teacher.max_prompt_tokens
    if too_long.all():
        raise UserError(
            "every prompt of the teacher is longer than method.teacher.max_prompt_tokens="
            f"{teacher.max_prompt_tokens} (the shortest has {lengths.min()} or more); raise it"
        )
    return drop(prompts, too_long.tolist(), "teacher's prompt too long")


def prompts_of_step(prompts: pa.Table, run: Run, step: int) -> pa.Table:
    """The prompts that `step` takes; all of them where the data has fewer than a step wants."""
    per_step = run.recipe.train.prompts_per_step
    if len(prompts) < per_step:
        log.warning(
            "the data has %d prompts, so a step takes %d instead of %d",
            len(prompts),
            len(prompts),
            per_step,
        )
    return prompts.take(pa.array(step_prompts(len(prompts), per_step, step, run.recipe.seed)))


def prompts_of_round(
    prompts: pa.Table, taken: pa.Table, run: Run, step: int, round: int
) -> pa.Table:
    """As many prompts again for a further round of `step`, none of those `taken`; fewer, or none,
    where the data has no more."""
    places = pc.index_in(taken["prompt_id"], prompts["prompt_id"]).to_numpy()
    wanted = run.recipe.train.prompts_per_step
    more = further_prompts(places, len(prompts), wanted, step, round, run.recipe.seed)
    return prompts.take(pa.array(more))
