"""A run's evaluations with their samples, for those who write them on."""

from __future__ import annotations

import datetime
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pydantic import ValidationError

from castctl.data.conversation import earlier_in
from castctl.data.messages import MessagesTemplate
from castctl.errors import UserError
from castctl.recipe.problems import problems as problems_in
from castctl.recipe.public import public_name
from castctl.recipe.recipe import DataSettings
from castctl.runs.run import Run
from castctl.shards.part import read_metadata
from castctl.shards.stage import StepFolder, check_aligned
from castctl.stages.evaluate.results import Result, read_result
from castctl.stages.groups import group_numbers

Message = dict[str, str]
"""`role` and `content`."""


@dataclass(frozen=True)
class Problem:
    """One problem with its samples: rows of rollouts and rewards, and what was asked."""

    problem: str
    answer: str | None
    asked: list[Message]
    mean: float
    """Mean reward, as the result says it."""
    samples: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class Evaluation:
    """One evaluation; `model` is its model's name for strangers."""

    name: str
    model: str
    result: Result
    made: datetime.datetime
    """When the result was written, in UTC."""
    problems: list[Problem]

    @property
    def k(self) -> int:
        return int(self.result["k"])

    @property
    def sampling(self) -> dict[str, Any]:
        """How it sampled; nothing where that is not known."""
        return self.result.get("sampling") or {}


def evaluations(run: Run, step: int | None) -> Iterator[Evaluation]:
    """Those of a run that are done, by name and step, or those at one step.

    Raises `UserError` where there are none, and where a result is not that of the samples beside
    it.
    """
    found = sorted(run.path.glob("eval/*/step-*/results.json"))
    folders = [_step_folder(file.parent) for file in found]
    asked = [folder for folder in folders if step in (None, folder.step)]
    if not asked:
        there = sorted({folder.step for folder in folders})
        at = "" if step is None else f" at step {step}"
        hint = f"; steps there: {', '.join(map(str, there))}" if there else ""
        raise UserError(f"{run.path} has no evaluation{at}{hint}; castctl eval makes one")
    for folder in asked:
        yield _evaluation(run, folder)


def _step_folder(path: Path) -> StepFolder:
    match = re.fullmatch(r"step-(\d+)", path.name)
    return StepFolder(path, int(match[1]) if match else 0)


def _evaluation(run: Run, folder: StepFolder) -> Evaluation:
    result = read_result(folder)
    assert result is not None, "its file is there"
    tables = []
    for number in folder.require_parts("rollouts", "its samples are gone; evaluate again"):
        rollouts, rewards = (folder.read(stage, number) for stage in ("rollouts", "rewards"))
        check_aligned(rollouts, [("rewards", rewards)], "rollouts")
        judged = rewards.table.drop_columns(["prompt_id", "sample"])
        table = rollouts.table
        for name in judged.column_names:
            table = table.append_column(name, judged[name])
        tables.append(table)
    rows = pa.concat_tables(tables)
    written = os.stat(folder.path / "results.json").st_mtime
    return Evaluation(
        name=folder.path.parent.name,
        model=model_name(run, result),
        result=result,
        made=datetime.datetime.fromtimestamp(written, datetime.UTC),
        problems=_problems(folder, result, rows),
    )


def model_name(run: Run, result: Result) -> str:
    """The evaluated model by a name that says nothing of this machine: RUN/step-00050 of what a run
    has trained, or else what the model is called."""
    step = int(result.get("step", 0))
    if step > 0:
        return f"{run.name}/step-{step:05d}"
    named = public_name(str(result.get("model_path") or run.name))
    return named if re.fullmatch(r"\w[\w. -]*(/\w[\w.-]*)?", named) else run.name


def _problems(folder: StepFolder, result: Result, rows: pa.Table) -> list[Problem]:
    of_R = group_numbers(rows["prompt_id"])
    firsts = np.unique(of_R, return_index=True)[1]
    questions = _questions(folder, result, rows.take(pa.array(firsts)))
    named, problems = result.get("by_problem", {}), []
    samples = rows.to_pylist()
    for number, first in enumerate(firsts):
        mine = [samples[row] for row in np.flatnonzero(of_R == number)]
        known = [sample["reward"] for sample in mine if sample["reward"] is not None]
        mean = named.get(mine[0]["prompt_id"])
        if known and (mean is None or abs(float(np.mean(known)) - mean) > 1e-6):
            raise UserError(
                f"{folder.path}: results.json is not that of the rewards beside it, of problem "
                f"{mine[0]['prompt_id']} first; castctl eval --rescore {folder.path} --overwrite "
                "makes both agree"
            )
        row = samples[first]
        told = Problem(row["problem"], row["answer"], questions[number], mean or 0.0, mine)
        problems.append(told)
    return problems


def _questions(folder: StepFolder, result: Result, problems: pa.Table) -> list[list[Message]]:
    """The messages that each problem was asked with; of completions from elsewhere, and of a prompt
    that was not recorded, the problem and what was said before it."""
    asked = [
        (row["problem"], earlier_in(row["earlier"]))
        for row in problems.select(["problem", "earlier"]).to_pylist()
    ]
    settings = result.get("prompt")
    first = read_metadata(folder.part_path("rollouts", folder.parts("rollouts")[0]), "rollouts")
    if not isinstance(settings, dict) or first is None:
        return [
            [*(message._asdict() for message in earlier), {"role": "user", "content": problem}]
            for problem, earlier in asked
        ]
    try:
        data = DataSettings.model_validate(settings)
    except ValidationError as error:
        raise UserError(
            f"{folder.path / 'results.json'}: {problems_in(DataSettings, error)}; evaluate again "
            "with --overwrite"
        ) from None
    return [
        question.get("messages") or [{"role": "user", "content": question["prompt"]}]
        for question in MessagesTemplate(data).questions(asked)
    ]
