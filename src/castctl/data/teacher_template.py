"""The prompt under which a teacher reads the student's completions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from castctl.data.conversation import Earlier
from castctl.data.lengths import surely_longer
from castctl.data.templates import PROBE, Asked, ChatFormat, PromptTemplate, version_of
from castctl.data.text_template import TextTemplate
from castctl.errors import UserError
from castctl.methods.teacher import Teacher
from castctl.recipe.recipe import DataSettings

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TOLD = {
    "none": frozenset[str](),
    "answer": frozenset({"answer"}),
    "solution": frozenset({"answer", "solution"}),
    "solution_or_answer": frozenset({"answer", "solution"}),
}
"""What each context tells beside the problem."""

Told = tuple[str, str | None, str | None, Earlier]
"""A problem, its answer and solution, and what was said before it."""


class PlainText:
    """A teacher's text as it stands: no chat template, no system prompt, no special tokens."""

    settings: ClassVar = {"chat": False, "special_tokens": False}

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer: Any = tokenizer

    def all_ids(self, asked: Sequence[Asked]) -> list[list[int]]:
        """Token ids of each text.

        Raises UserError where there is none, and where messages stand before the problem.
        """
        if any(earlier for _, earlier in asked):
            raise UserError(
                "method.teacher.chat=false has no place for the messages that the data has before "
                "its problems; set it to true, or take them out of the data"
            )
        rows = [self._tokenizer(text, add_special_tokens=False).input_ids for text, _ in asked]
        if not all(rows):
            raise UserError(
                "a prompt of the teacher renders to no token at all; look at its template "
                "(method.teacher.template)"
            )
        return rows

    def lengths(self, asked: Sequence[Asked], most: int) -> list[int]:
        """How many token ids each has; `most + 1` where it is surely longer."""
        return [
            most + 1 if surely_longer(each[0], most) else len(self.all_ids([each])[0])
            for each in asked
        ]


class TeacherTemplate:
    """The student's prompt with what the teacher is told, and its own options of the chat template.

    Raises UserError for a template that does not parse, that uses what the context does not tell,
    or that leaves out what it does.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, data: DataSettings, teacher: Teacher
    ) -> None:
        self.context = teacher.context
        self.max_prompt_tokens = teacher.max_prompt_tokens
        self._student = PromptTemplate(tokenizer, data)
        self._student_chat = data.chat
        setting, self._text = "method.teacher.template", teacher.template
        if self._text is None and teacher.privileged:
            setting, self._text = "data.teacher_template", data.teacher_template
        names = ["prompt", "problem", "answer", "solution"]
        self._user = None if self._text is None else TextTemplate(self._text, setting, names)
        used = self._user.used & {"answer", "solution"} if self._user else frozenset()
        self._shown = used & TOLD[teacher.context]
        if used and not teacher.privileged:
            raise UserError(
                f"{setting} uses {', '.join(sorted(used))}, which method.teacher.context=none does "
                "not tell; set it to answer, solution or solution_or_answer"
            )
        needed = {"solution"} if teacher.context == "solution" else {"answer", "solution"}
        if teacher.privileged and not self._shown & needed:
            raise UserError(
                f"{setting} leaves out what method.teacher.context={teacher.context} tells; write "
                f"{{{{ {' }} or {{ '.join(sorted(needed & TOLD[teacher.context]))} }}}} into it"
            )
        options = data.chat_template_options | teacher.chat_template_options
        self._chat = (
            ChatFormat(tokenizer, data, options, "method.teacher.chat_template_options")
            if teacher.chat
            else None
        )
        self._format = self._chat or PlainText(tokenizer)

    @property
    def version(self) -> str:
        """16 hex digits of the SHA-256 of all that shapes the prompt beside the vocabulary."""
        shape = {"student": self._student.version, "context": self.context, "text": self._text}
        return version_of(shape | self._format.settings)

    @property
    def endings(self) -> tuple[str, str] | None:
        """How student and teacher prompts end, where that differs: the completion's first tokens
        then follow other text than the one they were sampled after."""
        if self._chat is not None:
            student, teacher = self._student.format.ending, self._chat.ending
        else:
            [(text, _)] = self._asked([(PROBE, PROBE, PROBE, ())])
            teacher = _after_probe(text)
            bare = _after_probe(self._student.user_text(PROBE))
            student = self._student.format.ending if self._student_chat else bare
        return None if student == teacher else (student, teacher)

    def lacks(self, answer: str | None, solution: str | None) -> str | None:
        """What a problem must have for the teacher to be told and has not; None if nothing."""
        if self.context == "none":
            return None
        if self.context != "solution_or_answer":
            return None if {"answer": answer, "solution": solution}[self.context] else self.context
        has = {"answer": answer, "solution": solution}
        return None if any(has[name] for name in self._shown) else " or ".join(sorted(self._shown))

    def render(
        self, problem: str, answer: str | None, solution: str | None, earlier: Earlier = ()
    ) -> list[int]:
        """Token ids of the teacher's prompt, in the student's conversation.

        Raises UserError where the problem lacks what it tells.
        """
        return self.render_all([(problem, answer, solution, earlier)])[0]

    def render_all(self, told: Sequence[Told]) -> list[list[int]]:
        """`render` of each problem."""
        return self._format.all_ids(self._asked(told))

    def lengths(self, told: Sequence[Told]) -> list[int]:
        """How many token ids each prompt has; `max_prompt_tokens + 1` where it is surely longer."""
        return self._format.lengths(self._asked(told), self.max_prompt_tokens)

    def _asked(self, told: Sequence[Told]) -> list[Asked]:
        for problem, answer, solution, _ in told:
            if missing := self.lacks(answer, solution):
                raise UserError(
                    f"a teacher with context {self.context} needs the {missing}, and a problem has "
                    f"none ({problem[:60]!r}); set method.teacher.context, or take other data"
                )
        texts = self._student.user_texts([problem for problem, *_ in told])
        if self._user is not None:
            tells = TOLD[self.context]
            texts = self._user.render(
                [
                    {
                        "prompt": prompt,
                        "problem": problem,
                        "answer": answer if answer and "answer" in tells else "",
                        "solution": solution if solution and "solution" in tells else "",
                    }
                    for prompt, (problem, answer, solution, _) in zip(texts, told, strict=True)
                ]
            )
        return [(text, earlier) for text, (*_, earlier) in zip(texts, told, strict=True)]


def _after_probe(text: str) -> str:
    """The last words of a text, those after all that a template was given."""
    return text.rpartition(PROBE)[2][-60:]


def endings_warning(endings: tuple[str, str]) -> str:
    """One line that says how the prompts of student and teacher end differently."""
    student, teacher = (repr(ending) for ending in endings)
    return (
        f"the teacher's prompt ends with {teacher}, the student's with {student}: its log-probs of "
        "the first tokens are of another place; method.teacher.skip_tokens leaves them out"
    )
