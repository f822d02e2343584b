"""What is compared: recipes to train and finished runs, found by what was typed."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from castctl.errors import UserError
from castctl.recipe.files import Named, known_recipes, look_up, now_called
from castctl.recipe.former_names import twin_name
from castctl.recipe.reader import Origins
from castctl.recipe.recipe import Recipe
from castctl.recipe.split import task_of
from castctl.runs.run import Run, is_run, open_run, read_manifest
from castctl.shards.stage import describe_difference
from castctl.stages.evaluate.results import Result, read_result, task_name

NAME_BYTES = 80
"""Longest name of a recipe in the names of its runs, in bytes of UTF-8."""

ReadRecipe = Callable[[str], tuple[Recipe, Origins]]
"""Reads a recipe with what the options change in it, and where its settings come from."""


@dataclass(frozen=True)
class Planned:
    """One run of an entry: a finished one, or one to train with a recipe (`origins` then says
    where its settings come from)."""

    path: Path
    recipe: Recipe
    origins: Origins | None = None

    @property
    def there(self) -> bool:
        return (self.path / "manifest.json").is_file()

    @property
    def finished(self) -> bool:
        """Whether the loop has come to the run's end."""
        return self.there and read_manifest(self.path).get("state") == "finished"

    @property
    def run(self) -> Run:
        return Run(self.path, self.recipe)

    def result(self, step: int) -> Result:
        """The evaluation at the start of `step`; `UserError` where there is none."""
        result = read_result(self.run.eval_folder(task_name(task_of(self.recipe)), step))
        if result is None:
            raise UserError(
                f"{self.path} has no evaluation of {task_of(self.recipe)} at step {step}; make "
                f"it with castctl eval --run {self.path} --checkpoint {step}"
            )
        return result


@dataclass(frozen=True)
class Entry:
    """One row of a comparison: `name` is its own, `source` what was typed for it."""

    name: str
    source: str
    trained: bool
    """Whether it is a recipe, trained here; otherwise it is a finished run."""
    runs: list[Planned]
    """One a seed."""


def plan(
    sources: Iterable[str], folder: Path, seeds: int, read: ReadRecipe, tiny: bool = False
) -> list[Entry]:
    """The entries named, in that order; a recipe with `seeds` runs to be in `folder`, named as its
    twin where it is `tiny`.

    Raises `UserError` for what is neither a recipe nor a run, for a run that is not finished,
    and for a run in `folder` that was made with another recipe.
    """
    entries: list[Entry] = []
    for source in sources:
        found = _find(source)
        taken = {entry.name.casefold() for entry in entries}
        if isinstance(found, Run):
            name = untaken(found.path.resolve().name, taken)
            entries.append(Entry(name, source, False, [_finished(found)]))
        else:
            name = untaken(_short(twin_name(found.name) if tiny else found.name), taken)
            runs = _with_seeds(name, source, folder, seeds, read)
            entries.append(Entry(name, source, True, runs))
    return entries


def _find(source: str) -> Named | Run:
    """The recipe, or the run, that `source` names."""
    recipes = known_recipes()
    try:
        if is_run(source) and not Path(source).is_file():
            if source in recipes:
                raise UserError(
                    f"{source} is a recipe and a run; name {recipes[source]}, or the run by its "
                    "path"
                )
            return open_run(source)
        if found := look_up(source):
            return found
        if (Path(source) / "comparison.json").is_file():
            raise UserError(f"{source} is a comparison; name one of the runs in it")
    except OSError as error:
        raise UserError(f"{source} cannot be read: {error.strerror or error}") from None
    if moved := now_called(source):
        raise UserError(moved)
    near = difflib.get_close_matches(source, recipes, n=1)
    hint = f"did you mean {near[0]}?" if near else f"recipes known by name: {', '.join(recipes)}"
    raise UserError(f"{source} is no recipe's file, no recipe's name and no run; {hint}")


def untaken(name: str, taken: set[str]) -> str:
    """`name`, or the first of `name-2`, `name-3` ... that no other entry has."""
    choice, count = name, 1
    while choice.casefold() in taken:
        count += 1
        choice = f"{name}-{count}"
    return choice


def _short(name: str) -> str:
    """A recipe's name fit to begin a folder's name."""
    plain = re.sub(r"[^\w.+=-]+", "-", name).strip(".-")
    return plain.encode()[:NAME_BYTES].decode(errors="ignore") or "recipe"


def _finished(run: Run) -> Planned:
    planned = Planned(run.path, run.recipe)
    if not planned.finished:
        state = run.manifest.get("state", "new")
        raise UserError(
            f"run {run.path} is not finished (state: {state}); wait for it, or go on with castctl "
            f"train --resume --run {run.path}"
        )
    planned.result(0), planned.result(run.recipe.train.steps)
    return planned


def _with_seeds(
    name: str, source: str, folder: Path, seeds: int, read: ReadRecipe
) -> list[Planned]:
    recipe, origins = read(source)
    planned = []
    for seed in range(recipe.seed, recipe.seed + seeds):
        told = origins if seed == recipe.seed else {**origins, "seed": "option"}
        one = recipe.model_copy(update={"seed": seed})
        planned.append(Planned(folder / f"{name}-seed-{seed}", one, told))
        _refuse_another_recipe(planned[-1])
    return planned


def _refuse_another_recipe(planned: Planned) -> None:
    """`UserError` where the run is there and was made with other settings."""
    if not planned.there:
        return
    there = open_run(str(planned.path)).recipe.model_dump(mode="json")
    asked = planned.recipe.model_dump(mode="json")
    if different := [key for key in asked if there[key] != asked[key]]:
        raise UserError(
            f"run {planned.path} is there with {describe_difference(there, asked, different)}; "
            "give the comparison another --name, or delete that run"
        )
