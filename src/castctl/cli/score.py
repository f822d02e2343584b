"""`castctl score`."""

from typing import Annotated

import typer

from castctl.cli import options as opt


def register(app: typer.Typer) -> None:
    app.command("score")(score)


def score(
    run: opt.RunOption = None,
    step: opt.StepOption = None,
    method: opt.MethodOption = None,
    signals: Annotated[
        str | None,
        typer.Option(
            "--signals", help="Signals to compute, separated by commas; else the method's."
        ),
    ] = None,
    recipe: opt.RecipeOption = None,
    tiny: opt.TinyOption = False,
    model: opt.ModelOption = None,
    temperature: opt.TemperatureOption = None,
    seed: opt.SeedOption = None,
    set_: opt.SetOption = None,
    device: opt.DeviceOption = None,
    dtype: opt.DtypeOption = None,
    trust_remote_code: opt.TrustRemoteCodeOption = False,
    trust_verifier: opt.TrustVerifierOption = False,
    shard: opt.ShardOption = None,
    overwrite: opt.OverwriteOption = False,
    quiet: opt.QuietOption = False,
    debug: opt.DebugOption = False,
) -> None:
    """Verify a step's completions and score their tokens: rewards/ and signals/.

    Computes what --method needs, or the signals named; what is there already is kept.
    """
    from castctl.cli import context
    from castctl.report.console import progress

    share = context.shard_of(shard)
    asked = context.Asked(
        recipe, set_, seed, method, tiny,
        trust_remote_code=trust_remote_code, trust_verifier=trust_verifier,
        model={"path": model, "device": device, "dtype": dtype},
        sampling={"temperature": temperature},
    )  # fmt: skip
    target, in_name = context.find_run(run, asked)
    number = context.latest_step(target, "rollouts", step, in_name, share)
    lacking = context.lacking_parts(target, number, "rollouts", share)
    context.announce(target, number)

    from castctl.stages.one_step import score_stage
    from castctl.stages.policies import named_policy, policy_at
    from castctl.stages.score.signals import check_signal_names

    wanted = None if signals is None else [name.strip() for name in signals.split(",")]
    check_signal_names(wanted or [])
    source = policy_at(target, number) if model is None else named_policy(target.recipe)
    score_stage(
        target, number, source, wanted, progress=progress(), shard=share, overwrite=overwrite
    )
    folder = target.step(number)
    context.show_step(folder)
    where = "" if run is None else f" --run {folder.path}"
    if share.count > 1:
        context.shard_done(share, "rollouts", lacking)
    else:
        context.next_command(f"castctl shape{where}{context.typed_again(method, set_)}")
