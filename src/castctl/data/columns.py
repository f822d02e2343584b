"""Find the problem, the answer and the solution in a row.

The names are those of TRL, verl and the common sets of mathematics problems, tried
in this order. `a.b` is the field `b` of the struct column `a`.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from castctl.data.conversation import Earlier, Message
from castctl.data.files import Row
from castctl.errors import UserError
from castctl.recipe.recipe import DataSettings
from castctl.verify.boxed import is_sentence, last_boxed

PROBLEM = ("problem", "question", "extra_info.question", "prompt", "query", "input")
ANSWER = (
    "gts",  # first: the rest of a row of verl's is what its reward function says
    "answer",
    "final_answer",
    "ground_truth",
    "expected_answer",
    "gold",
    "target",
    "reward_model.ground_truth",
)
SOLUTION = ("solution", "rationale", "reasoning", "extra_info.answer")

WRAPPERS = "answer-line instructions stripped from the problem"
ROLES = ("system", "user", "assistant")
RENDERED = "chat templates taken off the problem"
SHORT_SOLUTIONS = "solutions of one line taken for the answer, in want of another"

# DAPO-Math-17k asks for an answer line; castctl's own template asks for a box.
_DAPO_BEFORE = (
    "Solve the following math problem step by step. The last line of your response should be of "
    "the form Answer: $Answer (without quotes) where $Answer is the answer to the problem."
)
_DAPO_AFTER = 'Remember to put your answer on its own line after "Answer:".'

_GSM8K_MARK = "####"
_GSM8K_NUMBER = re.compile(r"-?(?:[0-9]*\.)?[0-9]+")
_THOUSANDS = re.compile(r"(?<![0-9,.(\[{])[0-9]{1,3}(?:,[0-9]{3})+(?!,?[0-9])")
_CALCULATOR_MARK = re.compile(r"<<[^<>]*>>")
_SUM = re.compile(r"[0-9]\s*[-+*/]\s*[0-9]")

# What the tokens of ChatML, Llama 3 and Gemma leave when they are skipped, as verl does.
_TOKENS = re.compile(
    r"<\|(?:im_start|im_end|begin_of_text|start_header_id|end_header_id|eot_id)\|>"
    r"|<bos>|<(?:start|end)_of_turn>"
)
_CONVERSATION = re.compile(
    r"(?P<system>system\n.*?(?:\n|(?=user\n\n)))?user\n(?P<user>.*?)"
    r"(?:\n(?:assistant|model)|assistant)(?:\s*<think>\s*(?:</think>)?)?",
    re.DOTALL,
)
_DEEPSEEK = re.compile(
    r"(?:<\uff5cbegin▁of▁sentence\uff5c>)*(?P<system>.+?)?"
    r"<\uff5cUser\uff5c>(?P<user>.*?)<\uff5cAssistant\uff5c>(?:<think>)?",
    re.DOTALL,
)
_RENDERED = (
    (
        _CONVERSATION,
        re.compile(r"(?:\n(?:assistant|model)|assistant)(?:\s*<think>\s*(?:</think>)?)?\Z"),
    ),
    (_DEEPSEEK, re.compile(r"<\uff5cAssistant\uff5c>(?:<think>)?\Z")),
)
"""Each way to write a conversation, and how it ends."""
_ANOTHER_TURN = re.compile(r"^(?:assistant|model)$|<\uff5cAssistant\uff5c>", re.MULTILINE)


@dataclass(frozen=True)
class Columns:
    """The columns to read."""

    problem: str
    answer: str | None
    solution: str | None
    context: str | None = None
    """Of what stands before the problem."""

    @property
    def holds_gold(self) -> bool:
        """Whether the solutions are the answers, as TRL's rewards take them."""
        return self.answer is None and (self.solution or "").lower() == SOLUTION[0]

    @property
    def names(self) -> list[str]:
        return [n for n in (self.problem, self.answer, self.solution, self.context) if n]


@dataclass(frozen=True)
class Example:
    """One row, read. Texts are stripped; a blank answer or solution is None."""

    problem: str
    answer: str | None
    solution: str | None
    earlier: Earlier = ()
    """The messages before the problem, where the data has a conversation."""


def find_columns(available: Collection[str], data: DataSettings) -> Columns:
    """The columns the settings name, or else the first usual names there are, in any case.

    Raises UserError when a named column or any column of problems is missing.
    """

    def find(setting: str, wanted: str | None, usual: tuple[str, ...]) -> str | None:
        if wanted is not None:
            if wanted in available:
                return wanted
            raise UserError(f"data.{setting} is {wanted}, but the columns are: {known}")
        return next((by_lower[name] for name in usual if name in by_lower), None)

    known = ", ".join(available)
    by_lower = {name.lower(): name for name in reversed(list(available))}
    problem = find("problem_column", data.problem_column, PROBLEM)
    if problem is None:
        raise UserError(f"no column of problems; set data.problem_column to one of: {known}")
    return Columns(
        problem,
        find("answer_column", data.answer_column, ANSWER),
        find("solution_column", data.solution_column, SOLUTION),
    )


def read_example(row: Row, columns: Columns, counts: Counter[str]) -> Example:
    """Read one row; `counts` takes the number of times each thing was done to a row.

    - A list of messages is a conversation whose last message, a user's, is the problem.
    - Numbers become text as they are: `18`, `2.0`. A list of several answers becomes one
      answer, joined by commas, which a verifier reads as a set.
    - A rendered conversation is read as its messages.
    - GSM8K's raw form, `reasoning #### 1,234`, is split, whatever its last line holds after
      the mark; numbers lose their commas and the reasoning its calculator marks `<<48/2=24>>`.
    - A context stands before its problem, with a blank line between them.
    - Without an answer, the last `\\boxed{}` of the solution is one (MATH). In data without a
      column of answers, a solution that is one short line is the answer itself (TRL).
    - A solution that only repeats the answer is none.

    Raises UserError, without the place, for a cell of another kind.
    """
    said, earlier = _conversation(_cell(row, columns.problem), columns.problem, counts)
    problem = _problem(said, columns.problem, counts)
    context = _text(_cell(row, columns.context), columns.context)
    if problem and context:
        problem = f"{context}\n\n{problem}"
    answer = _text(_cell(row, columns.answer), columns.answer)
    solution = _text(_cell(row, columns.solution), columns.solution)
    if raw := _split_gsm8k(answer):
        answer = raw[1]
        solution = solution or raw[0]
    if (raw := _split_gsm8k(solution)) and answer in (None, raw[1]):
        solution, answer = raw
    if answer is None and solution is not None:
        answer = _boxed(solution)
        if answer is None and columns.holds_gold and _is_answer(solution):
            counts[SHORT_SOLUTIONS] += 1
            answer = solution
    return Example(problem, answer, None if solution == answer else solution, earlier)


def _cell(row: Row, column: str | None) -> Any:
    if column is None:
        return None
    if column in row:
        return row[column]
    top, _, field = column.partition(".")
    struct = row.get(top)
    return struct.get(field) if isinstance(struct, dict) else None


def _problem(value: Any, column: str, counts: Counter[str]) -> str:
    problem = _text(value, column) or ""
    if problem.startswith(_DAPO_BEFORE) and problem.endswith(_DAPO_AFTER):
        counts[WRAPPERS] += 1
        problem = problem[len(_DAPO_BEFORE) : -len(_DAPO_AFTER)].strip()
    return problem


def _conversation(value: Any, column: str, counts: Counter[str]) -> tuple[Any, Earlier]:
    """What holds the problem, and the messages before it."""
    if not isinstance(value, list):
        return _unrendered(value, column, counts) if isinstance(value, str) else (value, ())
    try:
        turns = [Message(message["role"], message["content"]) for message in value]
    except (TypeError, KeyError):
        raise UserError(
            f"column {column} holds a list, but not of messages with role and content; "
            "set data.problem_column to a column of text or messages"
        ) from None
    whole = all(role in ROLES and isinstance(content, str) for role, content in turns)
    if not turns or not whole or turns[-1].role != "user":
        raise UserError(
            f"column {column} must hold texts by {', '.join(ROLES)}, a user's the last, but holds "
            f"messages of: {', '.join(str(role) for role, _ in turns)}; leave such rows out"
        )
    return turns[-1].content, tuple(turns[:-1])


def _unrendered(text: str, column: str, counts: Counter[str]) -> tuple[str, Earlier]:
    """The messages, where the text is a conversation as a chat template writes it."""
    plain = _TOKENS.sub("", text).strip()
    # A pattern would try every place in a text that ends otherwise.
    conversation = next(
        (
            found
            for pattern, ending in _RENDERED
            if ending.search(plain) and (found := pattern.fullmatch(plain))
        ),
        None,
    )
    if conversation is None:
        return text, ()
    if _ANOTHER_TURN.search(conversation["user"]):
        raise UserError(
            f"column {column} must hold one user message, but holds a conversation of several "
            "turns; leave such rows out"
        )
    counts[RENDERED] += 1
    said = (conversation["system"] or "").removeprefix("system\n").strip()
    return conversation["user"].strip(), (Message("system", said),) if said else ()


def _text(value: Any, column: str | None) -> str | None:
    if isinstance(value, str):
        return value.strip() or None
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, list):
        items = [_text(item, column) for item in value]
        return ", ".join(item for item in items if item) or None
    if isinstance(value, dict):
        raise UserError(
            f"column {column} holds a struct; name one field of it, as in {column}.FIELD"
        )
    return str(value)


def _split_gsm8k(text: str | None) -> tuple[str | None, str | None] | None:
    """Reasoning and answer, where the last line that holds anything begins with the mark."""
    reasoning, mark, last = (text or "").rpartition(_GSM8K_MARK)
    answer = last.strip()
    if not mark or reasoning.endswith("#") or len(answer.splitlines()) > 1:
        return None
    if not answer:  # the mark stands, and nothing after it
        return _CALCULATOR_MARK.sub("", reasoning).strip() or None, None
    answer = _THOUSANDS.sub(lambda number: number[0].replace(",", ""), answer)
    if not _GSM8K_NUMBER.fullmatch(answer):
        if _boxed(reasoning):  # then this is a heading
            return None
        answer = _boxed(answer) or answer
    return _CALCULATOR_MARK.sub("", reasoning).strip() or None, answer


def _is_answer(solution: str) -> bool:
    """Whether it is one line and neither a sentence nor a sum that is worked out."""
    if len(solution.splitlines()) > 1 or is_sentence(solution):
        return False
    sum_ = _SUM.search(solution)
    return sum_ is None or "=" not in solution[sum_.end() :]


def _boxed(solution: str) -> str | None:
    boxed = last_boxed(solution)
    return boxed and (boxed.content.strip() or None)
