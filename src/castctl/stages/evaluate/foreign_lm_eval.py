"""Sample files of lm-evaluation-harness, as `--log_samples` writes them.

One JSON object a line, for each document and filter: `doc_id`, `doc`, `target`, `arguments`,
`resps` (for each request its responses), `filtered_resps`, `filter`, and a key for each metric
(`lm_eval.loggers.EvaluationTracker.save_results_samples` of versions 0.4). The first of these
versions wrote one indented array, named after the model, and no `filter`.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import reduce
from pathlib import Path
from typing import Any

from castctl.data.columns import PROBLEM, Columns, read_example
from castctl.data.files import SUFFIXES, Row, read_file, split_name
from castctl.errors import UserError
from castctl.stages.evaluate.foreign import Completions, Sample, after, reward_of, texts_of
from castctl.verify.boxed import last_boxed

NAMED = "samples_"
NEEDED = ("doc", "target", "resps")
"""Keys that tell such a file from another."""

_REQUEST = ("doc_id", "doc", "target", "arguments", "resps")
"""Keys that all lines of a request share, whatever the filter."""

METRICS = ("exact_match", "math_verify", "acc")
"""Metrics that say whether an answer is right, the first one there counts."""


@dataclass
class _Requests:
    """A document's requests with their responses, which one filter or several have read."""

    row: Row
    verdicts: dict[str, float] = field(default_factory=dict)
    """By filter."""


def sample_files(folder: Path) -> list[Path]:
    """The sample files in a folder and those below it, by name; where none has a name of today's,
    those with their keys."""
    files = sorted(path for path in folder.rglob("*.jsonl*") if split_name(path)[1] in SUFFIXES)
    return [path for path in files if path.name.startswith(NAMED)] or [
        path for path in files if is_sample_file(path)
    ]


def is_sample_file(path: Path) -> bool:
    """Whether a file is one, by its keys."""
    return set(NEEDED) <= set(read_file(path).columns)


def read_samples(path: Path) -> Completions:
    """The responses in a sample file, each once, whatever the number of filters; of a document's
    lines with other responses, all.

    Raises `UserError` where the responses are no text, as of a task of multiple choice.
    """
    rows = list(read_file(path).read(()))
    if not rows:
        raise UserError(f"{path} is empty; run lm-evaluation-harness with --log_samples again")
    found = _requests(rows)
    samples = []
    for requests in found:
        try:
            samples += _samples(requests)
        except UserError as error:
            raise UserError(f"{path}, doc_id {requests.row.get('doc_id')}: {error}") from None
    metrics = sorted({metric for metric in map(_metric, rows) if metric is not None})
    return Completions(
        split_name(path)[0], path, samples, f"its {', '.join(metrics)}" if metrics else None,
        list(_notes(found)),
    )  # fmt: skip


def _requests(rows: list[Row]) -> list[_Requests]:
    """The lines put together that differ in the filter alone.

    Lines that are the same for one filter too are of responses that happen to be the same.
    Without a `filter`, as many lines as all requests have in common are of as many filters.
    """
    keys = [json.dumps([row.get(name) for name in _REQUEST], default=str) for row in rows]
    unnamed = [key for key, row in zip(keys, rows, strict=True) if row.get("filter") is None]
    filters = reduce(math.gcd, Counter(unnamed).values(), 0)
    seen: Counter[tuple[str, str | None]] = Counter()
    found: dict[tuple[str, int], _Requests] = {}
    for key, row in zip(keys, rows, strict=True):
        name = row.get("filter")
        time = seen[key, name]
        seen[key, name] += 1
        if name is None:
            time, number = divmod(time, filters)
            name = f"{number + 1} without a name"
        requests = found.setdefault((key, time), _Requests(row))
        if (metric := _metric(row)) is not None:
            requests.verdicts[name] = reward_of(row[metric], metric) or 0.0
    return list(found.values())


def _samples(requests: _Requests) -> list[Sample]:
    row = requests.row
    problem, answer = _problem(row), gold_of(row.get("target"))
    resps = row["resps"]
    if not isinstance(resps, list) or any(
        not isinstance(text, str)
        for responses in resps
        for text in (responses if isinstance(responses, list) else [responses])
    ):
        raise UserError(
            "resps holds no generated text, but likelihoods of given choices; take a task whose "
            "output_type is generate_until"
        )
    texts = after(_argument(row.get("arguments")), texts_of(resps, "resps"))
    # A metric is the document's: only of one response does it say whether that one is right.
    own = max(requests.verdicts.values(), default=None) if len(texts) == 1 else None
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


def gold_of(target: Any) -> str | None:
    """The target, its last box where it has one, or what follows GSM8K's `####`."""
    text = target if isinstance(target, str) else json.dumps(target)
    box = last_boxed(text)
    if box is not None and box.content.strip():
        return box.content.strip()
    row = {"problem": "-", "answer": text}
    return read_example(row, Columns("problem", "answer", None), Counter()).answer


def _notes(found: Iterable[_Requests]) -> Iterable[str]:
    filters = sorted({name for requests in found for name in requests.verdicts})
    if len(filters) > 1:
        yield (
            f"filters {', '.join(filters)} read the same responses: each is graded once, and was "
            "right where one of them found it so"
        )
