"""What the student, its teacher and a bilateral ratio were asked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from castctl.data.teacher_template import endings_warning
from castctl.inspection.tokens import TokenTexts
from castctl.progress import Silent
from castctl.recipe.verifier import VerifierSettings
from castctl.shards.schema import PEER
from castctl.shards.stage import StepFolder
from castctl.verify.golds import gold_notes


@dataclass(frozen=True)
class PromptView:
    """One prompt as token ids and what they decode to (None without a tokenizer).

    `teacher_ids` is None where the teacher read the student's own prompt, and where there was
    no teacher; `bilateral_ids`, the prompt of the ratio of the group's first completion that has
    one, where there is none.
    """

    prompt_id: str
    student_ids: list[int]
    student: str | None
    teacher_ids: list[int] | None
    teacher: str | None
    bilateral_ids: list[int] | None
    bilateral: str | None


@dataclass(frozen=True)
class PromptsView:
    """The first of a step's `total` prompts; `scored` is whether a teacher scored completions, and
    `peers` whether it was told others, each completion another: then that of the first is shown.

    `warning` says where the teacher's prompt ends otherwise than the student's, `golds` which
    answers no completion can meet.
    """

    step: int
    total: int
    scored: bool
    peers: bool
    warning: str | None
    golds: list[str]
    prompts: list[PromptView]


def view_prompts(
    folder: StepFolder,
    limit: int,
    texts: TokenTexts,
    ending: str | None,
    verifier: VerifierSettings,
) -> PromptsView:
    """The first `limit` prompts of a step's rollouts; `ending` is that of the student's."""
    rollouts = folder.table("rollouts")
    ids = rollouts["prompt_id"].to_pylist()
    first: dict[str, int] = {}
    for row, id in enumerate(ids):
        first.setdefault(id, row)
    signals = folder.table("signals") if folder.parts("signals") else None
    teachers = _own_prompts(signals, "teacher_prompt_token_ids")
    bilaterals = _own_prompts(signals, "bilateral_prompt_token_ids")
    scored = signals is not None and signals["teacher_logprobs"].null_count < signals.num_rows
    peers = signals is not None and signals[PEER].null_count < signals.num_rows
    prompts = []
    for id, row in list(first.items())[:limit]:
        shown: list[Any] = []
        for asked in (
            rollouts["prompt_token_ids"][row].as_py(),
            teachers.get(id),
            bilaterals.get(id),
        ):
            shown += [asked, None if asked is None else texts.together(asked)]
        prompts.append(PromptView(id, *shown))
    endings = [each.teacher for each in prompts if each.teacher and ending]
    other = next((text for text in endings if not text.endswith(ending or "")), None)
    warning = None if other is None else endings_warning((ending or "", other[-60:]))
    answers = rollouts["answer"].take(list(first.values())).to_pylist()
    golds = gold_notes(answers, verifier, Silent())
    return PromptsView(folder.step, len(first), scored, peers, warning, golds, prompts)


def _own_prompts(signals: pa.Table | None, column: str) -> dict[str, list[int]]:
    """The first prompt of each prompt id in a column that is null where it is the rollouts' own."""
    if signals is None:
        return {}
    own = signals.filter(signals[column].is_valid())
    ids, prompts = (own[name].to_pylist() for name in ("prompt_id", column))
    return dict(zip(reversed(ids), reversed(prompts), strict=True))
