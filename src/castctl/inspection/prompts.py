"""What the student and its teacher were asked."""

from __future__ import annotations

from dataclasses import dataclass

from castctl.inspection.tokens import TokenTexts
from castctl.shards.stage import StepFolder


@dataclass(frozen=True)
class PromptView:
    """One prompt as token ids and what they decode to (None without a tokenizer).

    `teacher_ids` is None where the teacher read the student's own prompt, and where there was
    no teacher.
    """

    prompt_id: str
    student_ids: list[int]
    student: str | None
    teacher_ids: list[int] | None
    teacher: str | None


@dataclass(frozen=True)
class PromptsView:
    """The first of a step's `total` prompts; `scored` is whether a teacher scored completions."""

    step: int
    total: int
    scored: bool
    prompts: list[PromptView]


def view_prompts(folder: StepFolder, limit: int, texts: TokenTexts) -> PromptsView:
    """The first `limit` prompts of a step's rollouts."""
    rollouts = folder.read_all("rollouts")
    ids = rollouts["prompt_id"].to_pylist()
    first: dict[str, int] = {}
    for row, id in enumerate(ids):
        first.setdefault(id, row)
    teachers, scored = _teacher_prompts(folder)
    prompts = []
    for id, row in list(first.items())[:limit]:
        student, teacher = rollouts["prompt_token_ids"][row].as_py(), teachers.get(id)
        text = None if teacher is None else texts.together(teacher)
        prompts.append(PromptView(id, student, texts.together(student), teacher, text))
    return PromptsView(folder.step, len(first), scored, prompts)


def _teacher_prompts(folder: StepFolder) -> tuple[dict[str, list[int]], bool]:
    """The teacher's own prompts by prompt id, and whether there was a teacher at all."""
    if not folder.parts("signals"):
        return {}, False
    signals = folder.read_all("signals")
    scored = signals["teacher_logprobs"].null_count < signals.num_rows
    own = signals.filter(signals["teacher_prompt_token_ids"].is_valid())
    ids, prompts = (own[name].to_pylist() for name in ("prompt_id", "teacher_prompt_token_ids"))
    return dict(zip(reversed(ids), reversed(prompts), strict=True)), scored
