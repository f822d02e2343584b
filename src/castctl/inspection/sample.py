"""One completion, token by token."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from castctl.errors import UserError
from castctl.inspection import Coloring
from castctl.inspection.tokens import TokenTexts
from castctl.shards.part import Part
from castctl.shards.schema import REWARD, reward_weights
from castctl.shards.stage import StepFolder, check_aligned

COLUMNS = {
    "advantage": ("advantages", "advantages", "castctl shape"),
    "gap": ("signals", "teacher_logprobs", "castctl score --method cast"),
    "weight": ("advantages", "weights", "castctl shape --method cast"),
}
"""For each colouring the stage and column it needs, and the command that makes them."""


@dataclass(frozen=True)
class Token:
    """`text` is None without a tokenizer; each value is None where its stage does not give it."""

    id: int
    text: str | None
    advantage: float | None
    gap: float | None
    weight: float | None
    flipped: bool | None


@dataclass(frozen=True)
class SampleView:
    step: int
    prompt_id: str
    sample: int
    problem: str
    answer: str | None
    completion: str
    finish_reason: str
    verdict: str | None
    reward: float | None
    rewards: dict[str, float]
    """Each of several rewards by its name, which `reward` is the weighted sum of."""
    extracted: str | None
    answer_span: tuple[int, int] | None
    group_kind: str | None
    base: float | None
    tokens: list[Token]


def view_sample(folder: StepFolder, name: str, color: Coloring, texts: TokenTexts) -> SampleView:
    """The completion `name` (PROMPT/N, the prompt's id or the beginning of one).

    Raises `UserError` where there is no such completion, more than one, or no value to colour its
    tokens by.
    """
    prompt_id, sample = _parse(name)
    number, row = _find(folder, prompt_id, sample)
    parts = {s: folder.read(s, number) for s in ("rollouts", "rewards", "signals", "advantages")
             if folder.has(s, number)}  # fmt: skip
    check_aligned(parts["rollouts"], parts.items(), "rollouts")
    rows = {stage: _row(part, row) for stage, part in parts.items()}
    rollout, reward, shaped = (rows.get(s, {}) for s in ("rollouts", "rewards", "advantages"))
    ids = rollout["completion_token_ids"]
    columns = _token_columns(folder, parts, rows, color) if ids else {}
    for column, values in columns.items():
        if values is not None and len(values) != len(ids):
            raise UserError(
                f"{parts['rollouts'].path}: sample {name} has {len(ids)} tokens, but "
                f"{len(values)} of {column}; castctl inspect {folder.path} --verify says more"
            )
    absent = [None] * len(ids)  # without a token there is no column either
    by_token = zip(*(absent if c is None else c for c in columns.values()), strict=True)
    start, end = reward.get("answer_start"), reward.get("answer_end")
    return SampleView(
        step=folder.step,
        prompt_id=rollout["prompt_id"],
        sample=sample,
        problem=rollout["problem"],
        answer=rollout["answer"],
        completion=rollout["completion"],
        finish_reason=rollout["finish_reason"],
        verdict=reward.get("verdict"),
        reward=reward.get("reward"),
        rewards=_several(parts.get("rewards"), reward),
        extracted=reward.get("extracted"),
        answer_span=None if start is None or end is None else (start, end),
        group_kind=shaped.get("group_kind"),
        base=shaped.get("base"),
        tokens=[Token(id, texts.text(id), *v) for id, v in zip(ids, by_token, strict=True)],
    )


def find_prompt(step: StepFolder, ids: Iterable[str], beginning: str) -> str:
    """The one of a step's `ids` that is `beginning` or begins with it; `UserError` otherwise."""
    known = list(dict.fromkeys(ids))
    if beginning in known:
        return beginning
    found = [id for id in known if id.startswith(beginning)]
    if len(found) == 1:
        return found[0]
    shown = ", ".join(id[:24] for id in (found or known)[:3])
    if found:
        raise UserError(f"{beginning} begins {len(found)} prompts of {step.path} ({shown}, ...); "
                        "write more of it")  # fmt: skip
    raise UserError(f"{step.path} has no prompt {beginning}; it has {shown}, ... Another step is "
                    "named as RUN/step-00000")  # fmt: skip


def short_name(ids: Iterable[str], prompt_id: str) -> str:
    """The shortest beginning of a prompt's id, of 6 characters at least, that names it alone."""
    others = set(ids) - {prompt_id}
    beginnings = (prompt_id[:end] for end in range(6, len(prompt_id)))
    alone = (b for b in beginnings if not any(other.startswith(b) for other in others))
    return next(alone, prompt_id)


def _parse(name: str) -> tuple[str, int]:
    prompt_id, _, sample = name.rpartition("/")
    if not prompt_id or not sample.isascii() or not sample.isdigit():
        raise UserError(f"--sample {name}: write PROMPT/N, such as 3fa2/0 for its first sample")
    return prompt_id, int(sample)


def _find(folder: StepFolder, beginning: str, sample: int) -> tuple[int, int]:
    """The part and row of a completion."""
    keys = {part: folder.read("rollouts", part).table.select(["prompt_id", "sample"])
            for part in folder.parts("rollouts")}  # fmt: skip
    ids = (id for table in keys.values() for id in table["prompt_id"].to_pylist())
    prompt_id = find_prompt(folder, ids, beginning)
    there: list[int] = []
    for part, table in keys.items():
        rows = pc.indices_nonzero(pc.equal(table["prompt_id"], prompt_id)).to_pylist()
        samples = table["sample"].take(pa.array(rows, pa.int64())).to_pylist()
        if sample in samples:
            return part, rows[samples.index(sample)]
        there += samples
    raise UserError(f"prompt {prompt_id[:24]} of {folder.path} has no sample {sample}; it has "
                    f"{min(there)} to {max(there)}")  # fmt: skip


def _several(part: Part | None, row: dict[str, Any]) -> dict[str, float]:
    names = () if part is None else reward_weights(part.table.schema)
    return {name: row[REWARD + name] for name in names if row[REWARD + name] is not None}


def _row(part: Part, row: int) -> dict[str, Any]:
    return part.table.slice(row, 1).to_pylist()[0]


def _token_columns(
    folder: StepFolder, parts: dict[str, Part], rows: dict[str, dict[str, Any]], color: Coloring
) -> dict[str, list[Any] | None]:
    """The values of `Token` after its text, by name; `UserError` without those to colour by."""
    stage, column, command = COLUMNS[color]
    if rows.get(stage, {}).get(column) is None:
        others = [name for name, (s, c, _) in COLUMNS.items()
                  if rows.get(s, {}).get(c) is not None]  # fmt: skip
        instead = f", or add --color {others[0]}" if others else ""
        if stage in parts and parts[stage].table[column].null_count < parts[stage].table.num_rows:
            raise UserError(
                f"this completion has no {column} to colour by, since the method reads none of it; "
                f"take another one{instead}"
            )
        raise UserError(
            f"{folder.path} has no {column} to colour by; run `{command} --run {folder.path}`"
            f"{instead}"
        )
    shaped, signals = rows.get("advantages", {}), rows.get("signals", {})
    policy, teacher = signals.get("policy_logprobs"), signals.get("teacher_logprobs")
    gap = None
    if policy is not None and teacher is not None:
        gap = [t - p if None not in (t, p) else None
               for t, p in zip(teacher, policy, strict=False)]  # fmt: skip
    return {
        "advantages": shaped.get("advantages"),
        "gap": gap,
        "weights": shaped.get("weights"),
        "flipped": shaped.get("flipped"),
    }
