"""Parts that are damaged or made elsewhere are refused in one line, wherever they are read."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import castctl
from castctl.errors import UserError
from castctl.inspection.part import view_part
from castctl.inspection.sample import view_sample
from castctl.inspection.step import view_step
from castctl.inspection.target import find_target
from castctl.inspection.tokens import TokenTexts
from castctl.inspection.verify import verify
from castctl.methods import MethodSettings
from castctl.progress import Silent
from castctl.report.html.payload import collect_completions
from castctl.shards.part import METADATA_KEY, read_part
from castctl.shards.stage import StepFolder
from castctl.stages.shape import shape_step
from mutants import nested
from random_steps import write_step


@pytest.fixture
def step(tmp_path: Path) -> StepFolder:
    """A step of two parts that no run knows."""
    return write_step(tmp_path / "made/step-00000", np.random.default_rng(0), prompts=6)


def rewritten(
    path: Path, change: Callable[[pa.Table], pa.Table] = lambda table: table,
    said: Callable[[dict[str, Any]], Any] | None = None,
) -> None:  # fmt: skip
    """Another table in a part's place, and other metadata: none unless `said` changes them."""
    table = pq.read_table(path)
    raw = None
    if said is not None:
        made = json.loads(table.schema.metadata[METADATA_KEY])
        made.pop("content", None)  # as an older castctl wrote it, without a seal
        raw = {METADATA_KEY: json.dumps(said(made)).encode()}
    pq.write_table(change(table).replace_schema_metadata(raw), path)


def told(error: UserError) -> str:
    line = str(error)
    assert "\n" not in line and len(line) < 1000, line[:2000]
    assert "memory" not in line
    return line


def shape(step: StepFolder) -> None:
    settings = MethodSettings.model_validate({"name": "cast"})
    shape_step(step, settings, longest=12, progress=Silent(), overwrite=True)


def whole(step: StepFolder) -> None:
    found = verify(find_target(str(step.path)), Silent())
    if found.problems:
        raise UserError(found.problems[0])


def report(step: StepFolder) -> None:
    notes = collect_completions([step], None).notes
    if notes:
        raise UserError(notes[0])


CONSUMERS: dict[str, Callable[[StepFolder], object]] = {
    "inspect": lambda step: view_step(step, {}),
    "sample": lambda step: view_sample(step, "prompt0/0", "advantage", TokenTexts(None)),
    "verify": whole,
    "report": report,
    "diagnose flips": lambda step: castctl.diagnose("flips", step.path, quiet=True),
    "shape": shape,
}
"""Shaping is last, since it makes the advantages again."""


def refusals(step: StepFolder, *names: str) -> Iterator[tuple[str, str]]:
    """Of each consumer that refuses a step, or of these, what it says; the others take it."""
    for name in names or CONSUMERS:
        try:
            CONSUMERS[name](step)
        except UserError as error:
            yield name, told(error)


# Files that are no whole Parquet


def test_every_reader_tells_of_a_part_cut_short(step: StepFolder) -> None:
    path = step.part_path("rollouts", 0)
    os.truncate(path, path.stat().st_size - 30)
    said = dict(refusals(step))
    assert said.keys() == CONSUMERS.keys()
    assert all(str(path) in line and "cut short" in line for line in said.values())
    for name in ("self-gaps", "groups", "engine", "confidence", "credit", "opsd-gaps"):
        with pytest.raises(UserError, match="cut short"):
            castctl.diagnose(name, step.path, quiet=True)


def test_a_column_that_appears_twice_is_named(step: StepFolder) -> None:
    path = step.part_path("rollouts", 0)
    rewritten(path, lambda table: table.append_column("prompt_id", table["prompt_id"]))
    said = dict(refusals(step))
    assert said.keys() == CONSUMERS.keys()
    assert all("has column prompt_id 2 times" in line for line in said.values())


def test_a_column_of_ones_own_may_appear_twice(step: StepFolder) -> None:
    path = step.part_path("rewards", 0)
    mine = pa.array(range(pq.read_table(path).num_rows))
    rewritten(path, lambda table: table.append_column("x", mine).append_column("x", mine))
    assert [c.name for c in view_part(path, "rewards").columns].count("x") == 2


def test_a_file_is_not_blamed_for_want_of_memory(
    step: StepFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_memory(*_: Any, **__: Any) -> None:
        raise pa.ArrowMemoryError("malloc of size 99 failed")

    monkeypatch.setattr(pq.ParquetFile, "read", no_memory)
    with pytest.raises(UserError, match=r"not enough memory to read .*free some") as caught:
        step.read("rollouts", 0)
    assert "cut short" not in str(caught.value) and "delete" not in str(caught.value)


# Metadata

WRONG: dict[str, tuple[str, Callable[[dict[str, Any]], Any]]] = {
    "inputs no object": ("signals", lambda said: {**said, "inputs": ["x"]}),
    "inputs of numbers": ("advantages", lambda said: {**said, "inputs": {"rollouts": 1}}),
    "signals no object": ("signals", lambda said: {**said, "signals": "all"}),
    "a signal no object": ("signals", lambda said: {**said, "signals": {"entropies": 3}}),
    "teacher no object": (
        "signals", lambda said: {**said, "signals": {"teacher_logprobs": {"teacher": "me"}}}
    ),
    "a teacher that is renewed never": (
        "signals",
        lambda said: {**said, "signals": {"teacher_logprobs": {"teacher": {
            "kind": "snapshot", "every": 0}}}},
    ),
    "temperature no number": ("rollouts", lambda said: {**said, "temperature": "hot"}),
    "temperature not finite": ("rollouts", lambda said: {**said, "temperature": float("nan")}),
    "a long stage": ("rollouts", lambda said: {**said, "stage": "x" * 100_000}),
    "a stage that is no text": ("rollouts", lambda said: {**said, "stage": {"a": 1}}),
    "sampling no object": ("rollouts", lambda said: {**said, "sampling": []}),
    "a step that is none": ("rewards", lambda said: {**said, "step": -1}),
    "nested deep": ("rollouts", lambda said: {**said, "mine": nested(100)}),
    "nested deeper": ("rollouts", lambda said: {**said, "mine": nested(900)}),
    "settings no object": ("advantages", lambda said: {**said, "settings": 7}),
    "half a character": ("rollouts", lambda said: {**said, "mine": "\ud800"}),
    "too long": ("rollouts", lambda said: {**said, "mine": "x" * 2_000_000}),
    "a list": ("rollouts", lambda said: [said]),
}  # fmt: skip


@pytest.mark.parametrize("wrong", WRONG)
def test_metadata_of_a_wrong_type_is_refused_by_all_who_read_the_part(
    step: StepFolder, wrong: str
) -> None:
    stage, change = WRONG[wrong]
    path = step.part_path(stage, 0)
    rewritten(path, said=change)
    with pytest.raises(UserError) as caught:
        read_part(path, stage)
    assert str(path) in told(caught.value)
    said = dict(refusals(step, "inspect", "verify", "report"))
    assert len(said) == 3 and all(str(path) in line for line in said.values())


def test_a_shaping_that_is_none_is_refused(step: StepFolder) -> None:
    for shaping in ("abacus", {"kind": "abacus"}, {"kind": "cast", "lam": "x"}, 3, None):
        rewritten(step.part_path("advantages", 0), said=lambda said, value=shaping: {
            **said, "settings": {**said["settings"], "shaping": value}})  # fmt: skip
        said = dict(refusals(step, "inspect", "diagnose flips"))
        assert len(said) == 2
        assert "that this castctl does not know" in said["diagnose flips"]
        shape(step)


def test_settings_that_differ_are_told_in_a_short_line(step: StepFolder) -> None:
    """However long the settings are."""
    for part, size in ((0, 100_000), (1, 100_001)):
        rewritten(step.part_path("rollouts", part), said=lambda said, size=size: {
            **said, "model": "x" * size})  # fmt: skip
    with pytest.raises(UserError, match="mixes rollouts that do not belong together") as caught:
        step.refuse_mixed("rollouts")
    told(caught.value)


# Lists of another length than the completion


@pytest.mark.parametrize("stage, name", [
    ("rollouts", "sampler_logprobs"), ("signals", "entropies"), ("signals", "importance_grad"),
    ("signals", "teacher_logprobs"), ("advantages", "flipped"), ("advantages", "weights"),
    ("advantages", "loss_weights"), ("advantages", "advantages"),
])  # fmt: skip
@pytest.mark.parametrize("longer", [True, False])
def test_lists_of_another_length_are_refused_by_all_who_read_them(
    step: StepFolder, stage: str, name: str, longer: bool
) -> None:
    path = step.part_path(stage, 0)

    def changed(table: pa.Table) -> pa.Table:
        value = 1.0 if name != "flipped" else True
        rows = [[value] * (len(row or []) + 1) if longer else (row or [])[:-1] or None
                for row in table[name].to_pylist()]  # fmt: skip
        if name == "advantages" and not longer:
            rows = [row or [] for row in rows]
        place = table.column_names.index(name)
        return table.set_column(place, name, pa.array(rows, table.schema.field(name).type))

    if name == "loss_weights" and not longer:
        pytest.skip("there are none to cut")
    rewritten(path, changed)
    said = dict(refusals(step, "inspect", "verify", "report", "sample"))
    assert len(said) == 4 and all(str(path) in line for line in said.values())


def test_a_part_that_agrees_with_itself_but_not_with_the_rollouts_is_refused(
    step: StepFolder,
) -> None:
    path = step.part_path("advantages", 0)
    names = ("advantages", "weights", "flipped", "distill_weights", "loss_weights")

    def longer(table: pa.Table) -> pa.Table:
        for name in names:
            rows = [None if row is None else [*row, True if name == "flipped" else 1.0]
                    for row in table[name].to_pylist()]  # fmt: skip
            place = table.column_names.index(name)
            table = table.set_column(place, name, pa.array(rows, table.schema.field(name).type))
        return table

    rewritten(path, longer)
    said = dict(refusals(step, "verify", "report", "sample", "diagnose flips"))
    assert len(said) == 4
    assert all("tokens there; make advantages again" in line for line in said.values())


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
def test_a_reward_is_a_number_or_null(step: StepFolder, value: float) -> None:
    path = step.part_path("rewards", 0)
    rewritten(path, lambda table: table.set_column(
        2, "reward", pa.array([value] * table.num_rows, pa.float32())))  # fmt: skip
    with pytest.raises(UserError, match="a reward is neither finite nor null"):
        read_part(path, "rewards")


@pytest.mark.parametrize("span", [(-1, 0), (1, 0), (None, 1), (1, None), (0, 99)])
def test_an_answer_lies_in_its_completion(
    step: StepFolder, span: tuple[int | None, int | None]
) -> None:
    path = step.part_path("rewards", 0)

    def changed(table: pa.Table) -> pa.Table:
        for name, value in zip(("answer_start", "answer_end"), span, strict=True):
            values = pa.array([value] * table.num_rows, pa.int32())
            table = table.drop_columns([name]).append_column(name, values)
        return table

    rewritten(path, changed)
    assert len(dict(refusals(step, "verify", "sample", "shape"))) == 3


# Completions that no model can have made


def test_a_completion_longer_than_the_context_is_refused_by_score_and_train(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from runs import small_recipe

    monkeypatch.chdir(tmp_path)
    recipe = small_recipe("grpo")
    run = castctl.create_run(recipe, tmp_path / "runs/a")
    write_step(run.step(0).path, np.random.default_rng(0), prompts=2, parts=1, longest=50_000,
               kinds=["mixed"], method=recipe.method.model_dump())  # fmt: skip
    for act in (castctl.update, lambda run: castctl.score(run, overwrite=True, quiet=True)):
        with pytest.raises(UserError, match="pass the model's 4096 positions") as caught:
            act(run)
        told(caught.value)
