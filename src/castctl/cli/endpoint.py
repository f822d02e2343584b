"""From `--endpoint` to a model at a server and the run that its evaluations go into."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from castctl.cli.context import Asked, start_run
from castctl.errors import UserError
from castctl.recipe.reader import dump_recipe
from castctl.recipe.recipe import Recipe
from castctl.report.console import say
from castctl.runs.run import Run, created, read_manifest, run_folders

if TYPE_CHECKING:
    from castctl.engines.endpoint import Endpoint


def connected(
    url: str, model: str | None, concurrency: int | None, timeout: float | None
) -> Endpoint:
    """The model at a server, as the options say."""
    from castctl.engines.endpoint import connect

    how = {"concurrency": concurrency, "timeout": timeout}
    given = {name: value for name, value in how.items() if value is not None}
    server = connect(url, model, **given)  # type: ignore[arg-type]
    say(f"asking {server.model} at {server.url}")
    return server


def refuse_without_endpoint(*given: object) -> None:
    """Raise `UserError` for options that speak of a server where none is named."""
    if any(value is not None for value in given):
        raise UserError(
            "--served-model, --concurrency and --request-timeout speak of a server; name it with "
            "--endpoint"
        )


def endpoint_run(server: Endpoint, asked: Asked, name: str | None, tasks: Sequence[str]) -> Run:
    """The run for evaluations of a server's model, which the recipe names by the name it is served
    under. Without a name it is the one that the same command began and did not finish, else a new
    one."""
    run = None
    if name is None:
        recipe, _ = asked.new_recipe()
        run = _unfinished(server, recipe, tasks or [recipe.eval.task or ""])
    run = run or start_run(asked, name, "eval")
    if run.recipe.model.path != server.model:
        raise UserError(
            f"--set model.path={run.recipe.model.path} is not what --endpoint is asked for, "
            f"{server.model}; leave it out, or name it with --served-model"
        )
    return run


def _unfinished(server: Endpoint, recipe: Recipe, tasks: Sequence[str]) -> Run | None:
    from castctl.stages.evaluate.results import task_name

    text = dump_recipe(recipe)
    for folder in sorted(run_folders(), key=created, reverse=True):
        try:
            began = read_manifest(folder).get("endpoint")
        except UserError:
            continue
        results = [folder / "eval" / task_name(task) / "step-00000" / "results.json"
                   for task in tasks]  # fmt: skip
        if (
            isinstance(began, dict)
            and (began.get("model"), began.get("root")) == (server.model, server.root)
            and _text(folder / "recipe.yaml") == text
            and not all(map(Path.is_file, results))
        ):
            say(f"going on with {folder}, which is not finished")
            return Run(folder, recipe)
    return None


def _text(file: Path) -> str | None:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, ValueError):
        return None
