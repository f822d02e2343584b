"""`castctl train`."""

import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from castctl.cli import options as opt
from castctl.cli.launch import launch
from castctl.cli.voices import hush, log_into
from castctl.errors import UserError
from castctl.launcher import refuse_unheard, shares_weights
from castctl.report.console import live_console, printable, progress, say, tell

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from castctl.cli.context import Asked
    from castctl.progress import Progress
    from castctl.ranks import Ranks
    from castctl.runs.run import Run
    from castctl.stages.train.metrics import Row


def register(app: typer.Typer) -> None:
    app.command("train")(train)


def train(
    recipe: opt.RecipeArgument = None,
    tiny: opt.TinyOption = False,
    method: opt.MethodOption = None,
    run: opt.RunOption = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Go on with --run, or the newest run that trains, as it was begun; with --steps, "
            "for longer.",
        ),
    ] = False,
    from_: Annotated[
        str | None,
        typer.Option("--from", metavar="RUN/STEP", help="One update from a step's shaped shards."),
    ] = None,
    model: opt.ModelOption = None,
    lora: opt.LoraOption = False,
    data: opt.DataOption = None,
    limit: opt.LimitOption = None,
    n: opt.SamplesOption = None,
    k: opt.EvalSamplesOption = None,
    temperature: opt.TemperatureOption = None,
    max_tokens: opt.MaxTokensOption = None,
    steps: opt.StepsOption = None,
    seed: opt.SeedOption = None,
    set_: opt.SetOption = None,
    engine: opt.EngineOption = None,
    device: opt.DeviceOption = None,
    gpus: opt.GpusOption = None,
    dtype: opt.DtypeOption = None,
    trust_remote_code: opt.TrustRemoteCodeOption = False,
    trust_verifier: opt.TrustVerifierOption = False,
    dry_run: opt.DryRunOption = False,
    overwrite: opt.OverwriteOption = False,
    quiet: opt.QuietOption = False,
    debug: opt.DebugOption = False,
) -> None:
    """Train: rollout, score, shape and update in a loop, or one update with --from.

    Every step writes the folders that the single stages write, so that any of them can be
    inspected, made again with other settings, and trained from.
    """
    from castctl.cli.context import Asked
    from castctl.cli.explain import show_explanation
    from castctl.diagnosis.kept import lost_answers
    from castctl.ranks import here
    from castctl.recipe.reader import dump_recipe
    from castctl.recipe.trust import runs_code
    from castctl.runs.extend import extend
    from castctl.runs.kind import TRAIN, newest_run
    from castctl.runs.run import Run, create_run, open_run

    ranks = here()
    hush(ranks)
    ranks.meet("the start")
    refuse_unheard(os.environ)
    asked = Asked(
        recipe, set_, seed, method, tiny,
        trust_remote_code=trust_remote_code, trust_verifier=trust_verifier,
        model={"path": model, "lora": {} if lora else None, "device": device, "dtype": dtype},
        engine={"kind": engine},
        data={"path": data, "limit": limit},
        sampling={"n": n, "temperature": temperature, "max_tokens": max_tokens},
        train={"steps": steps, "sharding": "full" if shares_weights(os.environ) else None},
        eval={"k": k},
    )  # fmt: skip
    if resume and (from_ or dry_run):
        raise UserError("--resume goes on with a run; leave --from and --dry-run out")
    longer = asked.sections.pop("train").get("steps") if resume else None
    if resume and asked.changes:
        raise UserError(
            "a resumed run keeps its recipe, but for --steps; leave the other options out, or "
            "start another run from its weights with --model RUN/checkpoints/step-NNNNN"
        )
    if gpus is not None and ranks.rank.several and gpus != ranks.rank.count:
        raise UserError(f"--gpus {gpus}, but {ranks.rank.count} ranks were started; leave it out")
    if ranks.rank.several and from_ is not None:
        raise UserError("--from is one update in one process; start castctl alone")
    if gpus is not None and gpus > 1 and not ranks.rank.several and not dry_run:
        launch(gpus, on_cpu=device == "cpu")
    if from_ is not None:
        _train_from(from_, asked, model, overwrite)
        return
    if resume:
        target = open_run(run) if run is not None else newest_run(TRAIN)
        if target is None:
            raise UserError("there is no run to resume; start one with castctl train")
        path = ranks.told("the run", str(target.path))

        def resumed() -> "Run":
            target = asked.changed(open_run(path))
            return target if longer is None else extend(target, longer)

        _train(ranks.first_begins("the run's recipe", resumed), ranks)
        return
    settings, origins = asked.new_recipe()
    if dry_run:
        for setting, code in runs_code(settings).items():
            tell(f"# runs code: {setting}, {printable(code)}")
        tell(dump_recipe(settings))
        show_explanation(settings, origins, ranks=gpus or ranks.rank.count)
        return
    for warning in settings.check_training():
        say(f"castctl: warning: {warning}")
    if lost := lost_answers(settings):
        say(f"castctl: {lost}")
    settings.require_parts_for(ranks.rank.count)
    ranks.patience = settings.train.rank_timeout
    made = create_run(settings, run, settings.method.name, origins) if ranks.first else None
    named = ranks.told("the run", str(made.path) if made else "")
    _train(made or Run(Path(named), settings), ranks)


def _train(run: "Run", ranks: "Ranks") -> None:
    if shares_weights(os.environ) and run.recipe.train.sharding == "none":
        raise UserError(
            f"accelerate launch asks for FSDP, and {run.path} trains with train.sharding=none; "
            "take a file of distributed_type MULTI_GPU"
        )
    from castctl.cli.context import announce, next_command, trusted_again
    from castctl.runs.run import discarded_if_empty

    log_into(run.path, ranks)
    announce(run)

    from castctl.report.tables import eval_table, gain, show
    from castctl.stages.train.loop import train as train_run

    steps = run.recipe.train.steps
    try:
        with discarded_if_empty(run), _watched(run) as (watcher, on_row):
            trained = train_run(run, watcher, on_row, ranks)
    except KeyboardInterrupt:
        if run.path.exists():
            flags = trusted_again(run.recipe)
            say(f"stopped; go on with: castctl train --resume --run {run.path}{flags}")
        raise
    except UserError as error:
        if not run.checkpoints():
            raise
        whole = run.checkpoint(run.checkpoints()[-1])
        if str(whole) in str(error):  # it is the trouble
            raise
        raise UserError(f"{error}. The last checkpoint is whole: {whole}") from error
    after = f"after {steps} step{'s' if steps > 1 else ''}"
    show(eval_table([("before", trained.before), (after, trained.after)]))
    print(f"difference: {gain(trained.before, trained.after)} points, paired over problems")
    tell(f"run: {run.path} (best checkpoint: step {trained.best_step})")
    next_command(f"castctl report {run.path}")


@contextlib.contextmanager
def _watched(run: "Run") -> "Iterator[tuple[Progress, Callable[[Row], None]]]":
    """Who watches the loop, and is told each step: a live panel on a terminal, lines elsewhere."""
    console = live_console()
    if console is None:
        yield progress(), lambda row: say(step_line(row, run.recipe.train.steps))
        return
    from castctl.report.panel import TrainingPanel

    with TrainingPanel(run, console) as panel:
        yield panel, panel.add


def _train_from(path: str, asked: "Asked", model: str | None, overwrite: bool) -> None:
    from castctl.cli.context import announce, find_run, next_command

    target, step = find_run(path, asked)
    if step is None:
        raise UserError(f"--from {path}: name a step, such as {path}/step-00000")
    announce(target, step)

    from castctl.stages.one_step import train_stage
    from castctl.stages.policies import named_policy, policy_at

    source = policy_at(target, step) if model is None else named_policy(target.recipe)
    folder, stats = train_stage(target, step, source, overwrite)
    for name, value in stats.row().items() if stats else ():
        print(f"{name:16} {value:.6g}")
    say(f"Checkpoint: {folder}" + ("" if stats else ", there already from the same update"))
    next_command(f"castctl rollout --run {target.step(step + 1).path}")


def step_line(row: dict[str, Any], steps: int) -> str:
    """One step as a line of a log."""
    from castctl.report.marks import percent
    from castctl.stages.train.metrics import value_of

    line = (
        f"step {row['step'] + 1:>4}/{steps}  reward {row['reward_mean']:.3f}  "
        f"mixed {percent(row['groups_mixed']):>6}  length {row['length_mean']:5.1f}  "
    )
    if (entropy := value_of(row, "entropy_mean")) is not None:
        line += f"entropy {entropy:.3f}  "
    if row.get("gap_rms") is not None:
        line += f"gap {row['gap_rms']:.4f}  "
    if row.get("flipped_share") is not None:
        ways = {"praised": row["flipped_down_share"], "blamed": row["flipped_up_share"]}
        told = ", ".join(f"{percent(s)} of {way}" for way, s in ways.items() if s is not None)
        line += f"flips {percent(row['flipped_share'])}{f' ({told})' if told else ''}  "
    if row.get("divergence_mean") is not None:
        line += f"divergence {row['divergence_mean']:.4f}  "
    if row["rounds"] > 1:
        line += f"rounds {row['rounds']}  "
    line += f"grad {row['grad_norm']:.3f}  {row['seconds']:.1f} s"
    if row.get("eval_mean") is not None:
        line += f"  eval {percent(row['eval_mean'])}"
    return line
