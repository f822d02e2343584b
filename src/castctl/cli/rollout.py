"""`castctl rollout`."""

import typer

from castctl.cli import options as opt


def register(app: typer.Typer) -> None:
    app.command("rollout")(rollout)


def rollout(
    run: opt.RunOption = None,
    step: opt.StepOption = None,
    recipe: opt.RecipeOption = None,
    tiny: opt.TinyOption = False,
    model: opt.ModelOption = None,
    data: opt.DataOption = None,
    limit: opt.LimitOption = None,
    n: opt.SamplesOption = None,
    temperature: opt.TemperatureOption = None,
    max_tokens: opt.MaxTokensOption = None,
    method: opt.MethodOption = None,
    seed: opt.SeedOption = None,
    set_: opt.SetOption = None,
    engine: opt.EngineOption = None,
    device: opt.DeviceOption = None,
    dtype: opt.DtypeOption = None,
    trust_remote_code: opt.TrustRemoteCodeOption = False,
    trust_verifier: opt.TrustVerifierOption = False,
    shard: opt.ShardOption = None,
    overwrite: opt.OverwriteOption = False,
    quiet: opt.QuietOption = False,
    debug: opt.DebugOption = False,
) -> None:
    """Sample completions of a step's prompts into a run's rollouts/.

    Without --run a new run is made, named METHOD-YYYYMMDD-HHMMSS.
    """
    from castctl.cli import context
    from castctl.recipe.split import require_data
    from castctl.report.console import progress
    from castctl.runs.run import discarded_if_empty

    share = context.shard_of(shard)
    asked = context.Asked(
        recipe, set_, seed, method, tiny,
        trust_remote_code=trust_remote_code, trust_verifier=trust_verifier,
        model={"path": model, "device": device, "dtype": dtype},
        engine={"kind": engine},
        data={"path": data, "limit": limit},
        sampling={"n": n, "temperature": temperature, "max_tokens": max_tokens},
    )  # fmt: skip
    context.refuse_scattered_shards(share, run)
    name, in_name = context.run_and_step(run)
    target = context.start_run(asked, name)
    number = context.one_step(step, in_name) or 0
    context.announce(target, number)

    from castctl.stages.one_step import rollout_stage
    from castctl.stages.policies import policy_at

    with discarded_if_empty(target, share):
        require_data(target.recipe)
        source = policy_at(target, number)
        rollout_stage(target, number, source, progress=progress(), shard=share, overwrite=overwrite)
    folder = target.step(number)
    context.show_step(folder)
    if share.count > 1:
        context.shard_done(share)
    else:
        where = "" if run is None else f" --run {folder.path}"
        context.next_command(f"castctl score{where}{context.trusted_again(target.recipe)}")
