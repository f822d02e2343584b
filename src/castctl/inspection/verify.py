"""Is a run whole? Every file is read again and compared with what the others say of it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from castctl.errors import UserError, one_line
from castctl.inspection.target import Target, step_folders
from castctl.progress import Progress
from castctl.shards.part import Part, content_hash
from castctl.shards.schema import ADVANTAGES, SCHEMAS, TOKEN_SIGNALS
from castctl.shards.stage import StepFolder, check_aligned
from castctl.stages.train.metrics import Metrics

STAGES = [stage for stage in SCHEMAS if stage != "prompts"]
TOKEN_LISTS = [*TOKEN_SIGNALS, "sampler_logprobs", *ADVANTAGES.names[5:]]
"""Columns with one value a completion token."""


@dataclass
class Verification:
    """What was read and what is wrong, a line each; `foreign` parts carry no metadata."""

    files: int = 0
    problems: list[str] = field(default_factory=list)
    foreign: list[Path] = field(default_factory=list)


def verify(target: Target, progress: Progress) -> Verification:
    """Check the run, the step, or all stages of the part that `target` names.

    Of each part: that it keeps the contract, has the rows of the others in their order, was
    made from the parts that are there, and says the step and number it is filed under. Of each
    step: that its stages have the same parts. Of checkpoints: that the tensors are all there.
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
        _check_metrics(run_folder / "metrics.parquet", found)
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
    if whole:
        try:
            step.refuse_mixed("rollouts")
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
    return part


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
            continue
        if base_stage == "rollouts":
            _check_lengths(base, part, found)
    if prompts is not None and "rollouts" in parts:
        hashes["prompts"] = _prompts_hash(prompts.table, parts["rollouts"].table)
    for part in parts.values():
        recorded = (part.metadata or {}).get("inputs", {})
        if not isinstance(recorded, dict):
            found.problems.append(f"{part.path} does not say what it was made from")
            continue
        for stage, digest in recorded.items():
            if stage in hashes and digest != hashes[stage]:
                found.problems.append(f"{part.path} was made from other {stage} than are there")


def _check_lengths(rollouts: Part, part: Part, found: Verification) -> None:
    """One value a completion token, where there are values."""
    tokens = rollouts.table["completion_token_ids"].combine_chunks().value_lengths()
    for name in TOKEN_LISTS:
        if name in part.table.column_names:
            same = pc.equal(part.table[name].combine_chunks().value_lengths(), tokens)
            if not pc.all(same, min_count=0).as_py():
                found.problems.append(f"{part.path}: {name} has not one value a completion token")


def _prompts_hash(prompts: pa.Table, rollouts: pa.Table) -> str:
    """The hash of the prompts that these rollouts continue, in their order."""
    ids = pa.array(dict.fromkeys(rollouts["prompt_id"].to_pylist()), pa.string())
    rows = pc.index_in(ids, prompts["prompt_id"].combine_chunks())
    return content_hash(prompts.take(rows.drop_null()))


def _check_tensors(file: Path, found: Verification) -> None:
    """A safetensors file's header is sound and the tensors it names are all there."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="numpy"):
            pass
    except (SafetensorError, OSError) as error:
        found.problems.append(f"{file} does not load ({one_line(error)})")


def _check_metrics(file: Path, found: Verification) -> None:
    if not file.exists():
        return
    try:
        Metrics(file)
    except UserError as error:
        found.problems.append(str(error))


def _check_json(files: list[Path], found: Verification) -> None:
    for file in files:
        try:
            json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            found.problems.append(f"{file} is no JSON")
