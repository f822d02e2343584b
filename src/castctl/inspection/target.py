"""What a name given to `castctl inspect` stands for: a run, a step, or one part."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from castctl.errors import UserError
from castctl.runs.kind import EVAL, RESCORED, WORKED, newest_run
from castctl.runs.run import Run, is_run, open_run, runs_root, split_step
from castctl.shards.schema import SCHEMAS
from castctl.shards.stage import StepFolder


@dataclass(frozen=True)
class Target:
    """A run's folder; with `step`, a step in it; with `part` too, a (stage, number) of the step.

    `run` is None for folders made elsewhere, which have no manifest. An evaluation of a run
    is a step as well.
    """

    path: Path
    run: Run | None
    step: StepFolder | None = None
    part: tuple[str, int] | None = None

    @property
    def steps(self) -> list[StepFolder]:
        """The step named, or those of the run, ascending."""
        return [self.step] if self.step is not None else step_folders(self.path)

    def step_with(self, stage: str) -> StepFolder:
        """The step named, or the run's last one that has parts of `stage`."""
        if self.step is not None:
            self.step.require_parts(stage, "name another step")
            return self.step
        having = [step for step in self.steps if step.parts(stage)]
        if not having:
            raise UserError(f"{self.path} has no {stage} at any step")
        return having[-1]


def find_target(name: str | None) -> Target:
    """What `name` stands for; for None the newest run that samples or trains, or where there is
    none the newest of all. `UserError` where there is nothing."""
    if name is None:
        run = newest_run(*WORKED) or newest_run(EVAL, RESCORED)
        if run is None:
            raise UserError("there is no run here yet; start with castctl train --method cast")
        return Target(run.path, run)
    path = _locate(name)
    if path.is_file():
        return _part(path)
    if _step_number(path) is not None:
        return Target(path, _enclosing_run(path), _step(path))
    if is_run(str(path)):
        return Target(path, open_run(str(path)))
    if step_folders(path):
        return Target(path, None)
    raise UserError(f"{path} is no run and no step: it holds neither a manifest nor step folders")


def step_folders(folder: Path) -> list[StepFolder]:
    """The step folders directly below a folder, ascending."""
    steps = [StepFolder(path, n) for path in folder.glob("step-*")
             if path.is_dir() and (n := _step_number(path)) is not None]  # fmt: skip
    return sorted(steps, key=lambda step: step.step)


def _locate(name: str) -> Path:
    """The path that is there: as given, with the step's number in full, or below the runs."""
    base, step = split_step(name)
    numbered = (re.fullmatch(r"step-(\d+)", piece) for piece in Path(name).parts)
    wanted = Path(*(f"step-{int(match[1]):05d}" if match else piece
                    for piece, match in zip(Path(name).parts, numbered, strict=True)))  # fmt: skip
    for path in (wanted, runs_root() / wanted):
        if os.path.exists(path):  # unlike the path's own, it takes what can be no name
            return path
    if step is not None and is_run(base):
        run = open_run(base)
        steps = ", ".join(map(str, run.steps)) or "none"
        raise UserError(f"{run.path} has no step {step}; steps there: {steps}")
    if wanted.suffix == ".parquet":
        raise UserError(f"there is no part {wanted}")
    return open_run(base).path  # which says what runs there are


def _step_number(path: Path) -> int | None:
    return split_step(str(path.absolute()))[1]


def _step(path: Path) -> StepFolder:
    step = StepFolder(path, _step_number(path) or 0)
    if not any(step.parts(stage) for stage in SCHEMAS):
        raise UserError(f"{path} holds no parts of any stage, so there is nothing to show")
    return step


def _part(path: Path) -> Target:
    if len(path.parts) < 3:  # named from inside its folder
        path = path.absolute()
    number, stage = re.fullmatch(r"part-(\d+)\.parquet", path.name), path.parent.name
    if number is None or stage not in SCHEMAS:
        raise UserError(
            f"{path} is no castctl part; a part is STAGE/part-00000.parquet with a stage among "
            f"{', '.join(SCHEMAS)}"
        )
    folder = path.parent.parent
    step = StepFolder(folder, _step_number(folder) or 0)
    return Target(path, _enclosing_run(path), step, (stage, int(number[1])))


def _enclosing_run(path: Path) -> Run | None:
    """The run that a step or part lies in; other projects have files named manifest.json too."""
    for folder in path.absolute().parents:
        if (folder / "manifest.json").is_file() and (folder / "recipe.yaml").is_file():
            return open_run(str(folder))
    return None
