"""Settings of the problems: where they come from, and how they are asked."""

from __future__ import annotations

import datetime
from typing import Any, Self

from pydantic import Field, model_validator

from castctl.recipe.address import separated
from castctl.recipe.environment import is_environment, parse_environment
from castctl.recipe.trust import CodeSection
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
    """A Parquet, JSONL or CSV file, a benchmark's name, a hub id (owner/name@REVISION too), an
    environment of `verifiers` (env:NAME), or `embedded`."""
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

    @model_validator(mode="before")
    @classmethod
    def _a_revision_stands_behind_the_path(cls, values: Any) -> Any:
        return separated(values)


class Source(Rows):
    """One of several that problems come from."""

    path: str
    """As `data.path`."""
    weight: float = Field(gt=0, allow_inf_nan=False)
    """Its share of the prompts of a step is its weight over the sum of all."""
    limit: Count | None = None
    """Use only its first rows."""


class DataSettings(Asked, Rows, CodeSection):
    mix: tuple[Source, ...] = ()
    """Several sources in the place of `path`, such as `[{path: a.jsonl, weight: 3}, {path:
    owner/name, weight: 1}]`."""
    limit: Count | None = None
    """Use only the first rows."""
    teacher_template: str = TEACHER_TEMPLATE
    """Jinja template of the user text of a teacher that is told more, over `prompt` (the student's
    user text), `problem`, `answer` and `solution`; what it is not told is empty (ours)."""
    max_prompt_tokens: Count = 2048
    """A longer prompt is dropped and counted, never cut."""

    @model_validator(mode="before")
    @classmethod
    def _a_mixture_goes_by_its_paths(cls, values: Any) -> Any:
        mix = values.get("mix") if isinstance(values, dict) else None
        if not mix or not isinstance(mix, list | tuple):
            return values
        sources = [each.model_dump() if isinstance(each, Source) else each for each in mix]
        paths = [separated(each).get("path") for each in sources if isinstance(each, dict)]
        path = " + ".join(map(str, paths))
        if values.get("path", path) != path:
            raise ValueError("path and mix are two answers to one question; leave one out")
        return {**values, "path": path}

    @model_validator(mode="after")
    def _a_source_says_where_it_is_itself(self) -> Self:
        own = {"path", "split"} if self.mix else set(DataSettings.model_fields)
        for name in (*Rows.model_fields, "limit"):
            if name not in own and getattr(self, name) is not None:
                raise ValueError(f"write {name} into the sources of mix that it is meant for")
        return self

    @model_validator(mode="after")
    def _an_environment_stands_alone(self) -> Self:
        if any(is_environment(source.path) for source in self.mix):
            raise ValueError(
                "an environment has rewards of its own, which the other sources of mix have not; "
                "name it alone, as path"
            )
        if not is_environment(self.path):
            return self
        if parse_environment(self.path).reward:
            raise ValueError(f"{self.path}: data has no reward; leave out what follows #")
        for name, field in Rows.model_fields.items():
            if name != "path" and getattr(self, name) != field.default:
                raise ValueError(
                    f"{name} is of files and data sets; an environment takes arguments, such as "
                    "env:NAME?split=test"
                )
        return self
