"""`castctl eval`."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from castctl.cli import options as opt
from castctl.errors import UserError
from castctl.report.console import progress, say

if TYPE_CHECKING:
    from castctl.cli.context import Asked
    from castctl.runs.run import Run
    from castctl.stages.evaluate.stage import Evaluated


def register(app: typer.Typer) -> None:
    app.command("eval")(evaluate)


def evaluate(
    tasks: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[TASK]...",
            help="embedded, aime24, aime25, aime26, amc23, math500, hmmt25, minerva, "
            "olympiadbench, gsm8k, a file or a hub id; the recipe's task by default.",
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            "--data",
            help="File with the problems, or a folder with a file TASK.jsonl, .parquet, .json or "
            ".csv for each task; data.problem_column names a column.",
        ),
    ] = None,
    run: opt.RunOption = None,
    checkpoint: Annotated[
        str | None,
        typer.Option("--checkpoint", help="last (the default), best, or the number of a step."),
    ] = None,
    model: opt.ModelOption = None,
    recipe: opt.RecipeOption = None,
    tiny: opt.TinyOption = False,
    rescore: Annotated[
        Path | None,
        typer.Option(
            "--rescore",
            metavar="PATH",
            help="Grade stored completions again: an evaluation's folder, a JSONL or Parquet file "
            "of problem, completion, answer, or what TRL, verl or lm-evaluation-harness logged.",
        ),
    ] = None,
    endpoint: Annotated[
        str | None,
        typer.Option(
            "--endpoint",
            metavar="URL",
            help="Ask an OpenAI-compatible server, such as http://127.0.0.1:8000; its key comes "
            "from OPENAI_API_KEY.",
        ),
    ] = None,
    served_model: Annotated[
        str | None,
        typer.Option("--served-model", help="Model at --endpoint; its only one by default."),
    ] = None,
    concurrency: Annotated[
        int | None,
        typer.Option("--concurrency", min=1, help="Requests to --endpoint at a time; 32."),
    ] = None,
    request_timeout: Annotated[
        float | None,
        typer.Option(
            "--request-timeout", min=0.1, help="Seconds for one completion of --endpoint; 3600."
        ),
    ] = None,
    k: opt.EvalSamplesOption = None,
    temperature: opt.TemperatureOption = None,
    max_tokens: opt.MaxTokensOption = None,
    limit: opt.LimitOption = None,
    seed: opt.SeedOption = None,
    set_: opt.SetOption = None,
    engine: opt.EngineOption = None,
    device: opt.DeviceOption = None,
    dtype: opt.DtypeOption = None,
    trust_remote_code: opt.TrustRemoteCodeOption = False,
    trust_verifier: opt.TrustVerifierOption = False,
    shard: opt.ShardOption = None,
    overwrite: opt.OverwriteOption = False,
    as_markdown: Annotated[
        bool, typer.Option("--markdown", help="Print the results' Markdown table, nothing else.")
    ] = False,
    full: opt.FullOption = False,
    as_json: opt.JsonOption = False,
    quiet: opt.QuietOption = False,
    debug: opt.DebugOption = False,
) -> None:
    """Evaluate on held-out problems: avg@k, pass@k and maj@k with intervals over problems.

    Takes a run's last checkpoint, or the model named; the grader is that of
    training. Each problem is put as data.prompt_template says or, where that
    is the default, as the benchmark is used to; --set data.prompt_template=...
    puts it otherwise. --endpoint asks a model at a server, of which castctl sees
    texts and no token. Settings other than the run's own stand in the folder's
    name, as in RUN/eval/aime24-k16/.
    """
    from castctl.cli.context import (
        Asked,
        announce,
        next_command,
        refuse_scattered_shards,
        shard_of,
    )  # fmt: skip
    from castctl.cli.endpoint import connected, endpoint_run, refuse_without_endpoint
    from castctl.recipe.split import holds_out, names_data, task_of
    from castctl.runs.run import discarded_if_empty

    if as_json and as_markdown:
        raise UserError("--json and --markdown are two answers to one question; leave one out")
    if rescore is not None:
        _refuse_beside_rescore(
            TASK=tasks, data=data, checkpoint=checkpoint, model=model, k=k, limit=limit,
            temperature=temperature, max_tokens=max_tokens, seed=seed, device=device, dtype=dtype,
            shard=shard, markdown=as_markdown or None, tiny=tiny or None, endpoint=endpoint,
            engine=engine,
            served_model=served_model, concurrency=concurrency, request_timeout=request_timeout,
        )  # fmt: skip
        asked = Asked(
            recipe, set_, trust_remote_code=trust_remote_code, trust_verifier=trust_verifier
        )
        _rescore(rescore, run, asked, overwrite, full, as_json)
        return
    share = shard_of(shard)
    server = None
    if endpoint is not None:
        _refuse_beside_endpoint(
            model=model, checkpoint=checkpoint, device=device, dtype=dtype, tiny=tiny or None,
            trust_remote_code=trust_remote_code or None,
        )  # fmt: skip
        server = connected(endpoint, served_model, concurrency, request_timeout)
        model = server.model
    else:
        refuse_without_endpoint(served_model, concurrency, request_timeout)
    asked = Asked(
        recipe, set_, seed, tiny=tiny,
        trust_remote_code=trust_remote_code, trust_verifier=trust_verifier,
        model={"path": model, "device": device, "dtype": dtype},
        engine={"kind": engine},
        eval={
            "task": _first_task(tasks, data), "k": k, "temperature": temperature,
            "max_tokens": max_tokens, "limit": limit,
        },
    )  # fmt: skip
    fresh = model is not None or recipe is not None or tiny
    if fresh:
        refuse_scattered_shards(share, run)
    if server is not None:
        target = endpoint_run(server, asked, run, tasks or [])
    else:
        target = _target(run, asked, fresh)

    from castctl.stages.evaluate.asked import ask_tasks
    from castctl.stages.evaluate.stage import evaluate_tasks, sources
    from castctl.stages.train.outcome import checkpoint_step

    done: list[Evaluated] = []
    with discarded_if_empty(target, share):
        if not names_data(target.recipe) and holds_out(target.recipe):
            raise UserError(
                f"model {target.recipe.model.path} needs problems to be asked; name a task, such "
                "as aime24, or a file with --data"
            )
        places = sources(tasks or [task_of(target.recipe)], data)
        step = checkpoint_step(target, checkpoint or "last")
        announce(target, step)
        how: dict[str, Any] = {"progress": progress(), "shard": share, "overwrite": overwrite}
        for each in (
            evaluate_tasks(target, step, places, **how)
            if server is None
            else ask_tasks(target, server, places, **how)
        ):
            say(f"results: {each.folder.path / 'results.json'}")
            done.append(each)
    if any(each.result is None for each in done):
        say(f"shard {share.index}/{share.count} is done; run it without --shard when all are")
        return
    _show(target, step, done, as_markdown, full, as_json)
    next_command(f"castctl report {target.path}")


def _first_task(tasks: list[str] | None, data: str | None) -> str | None:
    """What the recipe of a new run names: the first task, or the file that is one."""
    if tasks:
        return tasks[0]
    if data is not None and Path(data).is_dir():
        raise UserError(f"--data {data} is a folder; name the tasks whose files it holds")
    return data


def _target(name: str | None, asked: "Asked", fresh: bool) -> "Run":
    """The run to evaluate: the one named or the newest; a new one for a model or recipe named, or
    where there is none."""
    from castctl.cli.context import start_run
    from castctl.runs.kind import EVAL, WORKED, newest_run
    from castctl.runs.run import is_run, open_run

    if name is not None and fresh and is_run(name) and open_run(name).checkpoints():
        raise UserError(
            f"run {open_run(name).path} has weights of its own; name another --run for other ones"
        )
    newest = None
    if name is None and not fresh:
        newest = newest_run(*WORKED) or newest_run(EVAL)
    return start_run(asked, name, "eval") if newest is None else asked.changed(newest)


def _show(
    target: "Run",
    step: int,
    done: "list[Evaluated]",
    as_markdown: bool,
    full: bool,
    as_json: bool,
) -> None:
    """What was found, and a table; in full once more as Markdown for a paper."""
    from castctl.report.evaluation import markdown, tasks_page
    from castctl.report.marks import print_json
    from castctl.report.tables import show

    if as_json:
        results = [{"folder": each.folder.path, **(each.result or {})} for each in done]
        print_json({"run": target.path, "step": step, "results": results})
        return
    label = f"{target.name} step {step}" if target.checkpoints() else target.recipe.model.path
    found = [(each.folder.path.parent.name, each.result) for each in done if each.result]
    if not as_markdown:
        show(tasks_page(label, found, full))
    if full:
        print()
    if full or as_markdown:
        print(markdown([(label, result) for _, result in found]), flush=True)


def _refuse_beside_rescore(**given: object) -> None:
    """Stored completions are what they are: how to make others is no question of theirs."""
    if beside := _options(given):
        raise UserError(f"--rescore grades completions as they are; leave {beside} out")


def _refuse_beside_endpoint(**given: object) -> None:
    """A server has its own model, and its own way to run it."""
    if beside := _options(given):
        raise UserError(f"--endpoint asks a server for its model; leave {beside} out")


def _options(given: dict[str, object]) -> str:
    """The options that were given, as they are typed."""
    names = [name for name, value in given.items() if value not in (None, [])]
    return ", ".join(n if n.isupper() else "-k" if n == "k" else f"--{n.replace('_', '-')}"
                     for n in names)  # fmt: skip


def _rescore(
    source: Path, name: str | None, asked: "Asked", overwrite: bool, full: bool, as_json: bool
) -> None:
    from castctl.report.marks import print_json
    from castctl.report.rescore import rescored_page
    from castctl.report.tables import show
    from castctl.runs.run import is_run, open_run
    from castctl.stages.evaluate.rescore import rescore

    if not os.path.exists(source) and is_run(str(source)):  # a run by its name
        source = open_run(str(source)).path
    recipe, _ = asked.read(asked.recipe or _recipe_around(source))
    rescored = rescore(source, recipe, progress=progress(), name=name, overwrite=overwrite)
    if as_json:
        print_json(rescored)
    else:
        show(rescored_page(rescored, full))


def _recipe_around(source: Path) -> Path | None:
    """The recipe of the run that holds an evaluation; None elsewhere. An evaluation of the run with
    other settings may have had another verifier."""
    folders = [source.absolute(), *source.absolute().parents]
    return next((f / "recipe.yaml" for f in folders if os.path.isfile(f / "manifest.json")), None)
