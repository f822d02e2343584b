"""The prompts of a run: read once, checked once, and then the same for every step and resume."""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from castctl.data.conversation import earlier_in
from castctl.data.held_out import held_out, problem_hashes
from castctl.data.mixture import load_mixture, require_enough, shares, sources_of
from castctl.data.order import further_prompts, mixed_further, mixed_prompts, step_prompts
from castctl.data.prompts import Prompts, drop, load_prompts, require_answers
from castctl.data.rendering import AT_ONCE
from castctl.data.teacher_template import TeacherTemplate, Told
from castctl.data.templates import PromptTemplate
from castctl.errors import UserError
from castctl.progress import Progress
from castctl.recipe.data import Rows
from castctl.recipe.recipe import DataSettings, Recipe
from castctl.recipe.split import HELD_OUT, holds_out, require_data
from castctl.recipe.verifier import VerifierSettings
from castctl.runs.run import Run
from castctl.shards.part import Metadata, write_table
from castctl.shards.stage import StepFolder, describe_difference
from castctl.verify.golds import gold_notes

log = logging.getLogger(__name__)

LONGEST = 2**20
"""A prompt surely longer is not counted out: no model reads as many tokens."""

NOT_ASKED = {"teacher_template", "date"}
"""The data settings that no problem of the student's is read or asked by."""

FEW = 16
"""Held-out problems that are too few for a narrow interval."""


def prepare_prompts(run: Run, tokenizer: Any, progress: Progress) -> pa.Table:
    """The run's prompts: read from its folder, or loaded, filtered and written there first, and
    those held out beside them.

    What is left out (too long, no answer, held out, nothing for the teacher to be told) stands in
    `dropped.parquet` with the reason.
    """
    folder, recipe = run.prompts_folder, run.recipe
    template, teacher = PromptTemplate(tokenizer, recipe.data), _privileged(recipe, tokenizer)
    settings: Metadata = {  # the date counts where a template writes it, in its version
        "settings": _dumped(recipe.data, set(type(recipe.data).model_fields) - NOT_ASKED),
        "templates": {"prompt": template.version},
    }
    if holds_out(recipe):
        settings["held_out"] = recipe.eval.held_out
    if teacher is not None:
        settings["context"] = teacher.context
    if not folder.has("prompts", 0):
        made = _divided(run, tokenizer, progress)
        write_table(run.path / "dropped.parquet", "dropped", made.dropped, {})
        folder.make("prompts", 0, {}, settings, lambda: made.table)
    prompts = _kept(folder, settings, run)
    if holds_out(recipe) and run.held_out_folder.has("prompts", 0):
        _refuse_both(run, prompts, run.held_out_folder.read("prompts", 0).table)
    return prompts


def prepare_held_out(run: Run, tokenizer: Any, progress: Progress) -> pa.Table:
    """The problems of the run's data that it is evaluated on and not trained on: read from its
    folder, or chosen and written there first.

    Raises `UserError` where the run trains on one of them.
    """
    if not run.held_out_folder.has("prompts", 0):
        _divided(run, tokenizer, progress)
    held = _kept(run.held_out_folder, _split_settings(run.recipe), run)
    if run.prompts_folder.has("prompts", 0):
        _refuse_both(run, run.prompts_folder.read("prompts", 0).table, held)
    return held


def _refuse_both(run: Run, trained: pa.Table, held: pa.Table) -> None:
    """`UserError` where a problem is trained on and held out."""
    if both := np.isin(problem_hashes(held), problem_hashes(trained)).sum():
        raise UserError(
            f"{run.path} trains on {both} of the {len(held)} problems that {HELD_OUT} evaluates "
            "it on; name another task, or begin another run"
        )


def _kept(folder: StepFolder, settings: Metadata, run: Run) -> pa.Table:
    """The prompts that are there; `UserError` where they were made with other `settings`."""
    there = folder.read("prompts", 0)
    made = there.metadata or settings
    if different := [key for key in settings if made.get(key) != settings[key]]:
        raise UserError(
            f"{run.path} has its prompts already, with "
            f"{describe_difference(made, settings, different)}; start another run"
        )
    return there.table


def _split_settings(recipe: Recipe) -> Metadata:
    return {
        "settings": _dumped(recipe.data, {*Rows.model_fields, "limit", "mix"}),
        "held_out": recipe.eval.held_out,
    }


def _dumped(data: DataSettings, which: set[str]) -> Metadata:
    """Data settings for the record; a mixture where there is one, as older runs have none."""
    return data.model_dump(mode="json", include=which if data.mix else which - {"mix"})


def _divided(run: Run, tokenizer: Any, progress: Progress) -> Prompts:
    """The prompts to train on; those held out are written down, and told of."""
    recipe = run.recipe
    prompts, held = divided_prompts(recipe, tokenizer, progress)
    if held is not None and run.prompts_folder.has("prompts", 0):
        _refuse_both(run, run.prompts_folder.read("prompts", 0).table, held)
    run.record(
        data={"path": recipe.data.path, "revision": prompts.revision, "notes": prompts.notes}
    )
    if held is not None and run.held_out_folder.make(
        "prompts", 0, {}, _split_settings(recipe), lambda: held
    ):
        log.info(
            "%s: %d problems are held out for evaluation and not trained on, chosen by hash "
            "(eval.held_out=%d; of small data about a quarter), %d are left; %s holds them",
            recipe.data.path, len(held), recipe.eval.held_out, len(prompts.table),
            run.held_out_folder.path,
        )  # fmt: skip
        if len(held) < FEW:
            log.warning(
                "an evaluation on so few problems (%d) tells little; name more with eval.task=FILE",
                len(held),
            )  # fmt: skip
    return prompts


def divided_prompts(
    recipe: Recipe, tokenizer: Any, progress: Progress
) -> tuple[Prompts, pa.Table | None]:
    """The prompts that a recipe trains on, loaded and filtered, and those of the same data that it
    holds out; None where it holds none out.

    Raises `UserError` where there is no data, or none is left to train on.
    """
    require_data(recipe)
    template, teacher = PromptTemplate(tokenizer, recipe.data), _privileged(recipe, tokenizer)
    longest = recipe.data.max_prompt_tokens
    prompts = usable_prompts(recipe.data, recipe.verifier, progress, (template, longest))
    held = None
    if holds_out(recipe):
        mask = held_out(prompts.table, recipe.eval.held_out)
        if mask.all():
            raise UserError(
                f"{recipe.data.path} has {len(mask)} problems, too few to hold some out for "
                "evaluation; add some, or name others to evaluate on with eval.task=FILE"
            )
        held = prompts.table.filter(mask)
        prompts = drop(prompts, mask.tolist(), "held out")
    if teacher is not None:
        prompts = _require_what_is_told(prompts, teacher)
    reasons = Counter(prompts.dropped["reason"].to_pylist())
    del reasons["held out"]  # of which more is said
    if reasons:
        counts = ", ".join(f"{count} {reason}" for reason, count in reasons.items())
        log.warning("%s: left out %s", recipe.data.path, counts)
    return prompts, held


def _privileged(recipe: Recipe, tokenizer: Any) -> TeacherTemplate | None:
    """The prompt of a teacher that is told what stands in the data; None without one."""
    method = recipe.method
    return TeacherTemplate(tokenizer, recipe.data, method.teacher) if method.told_by_data else None


def usable_prompts(
    data: DataSettings,
    verifier: VerifierSettings,
    progress: Progress,
    bound: tuple[PromptTemplate, int] | None = None,
) -> Prompts:
    """Load prompts and drop those without an answer and, where there is a `bound`, those that a
    template renders to more tokens than that.

    A verifier of the user's may do without answers. Raises `UserError` when none is left.
    """
    prompts = load_mixture(data) if data.mix else load_prompts(data)
    if verifier.function is None:
        prompts = require_answers(prompts)
    if bound is not None:
        template, longest = bound
        lengths = prompt_lengths(prompts.table, template, progress, longest)
        too_long = lengths > longest
        if too_long.all():
            raise UserError(
                f"every prompt is longer than data.max_prompt_tokens={longest} "
                f"(the shortest has {lengths.min()} or more); raise it"
            )
        prompts = drop(prompts, too_long.tolist(), "too long")
    doubts = gold_notes(prompts.table["answer"].to_pylist(), verifier, progress)
    prompts = replace(prompts, notes=[*prompts.notes, *doubts])
    for note in prompts.notes:
        log.warning("%s: %s", data.path, note)
    return prompts


def prompt_lengths(
    prompts: pa.Table, template: PromptTemplate, progress: Progress, most: int = LONGEST
) -> NDArray[np.int64]:
    """Tokens of each prompt, `most + 1` where it surely has more than `most`; `UserError` where one
    has none."""
    columns = [prompts[name].to_pylist() for name in ("problem", "earlier")]
    asked = [(problem, earlier_in(cell)) for problem, cell in zip(*columns, strict=True)]
    lengths = np.zeros(len(asked), np.int64)
    with progress.task("prompts", len(asked), "prompts") as advance:
        for start in range(0, len(asked), AT_ONCE):
            some = asked[start : start + AT_ONCE]
            lengths[start : start + AT_ONCE] = template.lengths(some, most)
            advance(len(some))
    if not lengths.all():
        raise UserError("a prompt renders to no token at all; look at data.prompt_template")
    return lengths


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
    asked = [Told(problem, answer, solution, earlier_in(cell))
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
    seed, data = run.recipe.seed, run.recipe.data
    if data.mix:
        require_enough(prompts, data, min(per_step, len(prompts)))
        source_P = sources_of(prompts, data)
        taken = mixed_prompts(source_P, shares(data), min(per_step, len(prompts)), step, seed)
    else:
        taken = step_prompts(len(prompts), per_step, step, seed)
    return prompts.take(pa.array(taken))


def prompts_of_round(
    prompts: pa.Table, taken: pa.Table, run: Run, step: int, round: int
) -> pa.Table:
    """As many prompts again for a further round of `step`, none of those `taken`; fewer, or none,
    where the data has no more."""
    places = pc.index_in(taken["prompt_id"], prompts["prompt_id"]).to_numpy()
    wanted = run.recipe.train.prompts_per_step
    seed, data = run.recipe.seed, run.recipe.data
    if data.mix:
        source_P = sources_of(prompts, data)
        more = mixed_further(places, source_P, shares(data), wanted, step, round, seed)
    else:
        more = further_prompts(places, len(prompts), wanted, step, round, seed)
    return prompts.take(pa.array(more))
