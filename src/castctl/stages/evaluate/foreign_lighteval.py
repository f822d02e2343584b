"""Details of lighteval, as `--save-details` writes them: a Parquet file a task, a row a problem.

A row has `doc` (`query`, `choices`, `gold_index`, `original_query`, ...), `model_response`
(`input`, `text`: the samples, ...) and `metric`, a value for each, as version 0.13 writes them
(`lighteval.logging.info_loggers.DetailsLogger.Detail`, `lighteval.tasks.requests.Doc`). Older
versions had `full_prompt`, `predictions` and `gold`, which are not read.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from castctl.data.files import read_file
from castctl.errors import UserError
from castctl.stages.evaluate.foreign import Completions, Sample, after, reward_of
from castctl.stages.evaluate.foreign_lm_eval import gold_of

NEEDED = ("doc", "model_response")
FORMER = ("full_prompt", "predictions", "gold")
"""Columns that tell such a file from another, and those that older versions wrote."""

METRICS = ("extractive_match", "avg", "pass", "math_pass", "exact_match", "em", "qem")
"""Metrics that say whether an answer is right, by their names before an `@` or a `:`; the first one
there counts."""

_NAME = re.compile(r"details_(?P<task>.+)_\d{4}-\d{2}-\d{2}T[\d.-]+")


def details_files(folder: Path) -> list[Path]:
    """The files of details in a folder and those below it, by name."""
    return [file for file in sorted(folder.rglob("details_*.parquet")) if is_details_file(file)]


def is_details_file(path: Path) -> bool:
    """Whether a file is one, by its columns."""
    columns = set(read_file(path).columns)
    return set(NEEDED) <= columns or set(FORMER) <= columns


def read_details(path: Path) -> Completions:
    """The samples of each problem.

    A problem is the one before its prompt was made where the file has that, else the prompt. Its
    answer is the last box of its reference, or what follows GSM8K's `####`, or the reference; one
    with several references has none.
    Raises `UserError` for a file of an older version, and where the responses are no text, as of a
    task of multiple choice.
    """
    rows = read_file(path)
    if not set(NEEDED) <= set(rows.columns):
        raise UserError(
            f"{path} holds details of an older lighteval (predictions, gold), which are not read; "
            "evaluate with a newer one, or write problems, completions and answers as JSONL"
        )
    samples, several, metrics = [], 0, set[str]()
    for number, row in enumerate(rows.read([*NEEDED, "metric"])):
        doc, response = row["doc"], row["model_response"]
        texts = response.get("text") if isinstance(response, dict) else None
        if not isinstance(doc, dict) or not texts:
            raise UserError(
                f"{path}, row {number} counted from 0: no generated text, but likelihoods of given "
                "choices or nothing; take a task that generates"
            )
        golds = list(_golds(doc))
        several += len(set(golds)) > 1
        answer = gold_of(golds[0]) if len(set(golds)) == 1 else None
        problem = str(doc.get("original_query") or doc.get("query") or "").strip()
        if not problem:
            raise UserError(f"{path}, row {number} counted from 0: doc holds no query")
        name, value = _verdict(row.get("metric"))
        # A metric is the problem's: only of one sample does it say whether that one is right.
        reward = reward_of(value, name) if len(texts) == 1 else None
        metrics |= {name} if reward is not None else set()
        made = after(response.get("input"), [str(text) for text in texts])
        samples += [Sample(problem, answer, text, reward) for text in made]
    if not samples:
        raise UserError(f"{path} holds no problem; run lighteval with --save-details again")
    notes = [f"{several} problems with several reference answers, of which any is right for "
             "lighteval"] if several else []  # fmt: skip
    grader = f"its {', '.join(sorted(metrics))}" if metrics else None
    return Completions(_task(path), path, samples, grader, notes)


def _golds(doc: dict[str, Any]) -> Iterator[str]:
    """The references of a problem."""
    choices, index = doc.get("choices") or [], doc.get("gold_index")
    for at in index if isinstance(index, list) else [index]:
        if isinstance(at, int) and 0 <= at < len(choices):
            yield str(choices[at]).strip()


def _verdict(metric: Any) -> tuple[str, Any]:
    """The metric that says whether an answer is right, and its value."""
    values = metric if isinstance(metric, dict) else {}
    found = {re.split("[:@]", name)[0]: name for name in values if values[name] is not None}
    name = next((found[head] for head in METRICS if head in found), "")
    return name, values.get(name)


def _task(path: Path) -> str:
    """The task's name, for a folder: `aime24-0` of `details_aime24|0_DATE.parquet`."""
    found = _NAME.fullmatch(path.stem)
    return (found["task"] if found else path.stem).replace("|", "-").replace(":", "-")
