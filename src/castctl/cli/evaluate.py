"""`castctl eval`."""

from typing import TYPE_CHECKING, Annotated

import typer

from castctl.cli import options as opt
from castctl.errors import UserError
from castctl.report.console import progress, say

if TYPE_CHECKING:
    from castctl.cli.context import Asked
    from castctl.runs import Run


def register(app: typer.Typer) -> None:
    app.command("eval")(evaluate)


def evaluate(
    task: Annotated[
        str | None,
        typer.Argument(
            help="embedded, aime24, aime25, amc23, math500, gsm8k, a file or a hub id; "
            "the recipe's task by default."
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            "--data", help="File with the problems; data.problem_column names its column."
        ),
    ] = None,
    run: Annotated[
        str | None, typer.Option("--run", help="Run to evaluate; else the newest.")
    ] = None,
    checkpoint: Annotated[
        str, typer.Option("--checkpoint", help="last, best, or the number of a step.")
    ] = "last",
    model: opt.ModelOption = None,
    recipe: opt.RecipeOption = None,
    k: opt.EvalSamplesOption = None,
    temperature: opt.TemperatureOption = None,
    max_tokens: opt.MaxTokensOption = None,
    limit: opt.LimitOption = None,
    seed: opt.SeedOption = None,
    set_: opt.SetOption = None,
    device: opt.DeviceOption = None,
    dtype: opt.DtypeOption = None,
    shard: opt.ShardOption = None,
    overwrite: opt.OverwriteOption = False,
    quiet: opt.QuietOption = False,
    debug: opt.DebugOption = False,
) -> None:
    """Evaluate on held-out problems: avg@k, pass@k and maj@k with intervals over problems.

    Takes a run's last checkpoint, or the model named; the grader is that of training.
    """
    from castctl.cli.context import (
        Asked,
        announce,
        next_command,
        refuse_scattered_shards,
        shard_of,
    )  # fmt: skip
    from castctl.runs import discarded_if_empty

    share = shard_of(shard)
    asked = Asked(
        recipe, set_, seed,
        model={"path": model, "device": device, "dtype": dtype},
        eval={
            "task": task or data, "k": k, "temperature": temperature,
            "max_tokens": max_tokens, "limit": limit,
        },
    )  # fmt: skip
    fresh = model is not None or recipe is not None
    if fresh:
        refuse_scattered_shards(share, run)
    target = _target(run, asked, fresh)

    from castctl.evaluate.stage import evaluate_stage
    from castctl.report.tables import eval_table, show

    with discarded_if_empty(target, share):
        step = _step(target, checkpoint)
        announce(target, step)
        folder, result = evaluate_stage(
            target, step, data, progress=progress(), shard=share, overwrite=overwrite
        )
    if result is None:
        say(f"shard {share.index}/{share.count} is done; run it without --shard when all are")
        return
    label = f"{target.name} step {step}" if target.checkpoints() else target.recipe.model.path
    show(eval_table([(label, result)]))
    say(f"Results: {folder.path / 'results.json'}")
    other = "grpo" if target.recipe.method.name == "cast" else "cast"
    next_command(f"castctl train --method {other}")


def _target(name: str | None, asked: "Asked", fresh: bool) -> "Run":
    """The run to evaluate; a new one for a model or recipe named, or where there is none."""
    from castctl.runs import create_run, is_run, newest_run, open_run

    if name is not None and (not fresh or (is_run(name) and not open_run(name).checkpoints())):
        return asked.changed(open_run(name))
    newest = None if fresh else newest_run()
    if newest is not None:
        return asked.changed(newest)
    recipe, origins = asked.new_recipe()
    return create_run(recipe, name, "eval", origins)


def _step(run: "Run", checkpoint: str) -> int:
    there = run.checkpoints()
    if checkpoint == "last":
        return max(there, default=0)
    if checkpoint == "best":
        from castctl.runs import open_run
        from castctl.train.loop import best_step

        return best_step(open_run(str(run.path)), max(there, default=0))
    if not checkpoint.isdigit():
        raise UserError(f"--checkpoint {checkpoint}: write last, best, or the number of a step")
    return int(checkpoint)
