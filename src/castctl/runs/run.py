"""A run: a folder with its recipe, its manifest and one folder a step."""

from __future__ import annotations

import contextlib
import datetime
import difflib
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from castctl.errors import UserError
from castctl.recipe.reader import Origins, dump_recipe, load_recipe
from castctl.recipe.recipe import Recipe
from castctl.recipe.trust import trusted_code
from castctl.runs.lock import Place, writing
from castctl.runs.names import require_path
from castctl.shards import journal
from castctl.shards.drafts import drafted_folder
from castctl.shards.part import read_json, read_table, write_json, write_text
from castctl.shards.stage import WHOLE, Shard, StepFolder
from castctl.versions import library_versions

METRICS_REMEDY = "move it away to go on without the steps before"


@dataclass(frozen=True, repr=False)
class Run:
    """The folder `path` and the recipe it was made from; `new` where this process made it, and
    `place` where it is the only one to write it."""

    path: Path
    recipe: Recipe
    new: bool = False
    place: Place | None = field(default=None, compare=False)

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r})"  # a notebook has no room for every setting

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def prompts_folder(self) -> StepFolder:
        """The folder whose `prompts/` holds the run's prompts."""
        return StepFolder(self.path, 0, self.recipe.train.steps)

    @property
    def held_out_folder(self) -> StepFolder:
        """The folder whose `prompts/` holds the problems kept from training, where some are."""
        return StepFolder(self.path / "held-out")

    def step(self, step: int) -> StepFolder:
        return StepFolder(self.path / f"step-{step:05d}", step, self.recipe.train.steps)

    @property
    def steps(self) -> list[int]:
        """Steps that have a folder, ascending."""
        return _numbered(self.path, "step")

    @property
    def parts_of_step(self) -> int:
        """How many parts the prompts of a step make; 0 where the run has read none, as where its
        parts were made elsewhere."""
        rows = self.prompts_folder.rows("prompts", self.prompts_folder.parts("prompts"))
        return -(-min(rows, self.recipe.train.prompts_per_step) // self.recipe.train.part_size)

    def checkpoint(self, step: int) -> Path:
        """The folder of the weights at the start of `step`."""
        return self.path / "checkpoints" / f"step-{step:05d}"

    def checkpoints(self) -> list[int]:
        """Steps at whose start there is a checkpoint, ascending."""
        return _numbered(self.path / "checkpoints", "step")

    def eval_folder(self, task: str, step: int) -> StepFolder:
        return StepFolder(self.path / "eval" / task / f"step-{step:05d}", step, None)

    def metrics(self) -> pa.Table:
        """One row a step: `metrics.parquet` as it is now; `UserError` where there is none."""
        file = self.path / "metrics.parquet"
        if not file.exists():
            raise UserError(f"{self.path} has no metrics yet; they come with castctl train")
        return read_table(file, "metrics", METRICS_REMEDY)[0]

    def changed(
        self, overrides: Iterable[str] = (), *, trusted: Collection[str] = (), **sections: Any
    ) -> Run:
        """The run with its recipe changed for one call, as `read_recipe` changes it; code that it
        trusts it trusts still."""
        trusted = trusted_code(self.recipe) | set(trusted)
        file = self.path / "recipe.yaml"
        return Run(self.path, load_recipe(file, overrides, trusted=trusted, **sections))

    @property
    def manifest(self) -> dict[str, Any]:
        """What is recorded of the run; `UserError` where the file cannot be read."""
        return read_manifest(self.path)

    @contextlib.contextmanager
    def alone(self) -> Iterator[Run]:
        """The run with this process as its only writer; `Taken` where it has another."""
        with writing(self.path, alone=True) as place:
            yield replace(self, place=place)

    @contextlib.contextmanager
    def beside_others(self) -> Iterator[None]:
        """Write parts, as other processes may too; `Taken` where one must be alone."""
        with writing(self.path, alone=False):
            yield

    def require_place(self) -> None:
        """Raise `Taken` where this process was the only writer and is no more."""
        if self.place is not None:
            self.place.require()

    def record(self, **facts: Any) -> None:
        """Add facts to the manifest."""
        self.require_place()
        write_json(self.path / "manifest.json", {**self.manifest, **facts})


def runs_root() -> Path:
    """Where runs live: `$CASTCTL_RUNS`, or `runs/` in this folder."""
    return Path(os.environ.get("CASTCTL_RUNS", "runs"))


def create_run(recipe: Recipe, name: str | None, kind: str, origins: Origins | None = None) -> Run:
    """A new run folder named `name`, or `kind` and the time; refuses one that is there.

    `origins` says in the manifest where the recipe's settings come from, None that it is unknown.
    """
    if name is None:
        stamp = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
        path = runs_root() / f"{kind}-{stamp}"
        count = 1
        while path.exists():  # two runs in one second
            count += 1
            path = runs_root() / f"{kind}-{stamp}-{count}"
    else:
        path = require_path(_as_path(name), "a run")
        if (path / "manifest.json").exists():
            raise UserError(f"run {path} is there already; name another, or add --resume")
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise UserError(f"{path} is there and is no run; name another")
    if path.exists():
        _write_run(path, path.name, recipe, origins)
        return Run(path, recipe, new=True)
    try:
        with drafted_folder(path) as draft:
            _write_run(draft, path.name, recipe, origins)
            draft.rename(path)  # with both files in it: whole or absent
    except OSError as error:
        raise UserError(
            f"cannot make run {path}: {error.strerror or error}; is the folder writable?"
        ) from error
    return Run(path, recipe, new=True)


def adopt_run(path: Path, recipe: Recipe, origins: Origins | None = None) -> Run:
    """Make a folder a run: write its recipe and manifest beside what it holds."""
    if (path / "recipe.yaml").exists():
        raise UserError(f"{path} holds a recipe.yaml but no manifest.json; move the recipe away")
    _write_run(path, path.name, recipe, origins)
    return Run(path, recipe)


def _write_run(folder: Path, name: str, recipe: Recipe, origins: Origins | None) -> None:
    write_text(folder / "recipe.yaml", dump_recipe(recipe))
    write_json(folder / "manifest.json", _new_manifest(name, recipe, origins))


def open_run(name: str) -> Run:
    """The run of that name or path; `UserError` where there is none."""
    path = _as_path(name)
    if not is_run(name):
        if not os.path.exists(path):
            require_path(path, "a run")
        near = difflib.get_close_matches(path.name, [run.name for run in run_folders()], n=1)
        hint = f"the nearest one is {near[0]}" if near else "castctl runs lists those there are"
        raise UserError(f"no run at {path}; {hint}, and castctl train --run begins a new one")
    return Run(path, load_recipe(path / "recipe.yaml"))


@contextlib.contextmanager
def discarded_if_empty(run: Run, shard: Shard = WHOLE) -> Iterator[None]:
    """On an error, remove a run that this process made and that holds no part but prompts, nor
    anything of one.

    One shard of several leaves the run to the others, as does who finds another at work in it.
    """
    try:
        yield
    except BaseException:
        if run.new and shard.count == 1:
            with contextlib.suppress(UserError), run.alone():
                _remove_if_empty(run)
        raise


def _remove_if_empty(run: Run) -> None:
    parts = (path.parent for path in run.path.rglob("part-*.parquet"))
    read = [folder.stage_path("prompts") for folder in (run.prompts_folder, run.held_out_folder)]
    # An error may send its reader to an engine's log.
    begun = any(run.path.rglob(journal.ANY)) or any(run.path.glob("*.log"))
    if not begun and not run.checkpoints() and all(each in read for each in parts):
        shutil.rmtree(run.path, ignore_errors=True)


def is_run(name: str) -> bool:
    """Whether there is a run of that name or path."""
    return os.path.isfile(_as_path(name) / "manifest.json")  # what can be no name is no run


def split_step(name: str) -> tuple[str, int | None]:
    """A run's name and, where the path ends in `step-NNNNN`, the step."""
    path = Path(name)
    match = re.fullmatch(r"step-(\d+)", path.name)
    return (str(path.parent), int(match[1])) if match else (name, None)


def _as_path(name: str) -> Path:
    if not name.strip():
        raise UserError("the run's name is empty; name it, or leave it out")
    path, below = Path(name), runs_root() / name
    if len(path.parts) == 1:
        return path if os.path.isdir(path) else below
    compared = not os.path.exists(path) and os.path.isfile(below / "manifest.json")
    return below if compared else path


def run_folders() -> list[Path]:
    """The folders in `runs_root()` that hold a manifest."""
    return [path.parent for path in runs_root().glob("[!.]*/manifest.json")]


def compared_folders() -> list[Path]:
    """The folders of runs that a comparison in `runs_root()` holds."""
    comparisons = (file.parent for file in runs_root().glob("[!.]*/comparison.json"))
    return [path.parent for folder in comparisons for path in folder.glob("[!.]*/manifest.json")]


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest in a run's folder; `UserError` where it cannot be read."""
    return read_json(folder / "manifest.json")


def created(folder: Path) -> str:
    """When a run was made, in ISO format; nothing where that cannot be read."""
    try:
        return str(read_manifest(folder).get("created", ""))
    except UserError:
        return ""


def _numbered(folder: Path, prefix: str) -> list[int]:
    matches = (re.fullmatch(rf"{prefix}-(\d+)", path.name) for path in folder.glob(f"{prefix}-*"))
    return sorted(int(match[1]) for match in matches if match)


def _new_manifest(name: str, recipe: Recipe, origins: Origins | None) -> dict[str, Any]:
    libraries = library_versions()
    return {
        "name": name,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="microseconds"),
        "castctl": libraries.pop("castctl"),
        "python": platform.python_version(),
        "libraries": libraries,
        "git_commit": _git_commit(),
        "machine": {
            "system": platform.platform(),
            "processor": platform.machine(),
            "cores": os.cpu_count(),
        },
        "seed": recipe.seed,
        "method": recipe.method.name,
        "origins": origins,
        "state": "new",
    }


def _git_commit() -> str | None:
    """The commit of castctl's own clone, None where it is installed without one."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None
