"""A real step to measure on: a run in a temporary folder, as the command line would make it."""

from __future__ import annotations

import argparse
import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

from castctl.progress import Silent
from castctl.recipe.files import default_recipe_path
from castctl.recipe.reader import load_recipe
from castctl.recipe.recipe import Recipe
from castctl.runs.run import Run, create_run
from castctl.stages.one_step import rollout_stage, score_stage
from castctl.stages.policies import PolicySource, policy_at
from castctl.stages.shape import shape_step


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options of the model, the data and the size of a step."""
    parser.add_argument("--model", help="folder or hub id; the embedded default if left out")
    parser.add_argument("--data", help="file of problems; the embedded ones if left out")
    parser.add_argument("--prompts", type=int, help="prompts of a step")
    parser.add_argument("-n", type=int, help="completions of a prompt")
    parser.add_argument("--max-tokens", type=int, help="longest completion")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE")


def add_mixed(parser: argparse.ArgumentParser) -> None:
    """The option of rewards that are drawn."""
    parser.add_argument(
        "--mixed", type=float, metavar="SHARE",
        help="draw the rewards, with this share of mixed groups, where the model solves nothing",
    )  # fmt: skip


def shrink(options: argparse.Namespace) -> None:
    """The sizes of a quick run."""
    options.prompts, options.n, options.max_tokens = 2, 2, 16
    options.set += ["data.limit=64"]
    if hasattr(options, "mixed"):
        options.mixed = 0.5


def recipe_of(options: argparse.Namespace, method: str = "cast", *overrides: str) -> Recipe:
    """The recipe that `castctl train` would make of these options."""
    given = {
        "model": {"path": options.model},
        "data": {"path": options.data},
        "sampling": {"n": options.n, "max_tokens": options.max_tokens},
        "train": {"prompts_per_step": options.prompts},
    }
    sections = {
        name: {key: value for key, value in section.items() if value is not None}
        for name, section in given.items()
    }
    return load_recipe(
        default_recipe_path() if options.model is None else None,
        overrides=[*overrides, *options.set],
        method={"name": method},
        **sections,
    )


@contextlib.contextmanager
def temporary_run(recipe: Recipe) -> Iterator[Run]:
    """A run that is gone afterwards."""
    with tempfile.TemporaryDirectory() as folder:
        yield create_run(recipe, str(Path(folder) / "run"), "benchmark")


def sizes(recipe: Recipe) -> dict[str, str | int]:
    """What of a recipe decides the cost of a step."""
    return {
        "method": recipe.method.name,
        "model": Path(recipe.model.path).name,
        "data": Path(recipe.data.path).name,
        "prompts": recipe.train.prompts_per_step,
        "n": recipe.sampling.n,
        "max_tokens": recipe.sampling.max_tokens,
    }


def make_step(run: Run) -> PolicySource:
    """Step 0 rolled out, scored and shaped; its policy."""
    source = policy_at(run, 0)
    rollout_stage(run, 0, source, progress=Silent())
    score_stage(run, 0, source, None, progress=Silent())
    shape_step(run.step(0), run.recipe.method, progress=Silent())
    return source
