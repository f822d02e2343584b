"""`castctl compare`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from castctl.cli import options as opt
from castctl.errors import UserError
from castctl.report.console import progress, say, tell

if TYPE_CHECKING:
    from castctl.comparison.entries import Entry
    from castctl.comparison.evaluations import Evaluation
    from castctl.comparison.numbers import Comparison
    from castctl.recipe.reader import Origins
    from castctl.recipe.recipe import Recipe
    from castctl.runs.run import Run
    from castctl.stages.train.metrics import Row


def register(app: typer.Typer) -> None:
    app.command("compare")(compare)


def compare(
    entries: Annotated[
        list[str],
        typer.Argument(
            metavar="ENTRY...",
            help="Recipes to train (a YAML file, a name such as tiny, or either with :VARIANT) and "
            "finished runs; or "
            "evaluations (their folders, results.json files, or runs that hold one alone).",
        ),
    ],
    seeds: Annotated[
        int, typer.Option("--seeds", min=1, max=1000, help="Seeds to train each recipe with.")
    ] = 1,
    seed: Annotated[
        int | None, typer.Option("--seed", min=0, help="The first seed; else the recipe's own.")
    ] = None,
    tiny: opt.TinyOption = False,
    steps: opt.StepsOption = None,
    k: opt.EvalSamplesOption = None,
    set_: opt.SetOption = None,
    trust_remote_code: opt.TrustRemoteCodeOption = False,
    trust_verifier: opt.TrustVerifierOption = False,
    name: Annotated[
        str | None,
        typer.Option("--name", help="Folder of the comparison; the same one goes on with it."),
    ] = None,
    full: opt.FullOption = False,
    as_json: opt.JsonOption = False,
    quiet: opt.QuietOption = False,
    debug: opt.DebugOption = False,
) -> None:
    """Train recipes with the same seeds and prompts, and set them and finished runs side by side.

    Writes comparison.json and curves.png; differences are to the first entry.
    Evaluations of the same problems are paired problem by problem: difference,
    interval, permutation test, and how large a difference could be seen at all.
    """
    from castctl.cli.context import Asked
    from castctl.comparison.entries import plan
    from castctl.comparison.evaluations import find_evaluations
    from castctl.comparison.sameness import require_same_evaluation, require_same_problems
    from castctl.comparison.training import comparison_folder, opened

    def asked(name: str | None) -> Asked:
        path = None if name is None else Path(name)
        return Asked(
            path, set_, seed, tiny=tiny, train={"steps": steps}, eval={"k": k},
            trust_remote_code=trust_remote_code, trust_verifier=trust_verifier,
        )  # fmt: skip

    def read(name: str) -> "tuple[Recipe, Origins]":
        recipe, origins = asked(name).new_recipe()
        for warning in recipe.check_training():
            say(f"castctl: warning: {name}: {warning}")
        return recipe, origins

    evaluations = find_evaluations(entries)
    if evaluations is not None:
        if asked(None).changes or seeds > 1:
            raise UserError(
                "evaluations are taken as they are; leave --seeds, --seed, --steps, -k, --tiny and "
                "--set out"
            )
        _require_two(entries)
        _compare_evaluations(evaluations, comparison_folder(name), full, as_json)
        return
    folder = comparison_folder(name)
    planned = plan(entries, folder, seeds, read, tiny)
    if (asked(None).changes or seeds > 1) and not any(entry.trained for entry in planned):
        raise UserError(
            "every entry is a finished run, taken as it is; leave --seeds, --seed, --steps, -k, "
            "--tiny and --set out, or name recipes"
        )
    _require_two(entries)
    require_same_evaluation(planned)
    require_same_problems(planned)
    with opened(folder):
        compared = _compare(planned, folder)
    _show(compared, folder, full, as_json)


def _require_two(entries: list[str]) -> None:
    if len(entries) == 1:
        raise UserError(
            f"{entries[0]} has nothing to be compared with; name a second recipe, run or evaluation"
        )


def _compare_evaluations(
    entries: "list[Evaluation]", folder: Path, full: bool, as_json: bool
) -> None:
    from castctl.comparison.evaluations import compare_evaluations
    from castctl.comparison.training import opened, write_numbers
    from castctl.report.evaluation import paired_page
    from castctl.report.marks import print_json
    from castctl.report.tables import show

    compared = compare_evaluations(entries)
    with opened(folder):
        write_numbers(compared, folder)
    if as_json:
        print_json({"folder": folder, **vars(compared)})
        return
    show(paired_page(compared, full))
    tell(f"comparison: {folder / 'comparison.json'}")


def _compare(entries: "list[Entry]", folder: Path) -> "Comparison":
    """Train what is missing, and write down the numbers and the picture."""
    from castctl.cli.train import step_line
    from castctl.comparison.numbers import compare as compare_entries
    from castctl.comparison.sameness import require_same_problems, require_same_prompts
    from castctl.comparison.training import train_missing, write_numbers
    from castctl.report.plots import draw_curves

    def announce(run: "Run", number: int, of: int) -> None:
        recipe = run.recipe
        say(f"run {number} of {of}, {run.path}: {recipe.method.name}, model {recipe.model.path}, "
            f"data {recipe.data.path}, seed {recipe.seed}")  # fmt: skip

    def on_row(run: "Run", row: "Row") -> None:
        say(step_line(row, run.recipe.train.steps))

    require_same_prompts(entries, progress())
    try:
        train_missing(entries, progress(), announce, on_row)
    except KeyboardInterrupt:
        say(f"stopped; go on with the same command and --name {folder}")
        raise
    require_same_problems(entries)
    compared = compare_entries(entries)
    draw_curves(compared, folder / "curves.png")
    write_numbers(compared, folder)
    return compared


def _show(compared: "Comparison", folder: Path, full: bool, as_json: bool) -> None:
    from castctl.cli.context import next_command
    from castctl.report.comparison import comparison_page
    from castctl.report.marks import print_json
    from castctl.report.tables import show

    if as_json:
        print_json({"folder": folder, **vars(compared)})
        return
    show(comparison_page(compared, full))
    tell(f"comparison: {folder} (comparison.json, curves.png)")
    next_command(f"castctl inspect {compared.entries[0].runs[0].path}")
