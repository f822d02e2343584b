"""Is a run whole? Every file is read again and compared with what the others say of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from castctl.data.conversation import earlier_in
from castctl.data.prompts import prompt_id
from castctl.errors import UserError, one_line
from castctl.files import regular
from castctl.inspection.target import Target, step_folders
from castctl.progress import Progress
from castctl.runs.run import Run
from castctl.shards.metadata import Metadata
from castctl.shards.part import Part, content_hash, read_json, read_table
from castctl.shards.schema import SCHEMAS
from castctl.shards.seal import digests_of
from castctl.shards.stage import IN_COMMON, StepFolder, check_aligned
from castctl.stages.train.metrics import Metrics, named_steps

STAGES = [stage for stage in SCHEMAS if stage != "prompts"]


@dataclass
class Verification:
    """What was read and what is wrong, a line each; `foreign` parts carry no metadata, `unsealed`
    ones no digest, so that nobody knows whether their values are those that were written."""

    files: int = 0
    problems: list[str] = field(default_factory=list)
    foreign: list[Path] = field(default_factory=list)
    unsealed: list[Path] = field(default_factory=list)


def verify(target: Target, progress: Progress) -> Verification:
    """Check the run, the step, or all stages of the part that `target` names.

    Of each part: that its bytes and its values are those that were written, that it keeps the
    contract, has the rows of the others in their order, was made from the parts that are there, and
    says the step and number it is filed under. Of each step: that its stages have the same parts.
    Of checkpoints: that the tensors are all there, and each file as it was saved. Of the metrics:
    that no step lacks its row.
    """
    found = Verification()
    steps, tensors, prompts = target.steps, list[Path](), None
    if target.step is None:
        run_folder = target.path
        evaluations = [step for task in sorted(run_folder.glob("eval/*")) if task.is_dir()
                       for step in step_folders(task)]  # fmt: skip
        held_out = StepFolder(run_folder / "held-out")
        steps = [StepFolder(run_folder), held_out, *steps, *evaluations]
        tensors = sorted((run_folder / "checkpoints").glob("step-*/**/*.safetensors"))
        for name in ("metrics", "dropped"):
            _check_table(run_folder / f"{name}.parquet", name, found)
        _check_metrics(run_folder, target.run, found)
        for folder in sorted((run_folder / "checkpoints").glob("step-*")):
            _check_checkpoint(folder, found)
        _check_json(sorted(run_folder.glob("eval/*/step-*/results.json")), found)
        _check_json(sorted(run_folder.glob("checkpoints/step-*/castctl.json")), found)
    if target.run is not None and target.run.prompts_folder.parts("prompts"):
        prompts = _read(target.run.prompts_folder, "prompts", 0, Verification())
    of_run = None if target.run is None else target.run.path.absolute()  # evaluations keep none
    only = None if target.part is None else target.part[1]
    total = len(tensors) + sum(len(_numbers(step, s, only)) for step in steps for s in SCHEMAS)
    with progress.task("verify", total, "files") as advance:
        for step in steps:
            known = prompts if step.path.absolute().parent == of_run else None
            for _ in _check_step(step, only, known, found):
                found.files += 1
                advance(1)
        for file in tensors:
            _check_tensors(file, found)
            found.files += 1
            advance(1)
    return found


def _numbers(step: StepFolder, stage: str, only: int | None) -> list[int]:
    return [number for number in step.parts(stage) if only in (None, number)]


def _check_step(
    step: StepFolder, only: int | None, prompts: Part | None, found: Verification
) -> Iterator[Part | None]:
    """Check a step, yielding each part read."""
    for number in _numbers(step, "prompts", only):
        yield _read(step, "prompts", number, found)
    there = {stage: _numbers(step, stage, only) for stage in STAGES if step.parts(stage)}
    every = sorted({number for numbers in there.values() for number in numbers})
    for stage, numbers in there.items():
        if missing := sorted(set(every) - set(numbers)):
            listed = ", ".join(map(str, missing))
            found.problems.append(f"{step.path / stage} lacks part {listed}, which others have")
    whole = True
    for number in every:
        parts: dict[str, Part] = {}
        for stage, numbers in there.items():
            if number in numbers:
                part = _read(step, stage, number, found)
                if part is not None:
                    parts[stage] = part
                whole &= part is not None
                yield part
        _check_together(parts, prompts, found)
    for stage in IN_COMMON if whole and only is None else ():  # what a step's parts share
        try:
            step.refuse_mixed(stage)
        except UserError as error:
            found.problems.append(str(error))


def _read(step: StepFolder, stage: str, number: int, found: Verification) -> Part | None:
    try:
        part = step.read(stage, number)
    except UserError as error:
        found.problems.append(str(error))
        return None
    if part.metadata is None:
        found.foreign.append(part.path)
        return part
    for key, expected in (("step", step.step), ("part", number)):
        said = part.metadata.get(key, expected)
        if said != expected:
            found.problems.append(f"{part.path} says that it is {key} {said}")
    _check_content(part.path, part.metadata, part.table, found)
    if stage == "prompts":
        _check_ids(part, found)
    return part


def _check_content(path: Path, made: Metadata, table: pa.Table, found: Verification) -> None:
    """Whether a file holds the values that it says it does."""
    if "content" not in made:
        found.unsealed.append(path)
    elif made["content"] != content_hash(table):
        found.problems.append(f"{path} does not hold the values that it was written with")


def _check_ids(prompts: Part, found: Verification) -> None:
    """A prompt's id is the hash of what is asked."""
    names = ("prompt_id", "problem", "answer", "earlier")
    rows = zip(*(prompts.table[name].to_pylist() for name in names), strict=True)
    wrong = [id for id, problem, answer, cell in rows
             if id != prompt_id(problem, answer, earlier_in(cell))]  # fmt: skip
    if wrong:
        found.problems.append(
            f"{prompts.path}: {len(wrong)} prompts are not those of their prompt_id, "
            f"{one_line(wrong[0], 40)} first"
        )


def _check_together(parts: dict[str, Part], prompts: Part | None, found: Verification) -> None:
    """Check the stages of one part against one another."""
    if not parts:
        return
    hashes = {stage: content_hash(part.table) for stage, part in parts.items()}
    base_stage, base = next(iter(parts.items()))
    for stage, part in parts.items():
        keys_alone = replace(part, metadata=None)  # the hashes are compared below, each taken once
        try:
            check_aligned(base, [(stage, keys_alone)], base_stage)
        except UserError as error:
            found.problems.append(str(error))
    if prompts is not None and "rollouts" in parts:
        hashes["prompts"] = _prompts_hash(prompts.table, parts["rollouts"].table)
    for part in parts.values():
        for stage, digest in (part.metadata or {}).get("inputs", {}).items():
            if stage in hashes and digest != hashes[stage]:
                found.problems.append(f"{part.path} was made from other {stage} than are there")


def _prompts_hash(prompts: pa.Table, rollouts: pa.Table) -> str:
    """The hash of the prompts that these rollouts continue, in their order."""
    ids = pa.array(dict.fromkeys(rollouts["prompt_id"].to_pylist()), pa.string())
    rows = pc.index_in(ids, prompts["prompt_id"].combine_chunks())
    return content_hash(prompts.take(rows.drop_null()))


def _check_tensors(file: Path, found: Verification) -> None:
    """A safetensors file's header is sound and the tensors it names are all there."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(regular(file), framework="numpy"):
            pass
    except (SafetensorError, OSError, UserError) as error:
        found.problems.append(f"{file} does not load ({one_line(error)})")


def _check_metrics(folder: Path, run: Run | None, found: Verification) -> None:
    """The metrics have a row for each step of the loop, once and in order, up to the newest
    checkpoint, which a finished run has at its end."""
    # Read before the metrics: a loop at work writes a step's row before its checkpoint.
    done = max(run.checkpoints(), default=0) if run is not None else 0
    file = folder / "metrics.parquet"
    try:
        metrics = Metrics(file)
    except UserError:  # told where every table is read
        return
    try:
        state = None if run is None else run.manifest.get("state")
    except UserError as error:
        found.problems.append(str(error))
        return
    steps = [step for row in metrics.rows if isinstance(step := row.get("step"), int)]
    if len(steps) < len(metrics.rows):
        found.problems.append(f"{file} has rows without a step")
        return
    if steps != sorted(set(steps)):
        found.problems.append(f"{file} does not have each step once and in order")
    if run is None or state in (None, "new"):  # no loop has been here
        return
    if state == "finished" and done < (end := run.recipe.train.steps):
        found.problems.append(f"{run.path} is finished, but has no checkpoint of step {end}")
        done = end
    if lost := metrics.missing(run, done):
        found.problems.append(f"{file} lacks {named_steps(lost)} of the {done} that are done")


def _check_checkpoint(folder: Path, found: Verification) -> None:
    """The files of a checkpoint are those that were saved."""
    try:
        recorded = read_json(folder / "castctl.json").get("sha256")
    except UserError:  # told where every JSON file is read
        return
    if not isinstance(recorded, dict):
        found.unsealed.append(folder)
        return
    there = digests_of(folder)
    for name, digest in recorded.items():
        if name not in there:
            found.problems.append(f"{folder / name} is gone")
        elif there[name] != digest:
            found.problems.append(f"{folder / name} is not as it was saved; take another step's")


def _check_table(file: Path, kind: str, found: Verification) -> None:
    """A table beside the parts that is as it was written."""
    if not file.exists():
        return
    try:
        table, made = read_table(file, kind)
    except UserError as error:
        if not any(problem.startswith(str(file)) for problem in found.problems):
            found.problems.append(str(error))
    else:
        # Parquet has a name of its own for what is in a list, and hashes count it.
        named = {f.name: pa.list_(f.type.value_type) if pa.types.is_list(f.type) else f.type
                 for f in table.schema}  # fmt: skip
        _check_content(file, made or {}, table.cast(pa.schema(named)), found)


def _check_json(files: list[Path], found: Verification) -> None:
    for file in files:
        try:
            read_json(file)
        except UserError as error:
            found.problems.append(str(error))
