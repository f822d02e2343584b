"""`castctl rollout`."""

import typer

from castctl.cli import options as opt


def register(app: typer.Typer) -> None:
    app.command("rollout")(rollout)


def rollout(
    run: opt.RunOption = None,
    step: opt.StepOption = None,
    recipe: opt.RecipeOption = None,
    model: opt.ModelOption = None,
    data: opt.DataOption = None,
    limit: opt.LimitOption = None,
    n: opt.SamplesOption = None,
    temperature: opt.TemperatureOption = None,
    max_tokens: opt.MaxTokensOption = None,
    method: opt.MethodOption = None,
    seed: opt.SeedOption = None,
    set_: opt.SetOption = None,
    device: opt.DeviceOption = None,
    dtype: opt.DtypeOption = None,
    shard: opt.ShardOption = None,
    overwrite: opt.OverwriteOption = False,
    quiet: opt.QuietOption = False,
    debug: opt.DebugOption = False,
) -> None:
    """Sample completions of a step's prompts into a run's rollouts/.

    Without --run a new run is made, named METHOD-YYYYMMDD-HHMMSS.
    """
    from castctl.cli.context import (
        Asked,
        announce,
        next_command,
        one_step,
        refuse_scattered_shards,
        run_and_step,
        shard_done,
        shard_of,
        start_run,
    )  # fmt: skip
    from castctl.report.console import progress, tell
    from castctl.runs import discarded_if_empty

    share = shard_of(shard)
    asked = Asked(
        recipe, set_, seed, method,
        model={"path": model, "device": device, "dtype": dtype},
        data={"path": data, "limit": limit},
        sampling={"n": n, "temperature": temperature, "max_tokens": max_tokens},
    )  # fmt: skip
    refuse_scattered_shards(share, run)
    refuse_scattered_shards(share, run)
    name, in_name = run_and_step(run)
    target = start_run(asked, name)
    number = one_step(step, in_name) or 0
    announce(target, number)

    from castctl.measures import measure_step
    from castctl.policies import policy_at
    from castctl.report.tables import show, step_table
    from castctl.stages import rollout_stage

    with discarded_if_empty(target, share):
        source = policy_at(target, number)
        rollout_stage(target, number, source, progress=progress(), shard=share, overwrite=overwrite)
    folder = target.step(number)
    tell(str(folder.path))
    show(step_table(measure_step(folder)))
    if share.count > 1:
        shard_done(share)
    else:
        next_command("castctl score" if run is None else f"castctl score --run {folder.path}")
