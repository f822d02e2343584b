"""`castctl push`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from castctl.cli import options as opt
from castctl.errors import UserError

if TYPE_CHECKING:
    from castctl.runs.run import Run


def register(app: typer.Typer) -> None:
    app.command("push")(push)


def push(
    run: Annotated[str, typer.Argument(metavar="RUN", help="Run, by name or path.")],
    repository: Annotated[
        str, typer.Argument(metavar="OWNER/NAME", help="Repository on the Hugging Face hub.")
    ],
    checkpoint: Annotated[
        str | None,
        typer.Option("--checkpoint", help="best (the default), last, or the number of a step."),
    ] = None,
    merged: Annotated[
        bool, typer.Option("--merged", help="A whole model, the adapter merged into it.")
    ] = False,
    rollouts: Annotated[
        bool, typer.Option("--rollouts", help="The judged rollouts as a data set, no model.")
    ] = False,
    base_model: Annotated[
        str | None,
        typer.Option(
            "--base-model", metavar="OWNER/NAME",
            help="Hub id of the base model, where the run began with a folder.",
        ),
    ] = None,
    private: Annotated[
        bool, typer.Option("--private", help="Make the repository private, where it is new.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Push over what castctl did not push.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Write the folder and push nothing.")
    ] = False,
    folder: Annotated[
        Path | None,
        typer.Option("--folder", help="Where --dry-run writes; beside the run by default."),
    ] = None,
    trust_remote_code: opt.TrustRemoteCodeOption = False,
    quiet: opt.QuietOption = False,
    debug: opt.DebugOption = False,
) -> None:  # fmt: skip
    """Push a run's model, its adapter or its rollouts to the Hugging Face hub, with a card.

    The token is that of `hf auth login`, or in HF_TOKEN. Each push is a commit.
    """
    from castctl.cli.context import Asked
    from castctl.report.console import live_console, say, tell
    from castctl.runs.run import open_run

    _refuse(rollouts, checkpoint, merged, base_model, dry_run, folder)
    target = Asked(trust_remote_code=trust_remote_code).changed(open_run(run))

    from castctl.hub.upload import find_repository, require_name, upload
    from castctl.stages.export import new_folder, passing_folder

    require_name(repository)
    if base_model is not None:
        require_name(base_model)
    if dry_run:
        kind = "rollouts" if rollouts else "model"
        place = folder or target.path.with_name(f"{target.path.name}-{kind}")
        with new_folder(place) as draft:
            what = _fill(target, repository, draft, checkpoint, rollouts, merged, base_model)
        say(f"{what}, as it would be pushed to {repository}:")
        tell(str(place))
        return
    to = find_repository(
        repository, "dataset" if rollouts else "model", private=private, overwrite=overwrite
    )

    with passing_folder(target.path) as draft:
        what = _fill(target, repository, draft, checkpoint, rollouts, merged, base_model)
        still = quiet or live_console() is None
        pushed = upload(to, draft, what, private=private, quiet=still)
    say(f"{what}: {pushed.commit}")
    tell(pushed.url)


def _fill(
    run: "Run", repository: str, folder: Path, checkpoint: str | None, rollouts: bool, merged: bool,
    base: str | None,
) -> str:  # fmt: skip
    """Fill the folder; what is in it, in words."""
    from castctl.hub.folder import fill_model, fill_rollouts
    from castctl.stages.train.outcome import checkpoint_step

    if rollouts:
        fill_rollouts(run, repository, folder)
        return f"rollouts of {run.name}"
    step = checkpoint_step(run, checkpoint or "best")
    if step == 0:
        raise UserError(
            f"{run.path} was best before training, so it has no model to push; name one with "
            f"--checkpoint ({', '.join(map(str, run.checkpoints())) or 'it has none yet'})"
        )
    fill_model(run, step, repository, folder, merged=merged, base=base)
    return f"step {step} of {run.name}"


def _refuse(
    rollouts: bool, checkpoint: str | None, merged: bool, base: str | None, dry_run: bool,
    folder: Path | None,
) -> None:  # fmt: skip
    """Options that say nothing of what is asked for."""
    given = {"--checkpoint": checkpoint, "--merged": merged, "--base-model": base}
    beside = [name for name, value in given.items() if value]
    if rollouts and beside:
        raise UserError(f"--rollouts pushes no model; leave {', '.join(beside)} out")
    if folder is not None and not dry_run:
        raise UserError("--folder is where --dry-run writes; add --dry-run, or leave it out")
