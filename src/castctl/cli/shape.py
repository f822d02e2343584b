"""`castctl shape`."""

import typer

from castctl.cli import options as opt


def register(app: typer.Typer) -> None:
    app.command("shape")(shape)


def shape(
    run: opt.RunOption = None,
    step: opt.StepOption = None,
    method: opt.MethodOption = None,
    recipe: opt.RecipeOption = None,
    tiny: opt.TinyOption = False,
    set_: opt.SetOption = None,
    shard: opt.ShardOption = None,
    overwrite: opt.OverwriteOption = False,
    quiet: opt.QuietOption = False,
    debug: opt.DebugOption = False,
) -> None:
    """Turn a step's rewards/ and signals/ into token advantages/.

    At step 0 every answer-free teacher equals the policy, so CAST's gap is zero there and
    its tokens keep their base advantage.
    """
    from castctl.cli import context
    from castctl.report.console import progress

    share = context.shard_of(shard)
    target, in_name = context.find_run(run, context.Asked(recipe, set_, None, method, tiny))
    number = context.latest_step(target, "rewards", step, in_name, share)
    lacking = context.lacking_parts(target, number, "rewards", share)
    context.announce(target, number)

    from castctl.stages.shape import shape_step

    folder = target.step(number)
    settings = target.recipe
    with target.beside_others():
        shape_step(
            folder, settings.method, longest=settings.sampling.max_tokens,
            seed=settings.seed, progress=progress(), shard=share, overwrite=overwrite,
        )  # fmt: skip
    context.show_step(folder)
    trainable = number == 0 or target.checkpoint(number).is_dir()
    if share.count > 1:
        context.shard_done(share, "rewards", lacking)
    elif run is not None and trainable and folder.parts("rollouts"):
        context.next_command(
            f"castctl train --from {folder.path}{context.typed_again(method, set_)}"
        )
    else:
        context.next_command("castctl train --method cast")
