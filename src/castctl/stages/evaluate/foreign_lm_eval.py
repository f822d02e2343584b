"""Sample files of lm-evaluation-harness, as `--log_samples` writes them.

One JSON object a line, for each document and filter: `doc_id`, `doc`, `target`, `arguments`,
`resps` (for each request its responses), `filtered_resps`, `filter`, and a key for each metric
(`lm_eval.loggers.EvaluationTracker.save_results_samples` of versions 0.4).
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from castctl.data.columns import PROBLEM, Columns, read_example
from castctl.data.files import Row, read_file
from castctl.errors import UserError
from castctl.stages.evaluate.foreign import Completions, Sample, after, reward_of, texts_of
from castctl.verify.boxed import last_boxed

PATTERN = "samples_*.jsonl"
NEEDED = ("doc", "target", "resps")
"""Keys that tell such a file from another."""

METRICS = ("exact_match", "math_verify", "acc")
"""Metrics that say whether an answer is right, the first one there counts."""


@dataclass
class _Document:
    """A document's lines; filters read the same responses."""

    row: Row
    verdicts: dict[str, float] = field(default_factory=dict)
    """By filter."""


def sample_files(folder: Path) -> list[Path]:
    """The sample files in a folder and those below it, by name."""
    return sorted(path for path in folder.rglob(PATTERN) if path.is_file())


def is_sample_file(path: Path) -> bool:
    """Whether a file is one, by its name and its keys."""
    return path.match(PATTERN) and set(NEEDED) <= set(read_file(path).columns)


def read_samples(path: Path) -> Completions:
    """The responses in a sample file, each once, whatever the number of filters.

    Raises `UserError` where the responses are no text, as of a task of multiple choice.
    """
    documents: dict[str, _Document] = {}
    metrics: set[str] = set()
    for number, row in enumerate(read_file(path).read(())):
        document = documents.setdefault(str(row.get("doc_id", number)), _Document(row))
        metric = _metric(row)
        if metric is not None:
            reward = reward_of(row[metric], metric)
            metrics.add(metric)
            document.verdicts[str(row.get("filter"))] = reward or 0.0
    if not documents:
        raise UserError(f"{path} is empty; run lm-evaluation-harness with --log_samples again")
    samples = []
    for key, document in documents.items():
        try:
            samples += _samples(document)
        except UserError as error:
            raise UserError(f"{path}, doc_id {key}: {error}") from None
    return Completions(
        path.stem, path, samples, f"its {', '.join(sorted(metrics))}" if metrics else None,
        list(_notes(documents.values())),
    )  # fmt: skip


def _samples(document: _Document) -> list[Sample]:
    row = document.row
    problem, answer = _problem(row), _answer(row.get("target"))
    requests = row["resps"]
    if not isinstance(requests, list) or any(
        not isinstance(text, str)
        for responses in requests
        for text in (responses if isinstance(responses, list) else [responses])
    ):
        raise UserError(
            "resps holds no generated text, but likelihoods of given choices; take a task whose "
            "output_type is generate_until"
        )
    texts = after(_argument(row.get("arguments")), texts_of(requests, "resps"))
    # A metric is the document's: only of one response does it say whether that one is right.
    own = max(document.verdicts.values(), default=None) if len(texts) == 1 else None
    return [Sample(problem, answer, text, own) for text in texts]


def _metric(row: Row) -> str | None:
    named = row.get("metrics")
    candidates = named if isinstance(named, list) else list(row)
    return next((name for name in METRICS if name in candidates and name in row), None)


def _problem(row: Row) -> str:
    """The document's problem by its usual names; else the prompt, few-shot examples included."""
    doc = row["doc"]
    if isinstance(doc, dict):
        name = next((name for name in PROBLEM if isinstance(doc.get(name), str)), None)
        if name is not None and doc[name].strip():
            return str(doc[name]).strip()
    prompt = _prompt(row.get("arguments"))
    if not prompt:
        raise UserError(f"neither doc nor arguments holds the problem ({', '.join(PROBLEM)})")
    return prompt


def _prompt(arguments: Any) -> str:
    """The text of the first request, of a chat its last message."""
    text = _argument(arguments)
    try:
        messages = json.loads(text)
        return str(messages[-1]["content"]).strip()
    except (ValueError, TypeError, KeyError, IndexError):
        return text.strip()


def _argument(arguments: Any) -> str:
    """The first argument of the first request: a text, or a chat as JSON in a list."""
    first = arguments
    while isinstance(first, dict | list) and first:
        first = next(iter(first.values())) if isinstance(first, dict) else first[0]
    return first if isinstance(first, str) else ""


def _answer(target: Any) -> str | None:
    """The target, its last box where it has one, or what follows GSM8K's `####`."""
    text = target if isinstance(target, str) else json.dumps(target)
    box = last_boxed(text)
    if box is not None and box.content.strip():
        return box.content.strip()
    row = {"problem": "-", "answer": text}
    return read_example(row, Columns("problem", "answer", None), Counter()).answer


def _notes(documents: Iterable[_Document]) -> Iterable[str]:
    filters = sorted({name for document in documents for name in document.verdicts})
    if len(filters) > 1:
        yield (
            f"filters {', '.join(filters)} read the same responses: each is graded once, and was "
            "right where one of them found it so"
        )
