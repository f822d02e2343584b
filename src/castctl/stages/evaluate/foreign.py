"""Completions made elsewhere: their problem, answer and text in a file of rows."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from castctl.data.columns import find_columns, read_example
from castctl.data.conversation import Earlier
from castctl.data.files import read_file, split_name
from castctl.data.prompts import prompt_id
from castctl.errors import UserError
from castctl.recipe.recipe import DataSettings
from castctl.verify.visible import OPENED, opens_thoughts

COMPLETION = (
    "completion", "completions", "response", "responses", "output", "outputs", "generation",
    "generations", "model_output", "prediction",
)  # fmt: skip
PROMPT = ("prompt", "input")
VERDICT = (
    "correct", "is_correct", "acc", "accuracy_reward", "reasoning_accuracy_reward", "reward",
    "score", "accuracy",
)  # fmt: skip
FINISH = ("finish_reason",)
"""Usual names of columns, tried in this order, in any case. A verdict comes before a score, which
may hold a penalty or be -1 for a wrong answer (verl, DAPO)."""

TRUE, FALSE = ("true", "yes", "correct", "right"), ("false", "no", "wrong", "incorrect")


@dataclass(frozen=True)
class Sample:
    """One completion; `reward` is what its maker gave it, None where that is not known."""

    problem: str
    answer: str | None
    completion: str
    reward: float | None = None
    finish_reason: str = "stop"
    earlier: Earlier = ()

    @property
    def prompt_id(self) -> str:
        return prompt_id(self.problem, self.answer, self.earlier)


@dataclass(frozen=True)
class Completions:
    """What a file holds; `name` is for the folder that it is graded into."""

    name: str
    path: Path
    samples: list[Sample]
    grader: str | None
    """Who gave the rewards, in words; None where nobody did."""
    notes: list[str] = field(default_factory=list)
    """What a reader must know of how the file was read."""


def read_completions(path: Path, data: DataSettings) -> Completions:
    """The completions in a file of rows with a problem, one completion or several, and an answer.

    `data` names the columns of problem and answer where they are not the usual ones. Raises
    `UserError` for a file that cannot be read, lacks a column, or holds no completion.
    """
    rows = read_file(path)
    if not rows.columns:
        raise UserError(f"{path} is empty; write a problem, a completion and an answer a row")
    try:
        columns = find_columns(rows.columns, data)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    completion = _find(rows.columns, COMPLETION)
    if completion is None or (columns.answer is None and columns.solution is None):
        lacks = f"no column of {'completions' if completion is None else 'answers'}"
        needs = (
            f"such as {COMPLETION[0]}"
            if completion is None
            else "such as solution (TRL) or gts (verl)"
        )
        raise UserError(f"{path} has {lacks}, {needs}; its columns: {', '.join(rows.columns)}")
    verdict, finish = _find(rows.columns, VERDICT), _find(rows.columns, FINISH)
    prompt = _find(rows.columns, PROMPT)
    wanted = [*columns.names, *filter(None, (completion, verdict, finish, prompt))]
    counts: Counter[str] = Counter()
    samples: list[Sample] = []
    without = 0
    for number, row in enumerate(rows.read(dict.fromkeys(wanted))):
        try:
            example = read_example(row, columns, counts)
            texts = texts_of(row.get(completion), completion)
            texts = after(row.get(prompt) if prompt else None, texts)
            rewards = _rewards(row.get(verdict) if verdict else None, len(texts), verdict)
        except UserError as error:
            raise UserError(f"{path}, row {number} counted from 0: {error}") from None
        if not example.problem:
            raise UserError(f"{path}, row {number} counted from 0: column {columns.problem} is "
                            "empty; leave such rows out")  # fmt: skip
        without += not texts
        reason = "length" if finish and row.get(finish) == "length" else "stop"
        samples += [
            Sample(example.problem, example.answer, text, reward, reason, example.earlier)
            for text, reward in zip(texts, rewards, strict=True)
        ]
    if not samples:
        raise UserError(f"{path} holds no completion; check its column {completion}")
    notes = [f"{what}: {count}" for what, count in counts.items()]
    if without:
        notes.append(f"{without} rows without a completion left out")
    return Completions(split_name(path)[0], path, samples, verdict and f"column {verdict}", notes)


def texts_of(cell: Any, column: str) -> list[str]:
    """The completions in a cell: a text, chat messages (the last one's text), or a list of such.

    Raises `UserError`, without the place, for anything else.
    """
    if cell is None:
        return []
    if isinstance(cell, str):
        return [cell]
    if isinstance(cell, list) and all(isinstance(item, dict) for item in cell) and cell:
        content = cell[-1].get("content")
        if content is None and "content" in cell[-1]:  # thoughts alone, in a key of their own
            return [""]
        if isinstance(content, str):
            return [content]
    elif isinstance(cell, list):
        return [text for item in cell for text in texts_of(item, column)]
    raise UserError(f"column {column} holds neither text nor messages nor a list of them")


def after(prompt: Any, texts: list[str]) -> list[str]:
    """The completions of a prompt, each after the `<think>` that a prompt of text ends with."""
    opened = OPENED if isinstance(prompt, str) and opens_thoughts(prompt) else ""
    return [opened + text for text in texts]


def reward_of(value: Any, column: str | None) -> float | None:
    """A maker's verdict as a number: a number, a truth value, or a word for one.

    Raises `UserError`, without the place, for anything else.
    """
    if value is None or value == "":
        return None
    word = str(value).strip().lower()
    if word in TRUE or word in FALSE:
        return float(word in TRUE)
    try:
        number = float(word)
        return None if math.isnan(number) else number
    except ValueError:
        shown = json.dumps(value, default=str)[:40]
        raise UserError(f"column {column} holds {shown}, which is no verdict") from None


def _rewards(cell: Any, count: int, column: str | None) -> list[float | None]:
    """One verdict a completion; a row's only verdict is of its only completion."""
    values = cell if isinstance(cell, list) else [cell]
    if cell is None:
        return [None] * count
    if len(values) != count:
        raise UserError(
            f"{count} completions but {len(values)} verdicts in column {column}; give each its own"
        )
    return [reward_of(value, column) for value in values]


def _find(available: Collection[str], usual: tuple[str, ...]) -> str | None:
    by_lower = {name.lower(): name for name in reversed(list(available))}
    return next((by_lower[name] for name in usual if name in by_lower), None)


def numbered(samples: list[Sample]) -> Iterator[tuple[str, int, Sample]]:
    """Prompt id, number and sample: problems in the order of their first sample, a problem's
    samples together."""
    groups: dict[str, list[Sample]] = {}
    for sample in samples:
        groups.setdefault(sample.prompt_id, []).append(sample)
    for key, group in groups.items():
        yield from ((key, number, sample) for number, sample in enumerate(group))
