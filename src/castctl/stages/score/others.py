"""What a teacher is told of another problem than the one it reads: the control of what its
knowledge of the answer does."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import pyarrow as pa

from castctl.data.teacher_template import TeacherTemplate
from castctl.errors import UserError

Answer = tuple[str | None, str | None]
"""An answer and a solution."""


def others_answers(
    rollouts: pa.Table, template: TeacherTemplate, seed: int, step: int
) -> Mapping[str, Answer]:
    """For each prompt of a step the answer and solution of another, whose answer is another text.

    The first 8 bytes of the SHA-256 of `SEED/STEP/PROMPT_ID/other`, as a little-endian number
    modulo the others, choose among them in the order of their ids. Raises `UserError` where a
    prompt has no other to take from.
    """
    columns = (rollouts[name].to_pylist() for name in ("prompt_id", "answer", "solution"))
    told: dict[str, Answer] = {
        id: (answer, solution) for id, answer, solution in zip(*columns, strict=True)
    }
    able = sorted(id for id, answer in told.items() if template.lacks(*answer) is None)
    chosen: dict[str, Answer] = {}
    for id, own in told.items():
        others = [other for other in able if _text(told[other]) != _text(own)]
        if not others:
            raise UserError(
                f"no other problem of step {step} has another answer than {_text(own)!r}, so the "
                "teacher cannot be told one; take a step of more prompts"
            )
        digest = hashlib.sha256(f"{seed}/{step}/{id}/other".encode()).digest()
        chosen[id] = told[others[int.from_bytes(digest[:8], "little") % len(others)]]
    return chosen


def _text(told: Answer) -> str:
    """What must differ: the answer, or the solution where the data has no answers."""
    answer, solution = told
    return (answer or solution or "").strip()
