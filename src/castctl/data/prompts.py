"""Load prompts: the table every stage starts from."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa

from castctl.data.benchmarks import BENCHMARKS, context_column, resolve
from castctl.data.columns import Example, find_columns, read_example
from castctl.data.conversation import Earlier, Message
from castctl.data.files import Row
from castctl.data.lengths import row_too_long
from castctl.data.sources import read_source
from castctl.errors import UserError
from castctl.recipe.recipe import DataSettings
from castctl.shards.schema import PROMPTS

DROPPED = pa.schema(
    [
        pa.field("row", pa.int64(), nullable=False),
        pa.field("prompt_id", pa.string()),
        pa.field("problem", pa.string(), nullable=False),
        pa.field("reason", pa.string(), nullable=False),
    ]
)

EMPTY = "empty problem"
TOO_LONG = "too long"
REPEATED = "repeated rows removed"
REPLACED = "system messages replaced by data.system_prompt"


@dataclass(frozen=True)
class Prompts:
    """The prompts of a data set, and what was left out of them."""

    table: pa.Table
    """Distinct prompts in the order of the data (schema PROMPTS)."""
    rows: pa.Array
    """Row of each prompt in the data, counted from 0: int64, as long as `table`."""
    dropped: pa.Table
    """Rows that are no prompt, with the reason (schema DROPPED)."""
    notes: list[str]
    """What else happened to the rows, a line each, counted."""
    revision: str | None
    """Commit of a hub data set, version of an environment; None for a file."""


def prompt_id(problem: str, answer: str | None, earlier: Earlier = ()) -> str:
    """First 16 hex digits of the SHA-256 of a prompt.

    The bytes hashed are the JSON array `["problem","answer"]` in UTF-8, without spaces
    and with only `"`, `\\` and control characters escaped; a missing answer is `null`. Messages
    before the problem follow as a third element, `[["role","content"],...]`.
    """
    whole = [problem, answer, earlier] if earlier else [problem, answer]
    text = json.dumps(whole, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def load_prompts(data: DataSettings) -> Prompts:
    """Read the prompts that the settings name, each one once.

    Repeated rows (equal conversation and answer) are counted, rows without a problem dropped.
    With `limit` reading ends at that many prompts.

    Raises UserError for data that cannot be read and for data without a single problem.
    """
    resolved = resolve(data)
    source = read_source(resolved)
    if not source.rows.columns:
        raise UserError(f"{source.name} is empty; name a file with a problem in each row")
    columns = find_columns(source.rows.columns, resolved)
    columns = replace(columns, context=context_column(data.path, source.rows.columns))
    counts: Counter[str] = Counter()
    seen: dict[tuple[str, str | None, Earlier], tuple[int, str | None]] = {}
    lost: list[tuple[int, str]] = []
    for number, row in enumerate(source.rows.read(columns.names)):
        if row_too_long(row, columns.names, data.max_prompt_tokens):
            lost.append((number, TOO_LONG))
            continue
        try:
            example = _whole(row) if source.whole else read_example(row, columns, counts)
        except (UserError, RecursionError) as error:
            why = "nested too deep" if isinstance(error, RecursionError) else str(error)
            raise UserError(f"{source.name}, row {number} counted from 0: {why}") from None
        key = example.problem, example.answer, example.earlier
        if data.system_prompt is not None:
            counts[REPLACED] += any(role == "system" for role, _ in example.earlier)
        if not example.problem:
            lost.append((number, EMPTY))
        elif key in seen:
            counts[REPEATED] += 1
        else:
            seen[key] = number, example.solution
            if len(seen) == data.limit:
                break
    if not seen:
        why = " or ".join(sorted({reason.removesuffix(" problem") for _, reason in lost}))
        raise UserError(
            f"column {columns.problem} of {source.name} holds no problem ({len(lost)} rows, all "
            f"{why}); check the data and data.problem_column"
        )
    name = data.path if data.path in BENCHMARKS else source.name
    return Prompts(
        table=pa.Table.from_pylist(
            [
                {
                    "prompt_id": prompt_id(problem, answer, earlier),
                    "problem": problem,
                    "answer": answer,
                    "solution": solution,
                    "source": name,
                    "earlier": [message._asdict() for message in earlier] or None,
                }
                for (problem, answer, earlier), (_, solution) in seen.items()
            ],
            PROMPTS,
        ),
        rows=pa.array([number for number, _ in seen.values()], pa.int64()),
        dropped=pa.Table.from_pylist(
            [{"row": number, "problem": "", "reason": reason} for number, reason in lost], DROPPED
        ),
        notes=[*source.notes, *(f"{what}: {count}" for what, count in counts.items() if count)],
        revision=source.revision,
    )


def _whole(row: Row) -> Example:
    """A row that is a prompt as it stands."""
    earlier = tuple(Message(role, content) for role, content in row["earlier"])
    return Example(row["problem"], row["answer"], row["solution"], earlier)


def drop(prompts: Prompts, which: Sequence[bool], reason: str) -> Prompts:
    """Move the prompts marked in `which` (one flag a prompt) to the dropped rows."""
    mask = np.asarray(which, bool)
    lost = prompts.table.filter(mask)
    dropped = pa.table(
        {
            "row": prompts.rows.filter(mask),
            "prompt_id": lost["prompt_id"],
            "problem": lost["problem"],
            "reason": [reason] * len(lost),
        },
        DROPPED,
    )
    return replace(
        prompts,
        table=prompts.table.filter(~mask),
        rows=prompts.rows.filter(~mask),
        dropped=pa.concat_tables([prompts.dropped, dropped]),
    )


def require_answers(prompts: Prompts) -> Prompts:
    """Drop the prompts without an answer; UserError when none is left."""
    missing = prompts.table["answer"].is_null().to_numpy()
    if missing.all():
        raise UserError(
            f"none of the {len(missing)} problems has an answer to verify against; set "
            "data.answer_column to the column that holds it"
        )
    return drop(prompts, missing, "no answer")
