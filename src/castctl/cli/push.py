"""`castctl push`."""

from pathlib import Path
from typing import Annotated

import typer

from castctl.cli import options as opt
from castctl.errors import UserError


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
    from castctl.hub.push import fill, push_run, refuse_beside_rollouts
    from castctl.report.console import say, tell
    from castctl.runs.run import open_run
    from castctl.stages.export import new_folder

    if folder is not None and not dry_run:
        raise UserError("--folder is where --dry-run writes; add --dry-run, or leave it out")
    target = Asked(trust_remote_code=trust_remote_code).changed(open_run(run))
    if dry_run:
        refuse_beside_rollouts(checkpoint, merged, rollouts, base_model)
        kind = "rollouts" if rollouts else "model"
        place = folder or target.path.with_name(f"{target.path.name}-{kind}")
        with new_folder(place) as draft:
            what = fill(target, repository, draft, checkpoint, merged, rollouts, base_model)
        say(f"{what}, as it would be pushed to {repository}:")
        tell(str(place))
        return
    pushed = push_run(
        target, repository, checkpoint=checkpoint, merged=merged, rollouts=rollouts,
        base_model=base_model, private=private, overwrite=overwrite, quiet=quiet,
    )  # fmt: skip
    say(f"{pushed.what}: {pushed.commit}")
    tell(pushed.url)
