"""castctl: run, take apart and compare RLVR methods for language models.

What the command line does, as functions. Importing this module imports little; each function
imports what it needs.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from castctl.errors import UserError
from castctl.launcher import before_torch
from castctl.versions import VERSION

if TYPE_CHECKING:
    from castctl.diagnosis.diagnosis import Diagnosis
    from castctl.hub.upload import Pushed
    from castctl.progress import Progress
    from castctl.recipe.recipe import Recipe
    from castctl.recipe.verifier import VerifierSettings
    from castctl.runs.run import Run
    from castctl.shards.stage import StepFolder
    from castctl.stages.policies import PolicySource
    from castctl.verify.judge import Judgement

__version__ = VERSION

__all__ = [
    "UserError", "create_run", "diagnose", "evaluate", "export", "grade", "load_recipe", "open_run",
    "push", "rollout", "score", "shape", "train", "update",
]  # fmt: skip


def load_recipe(
    recipe: str | Path | None = None,
    *,
    tiny: bool = False,
    trust_remote_code: bool = False,
    trust_verifier: bool = False,
    **overrides: Any,
) -> Recipe:
    """A recipe by its name, such as `cast-qwen3-1.7b:mixed-only`, or its file; the embedded
    default's where neither it nor another model is named.

    With `tiny`, its method on the embedded default, as `--tiny` takes it there.
    `overrides` are settings by their dotted keys, `**{"optimizer.lr": 1e-5}`, or whole sections,
    `optimizer={"lr": 1e-5}`; `method` may be a method's name alone. Code that a file names, its
    model's (`trust_remote_code`) or a verifier (`trust_verifier`), runs only where this call says
    so. Raises `UserError` naming the key that does not fit and what to write.
    """
    from castctl.recipe.reader import chosen_recipe, nested, read_recipe
    from castctl.recipe.trust import REMOTE_CODE, VERIFIERS

    if trust_remote_code:
        overrides = {**overrides, REMOTE_CODE: True}
    sections, trusted = nested(overrides), VERIFIERS if trust_verifier else ()
    return read_recipe(chosen_recipe(recipe, sections), tiny=tiny, trusted=trusted, **sections)[0]


def create_run(recipe: Recipe | str | Path | None = None, run: str | Path | None = None) -> Run:
    """A new run folder, where `rollout` or `evaluate` begins: of that name or path, or named after
    the method and the time. Raises `UserError` where it is there already."""
    from castctl.runs.run import create_run

    recipe = _recipe(recipe)
    return create_run(recipe, None if run is None else str(run), recipe.method.name)


def open_run(
    run: str | Path, *, trust_remote_code: bool = False, trust_verifier: bool = False
) -> Run:
    """The run of that name or path: its `steps`, `metrics()`, and `step(12).table("advantages")`
    as Arrow tables. Raises `UserError` where there is none.

    Functions that are given it run the code that its recipe names only where it is trusted here.
    """
    from castctl.recipe.trust import VERIFIERS
    from castctl.runs.run import open_run

    model = {"trust_remote_code": True} if trust_remote_code else {}
    return open_run(str(run)).changed(trusted=VERIFIERS if trust_verifier else (), model=model)


def train(
    recipe: Recipe | str | Path | None = None,
    run: Run | str | Path | None = None,
    *,
    resume: bool = False,
    steps: int | None = None,
    on_step: Callable[[dict[str, Any]], None] | None = None,
    quiet: bool = False,
) -> Run:
    """Train a new run to its last step, as `castctl train` does; with `resume`, go on with `run`,
    until `steps` where that is more than it was begun for.

    `on_step` is told each step's metrics; raising in it stops the run after that step. Raises
    `UserError` for a recipe that cannot train, and for numbers that go wrong.
    """
    from castctl.runs.run import discarded_if_empty

    if resume and (run is None or recipe is not None):
        raise UserError("resume=True goes on with a run by its own recipe; name run alone")
    if steps is not None and not resume:
        raise UserError("steps= makes a run longer, with resume=True; a new one has train.steps")
    target = _run(run) if resume and run is not None else _new_run(recipe, run)
    if steps is not None:
        from castctl.runs.extend import extend

        target = extend(target, steps)
    for warning in target.recipe.check_training():
        logging.getLogger("castctl").warning("%s", warning)
    before_torch()
    from castctl.stages.train.loop import train

    with discarded_if_empty(target):
        train(target, _progress(quiet), on_step or (lambda row: None))
    return target


def rollout(
    run: Run | str | Path, step: int = 0, *, overwrite: bool = False, quiet: bool = False,
    **overrides: Any,
) -> StepFolder:  # fmt: skip
    """Sample completions of a step's prompts into its `rollouts/`; the step's folder.

    As for all stages: `overrides` change the run's settings for this call, as for `load_recipe`;
    parts that are there and made alike are kept, and those made otherwise refused with `UserError`
    unless `overwrite` is set.
    """
    target = _run(run, overrides)
    before_torch()
    from castctl.stages.one_step import rollout_stage
    from castctl.stages.policies import policy_at

    source = policy_at(target, step)
    rollout_stage(target, step, source, progress=_progress(quiet), overwrite=overwrite)
    return target.step(step)


def score(
    run: Run | str | Path, step: int = 0, *, signals: Iterable[str] | None = None,
    model: str | Path | None = None, overwrite: bool = False, quiet: bool = False, **overrides: Any,
) -> StepFolder:  # fmt: skip
    """Verify a step's answers into `rewards/` and score its tokens into `signals/`; its folder.

    `signals` are the method's own unless named; `model` names other weights than the step's.
    """
    target = _run(run, overrides, model)
    before_torch()
    from castctl.stages.one_step import score_stage

    score_stage(
        target, step, _source(target, step, model), signals,
        progress=_progress(quiet), overwrite=overwrite,
    )  # fmt: skip
    return target.step(step)


def shape(
    run: Run | str | Path, step: int = 0, *, overwrite: bool = False, quiet: bool = False,
    **overrides: Any,
) -> StepFolder:  # fmt: skip
    """Turn a step's rewards and signals into `advantages/`, by `method=...` or the run's own; its
    folder."""
    from castctl.stages.shape import shape_step

    target = _run(run, overrides)
    recipe, folder = target.recipe, target.step(step)
    with target.beside_others():
        shape_step(
            folder, recipe.method, longest=recipe.sampling.max_tokens,
            seed=recipe.seed, progress=_progress(quiet), overwrite=overwrite,
        )  # fmt: skip
    return folder


def update(
    run: Run | str | Path,
    step: int = 0,
    *,
    model: str | Path | None = None,
    overwrite: bool = False,
    **overrides: Any,
) -> Path:
    """One update from a shaped step, as `castctl train --from` does; the next step's checkpoint."""
    target = _run(run, overrides, model)
    before_torch()
    from castctl.stages.one_step import train_stage

    return train_stage(target, step, _source(target, step, model), overwrite)[0]


def export(
    run: Run | str | Path, folder: str | Path, step: int | None = None, *,
    format: str = "model", merged: bool = False,
) -> int | None:  # fmt: skip
    """Write a model, or results in another `format`, as `castctl export --as`; the step named."""
    before_torch()
    from castctl.writers.export import export_run

    return export_run(_run(run), Path(folder), format, step, merged=merged)


def push(
    run: Run | str | Path, repository: str, *, checkpoint: int | str | None = None,
    rollouts: bool = False, merged: bool = False, base_model: str | None = None,
    private: bool = False, overwrite: bool = False, quiet: bool = False,
) -> Pushed:  # fmt: skip
    """Push a run's model, its adapter or its `rollouts` to the hub, with a card, as `castctl push`:
    the repository's `.url`, and the `.commit`'s.

    `checkpoint` is `best`, the default, `last` or a step. Raises `UserError` where the hub refuses.
    """
    before_torch()
    from castctl.hub.push import push_run

    named = None if checkpoint is None else str(checkpoint)
    return push_run(
        _run(run), repository, checkpoint=named, rollouts=rollouts, merged=merged,
        base_model=base_model, private=private, overwrite=overwrite, quiet=quiet,
    )  # fmt: skip


def evaluate(
    run: Run | str | Path,
    *tasks: str,
    step: int | None = None,
    data: str | Path | None = None,
    overwrite: bool = False,
    quiet: bool = False,
    **overrides: Any,
) -> dict[str, dict[str, Any]]:
    """Evaluate a run's last checkpoint, or that of `step`, on benchmarks, files or tasks in YAML,
    the recipe's unless named; what `results.json` holds, by task: `held-out` are problems of its
    data that it does not train on. `data`: a file of one task's, or a folder of such by its name.
    """
    target = _run(run, overrides)
    before_torch()
    from castctl.recipe.reader import nested
    from castctl.recipe.split import task_of
    from castctl.stages.evaluate.stage import evaluate_tasks, sources

    at = max(target.checkpoints(), default=0) if step is None else step
    asked = tasks or [task_of(target.recipe)]
    places = sources(asked, None if data is None else str(data), nested(overrides))
    done = evaluate_tasks(target, at, places, progress=_progress(quiet), overwrite=overwrite)
    return {task: dict(each.result or {}) for task, each in zip(asked, done, strict=True)}


def diagnose(
    name: str,
    run: Run | str | Path | None = None,
    *,
    steps: Iterable[int] = (),
    model: str | Path | None = None,
    context: str | None = None,
    overwrite: bool = False,
    quiet: bool = False,
    **overrides: Any,
) -> Diagnosis:
    """What a run's numbers mean, as `castctl diagnose NAME` finds it: every number in `.numbers`,
    written to `diagnose/NAME/NAME.json` too.

    `run` is a run, a path such as `RUN/step-00012`, or a folder of steps made elsewhere; the newest
    run unless named. All steps that serve are read unless `steps` names some. `model` names the
    weights that score policy and teacher anew; `context="other"` tells the teacher of `opsd-gaps`
    another problem's answer. A `Run` is taken with its recipe as it is.
    """
    from castctl.diagnosis.catalog import find_diagnostic, require_context
    from castctl.inspection.target import find_target

    diagnostic = find_diagnostic(name)
    require_context(name, context)
    target = find_target(None if run is None else str(getattr(run, "path", run)))
    before_torch()
    from castctl.diagnosis.runner import diagnose
    from castctl.diagnosis.subject import Subject
    from castctl.recipe.reader import nested
    from castctl.runs.run import Run
    from castctl.stages.policies import chosen_policy

    asked, owner = _with_model(overrides, model), run if isinstance(run, Run) else target.run
    if owner is not None:
        owner = _run(owner, asked)
    elif asked:
        owner = Run(target.path, load_recipe(**asked))
    weights = chosen_policy(owner) if owner is not None and model is not None else None
    others = context is not None
    retaught = others or "teacher" in nested({"method": {}, **overrides})["method"]
    subject = Subject(target.path, target.steps, owner, weights, retaught, others)
    chosen, progress = list(steps), _progress(quiet)
    return diagnose(diagnostic, subject, asked=chosen, progress=progress, overwrite=overwrite)[0]


def grade(
    problem: str, completion: str, answer: str, *, verifier: VerifierSettings | None = None
) -> Judgement:
    """What a completion is worth, by the grader of training and evaluation: `.verdict`, `.reward`
    and the `.extracted` answer.

    Runs in worker processes that can be killed; they start with the first call, which takes a
    second, and end with this process. One thread at a time.
    """
    from castctl.recipe.verifier import VerifierSettings
    from castctl.verify.judge import Row, judge, shared_pool

    settings = verifier or VerifierSettings(workers=1)
    return judge(shared_pool(settings), settings, [Row(problem, completion, answer, "stop")])[0]


def _recipe(recipe: Recipe | str | Path | None) -> Recipe:
    return load_recipe(recipe) if recipe is None or isinstance(recipe, str | Path) else recipe


def _new_run(recipe: Recipe | str | Path | None, run: Run | str | Path | None) -> Run:
    if run is not None and not isinstance(run, str | Path):
        raise UserError(f"{run.path} is a run already; go on with resume=True, or name a new one")
    return create_run(recipe, run)


def _run(
    run: Run | str | Path, overrides: dict[str, Any] | None = None, model: str | Path | None = None
) -> Run:
    """A run, its recipe changed for one call."""
    from castctl.recipe.reader import nested

    opened = open_run(run) if isinstance(run, str | Path) else run
    overrides = _with_model(overrides or {}, model)
    return opened.changed(**nested(overrides)) if overrides else opened


def _with_model(overrides: dict[str, Any], model: str | Path | None) -> dict[str, Any]:
    return overrides if model is None else {**overrides, "model.path": str(model)}


def _source(run: Run, step: int, model: str | Path | None) -> PolicySource:
    from castctl.stages.policies import named_policy, policy_at

    return policy_at(run, step) if model is None else named_policy(run.recipe)


def _progress(quiet: bool) -> Progress:
    from castctl.progress import Silent
    from castctl.report.console import progress

    return Silent() if quiet else progress()
