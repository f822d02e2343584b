"""A run's model, its adapter or its rollouts, from the run to the hub."""

from __future__ import annotations

from pathlib import Path

from castctl.errors import UserError
from castctl.hub.folder import fill_model, fill_rollouts
from castctl.hub.upload import Pushed, find_repository, require_name, upload
from castctl.report.console import live_console
from castctl.runs.run import Run
from castctl.stages.export import passing_folder
from castctl.stages.train.outcome import checkpoint_step


def push_run(
    run: Run,
    repository: str,
    *,
    checkpoint: str | None = None,
    merged: bool = False,
    rollouts: bool = False,
    base_model: str | None = None,
    private: bool = False,
    overwrite: bool = False,
    quiet: bool = False,
) -> Pushed:
    """Push what `fill` writes, in one commit; `private` makes a new repository so.

    Raises `UserError` as `fill` and `find_repository` do, and where the hub refuses.
    """
    refuse_beside_rollouts(checkpoint, merged, rollouts, base_model)
    to = find_repository(
        repository, "dataset" if rollouts else "model", private=private, overwrite=overwrite
    )
    with passing_folder(run.path) as draft:
        what = fill(run, repository, draft, checkpoint, merged, rollouts, base_model)
        return upload(to, draft, what, private=private, quiet=quiet or live_console() is None)


def fill(
    run: Run,
    repository: str,
    folder: Path,
    checkpoint: str | None,
    merged: bool,
    rollouts: bool,
    base_model: str | None,
) -> str:
    """Write what `repository` is to hold into an empty folder; what it is, in words.

    It is the model of a `checkpoint` (`best`, unless another is named, `last` or a step), or its
    adapter where it is not `merged`; or the judged `rollouts`. `base_model` is the hub id of the
    base model. Raises `UserError` for a name that is none, and where there is nothing to push.
    """
    for name in filter(None, (repository, base_model)):
        require_name(name)
    if rollouts:
        fill_rollouts(run, repository, folder)
        return f"rollouts of {run.name}"
    step = checkpoint_step(run, checkpoint or "best")
    if step == 0:
        steps = ", ".join(map(str, run.checkpoints())) or "it has none yet"
        raise UserError(
            f"{run.path} was best before training, so it has no model to push; name another "
            f"checkpoint ({steps})"
        )
    fill_model(run, step, repository, folder, merged=merged, base=base_model)
    return f"step {step} of {run.name}"


def refuse_beside_rollouts(
    checkpoint: str | None, merged: bool, rollouts: bool, base_model: str | None
) -> None:
    """Raise `UserError` where `rollouts` are asked for together with what is of a model."""
    given = {"checkpoint": checkpoint, "merged": merged, "base_model": base_model}
    if rollouts and (beside := [name for name, value in given.items() if value]):
        raise UserError(f"rollouts are no model; leave {', '.join(beside)} out")
