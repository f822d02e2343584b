"""Settings of the problems: where they come from, and how they are asked."""

from __future__ import annotations

import datetime
from typing import Any

from pydantic import Field

from castctl.settings import Count, Section

TEACHER_TEMPLATE = """\
{{ prompt }}

{% if solution %}A correct solution: {{ solution }}

{% endif %}{% if answer %}The answer is {{ answer }}. {% endif %}\
Derive it rigorously, step by step, and do not mention that it was given."""
"""After the prompt that SDPG's paper describes (arXiv 2606.04036); the words are ours."""


class Asked(Section):
    """How a problem is asked: what shapes a prompt."""

    chat: bool = True
    """Render the prompt with the tokenizer's chat template; otherwise the user text alone."""
    prompt_template: str = (
        "{{ problem }}\n\nPlease reason step by step, and put your final answer within \\boxed{}."
    )
    """Jinja template of the user text, over `problem`."""
    system_prompt: str | None = None
    """System message of the chat template, in the place of the data's own."""
    chat_template_options: dict[str, Any] = Field(default_factory=dict)
    """Options handed to the chat template, such as `enable_thinking`."""
    date: datetime.date = datetime.date(2026, 1, 1)
    """Today, for a chat template that writes the date: always the same day (ours)."""


class Rows(Section):
    """Where problems are, and in which columns."""

    path: str = "embedded"
    """A Parquet, JSONL or CSV file, a benchmark's name, a hub id, or `embedded`."""
    config: str | None = None
    """Configuration of a hub data set."""
    split: str = "train"
    """Split of a hub data set."""
    revision: str | None = None
    """Hub revision; the newest when left out."""
    problem_column: str | None = None
    """Column of the problem; found by its usual names when left out."""
    answer_column: str | None = None
    """Column of the answer; found by its usual names when left out."""
    solution_column: str | None = None
    """Column of a worked solution; found by its usual names when left out."""


class DataSettings(Asked, Rows):
    limit: Count | None = None
    """Use only the first rows."""
    teacher_template: str = TEACHER_TEMPLATE
    """Jinja template of the user text of a teacher that is told more, over `prompt` (the student's
    user text), `problem`, `answer` and `solution`; what it is not told is empty (ours)."""
    max_prompt_tokens: Count = 2048
    """A longer prompt is dropped and counted, never cut."""
