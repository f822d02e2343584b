"""Evaluation tasks that somebody writes: a YAML file that says what is asked, and how it is graded.

A task goes by its file and eight digits of the digest of what that says, `my.yaml@1a2b3c4d`: a file
that says something else is another task.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import yaml

from castctl.errors import UserError, one_line
from castctl.files import read_text
from castctl.recipe.data import Asked, Rows
from castctl.recipe.environment import is_environment
from castctl.recipe.evaluation import EvalSettings, Measure
from castctl.recipe.plain_yaml import read_yaml
from castctl.recipe.problems import fitted
from castctl.recipe.split import HELD_OUT
from castctl.recipe.verifier import Grading, VerifierSettings
from castctl.settings import Section

if TYPE_CHECKING:
    from castctl.recipe.recipe import Recipe

SUFFIXES = (".yaml", ".yml")
"""What the name of a task's file ends in."""


class TaskData(Asked, Rows):
    """Where the problems are, and how they are asked; what is not said of that is the recipe's."""

    path: str
    """A Parquet, JSONL or CSV file beside the task's, a benchmark's name or a hub id."""
    split: str = "test"
    """Split of a hub data set."""


class TaskSettings(Section):
    """A task's file: what it does not say is as the recipe says it."""

    about: str = ""
    """What the task is, in a line."""
    data: TaskData
    verifier: Grading = Grading()
    eval: Measure = Measure()


SECTIONS = tuple(name for name in TaskSettings.model_fields if name != "about")


@dataclass(frozen=True)
class TaskFile:
    """A task as its file has it."""

    path: Path
    said: dict[str, Any]
    """What the file says, beside `about`."""
    settings: TaskSettings

    @property
    def digest(self) -> str:
        """Eight hex digits of the SHA-256 of what the file says, whatever its comments and the
        order of its keys."""
        text = json.dumps(self.said, sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()[:8]


def is_task_file(task: str) -> bool:
    """Whether a task's name is that of a YAML file."""
    return _divided(task)[0].suffix in SUFFIXES


def file_and_digest(task: str) -> tuple[str, str]:
    """The name of a task's file without its folder and ending, and its digest, "" where it is not
    pinned."""
    path, digest = _divided(task)
    return path.stem, digest


def pinned(task: str) -> str:
    """A task file's name with its digest; any other task, and one that is pinned, as it is.

    Raises `UserError` where the file cannot be read as a task.
    """
    if not is_task_file(task) or _divided(task)[1]:
        return task
    return f"{task}@{read_task(task).digest}"


def read_task(task: str) -> TaskFile:
    """The task of a file; `UserError` where there is none, where it says something that no task
    does, or something else than its digest is of."""
    path, digest = _divided(task)
    try:
        said = read_yaml(read_text(path))
    except FileNotFoundError:
        raise UserError(f"no task file at {path}; check the path of the task") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read task {path}: {error}") from None
    except (yaml.YAMLError, ValueError) as error:
        raise UserError(f"{path} is not YAML for a task: {one_line(error)}") from None
    if not isinstance(said, dict):
        raise UserError(f"{path}: a task is a mapping of sections, such as `data: {{path: ...}}`")
    settings = fitted(TaskSettings, said, str(path))
    found = TaskFile(path, {key: said[key] for key in said if key != "about"}, settings)
    if digest and digest != found.digest:
        raise UserError(
            f"{path} is another task now ({found.digest}) than the one that was begun with "
            f"({digest}); put back what it said, or evaluate on the new one: castctl eval {path}"
        )
    return found


def about(recipe: Recipe, task: str) -> Recipe:
    """The recipe of an evaluation of `task`: what a task's file says stands over the recipe's.

    Raises `UserError` as `read_task` does, and where the two do not fit.
    """
    own = _of_task(recipe, task)
    if task != HELD_OUT and is_environment(own.verifier.function or ""):
        raise UserError(
            f"{own.verifier.function} grades its own problems, and none of {task}; set "
            f"eval.task={HELD_OUT}, or write a task file, whose verifier.function may be null, "
            "castctl's own grader, and whose data.prompt_template asks for a box"
        )
    return own


def _of_task(recipe: Recipe, task: str) -> Recipe:
    if not is_task_file(task):
        settings = recipe.eval.model_copy(update={"task": task})
        return recipe.model_copy(update={"eval": settings})
    file = read_task(task)
    eval_ = _over(recipe.eval, {**_said(file.settings.eval), "task": task}, task)
    asked = {key: value for key, value in _said(file.settings.data).items()
             if key in Asked.model_fields}  # fmt: skip
    return recipe.model_copy(
        update={
            "eval": eval_.with_trust(recipe.eval.trusted),
            "verifier": graded(recipe, file.settings, file.path),
            "data": recipe.data.model_copy(update=asked),
        }
    )


def graded(
    recipe: Recipe, task: TaskSettings, file: Path, kept: Collection[str] = ()
) -> VerifierSettings:
    """The recipe's verifier, with what the task of a `file` says of it but for the settings `kept`.

    A verifier that the file names is trusted where the recipe's evaluations are.
    """
    said = {key: value for key, value in _said(task.verifier).items() if key not in kept}
    trusted = recipe.verifier.trusted
    if function := said.get("function"):
        trusted = recipe.eval.trusted
        place, colon, name = function.rpartition(":")
        if colon and not is_environment(function):
            said["function"] = f"{file.parent / place}:{name}"
    return _over(recipe.verifier, said, str(file)).with_trust(trusted)


def refuse_beside(task: str | None, typed: Mapping[str, Any], sections: Collection[str]) -> None:
    """Raise `UserError` where settings that were `typed`, by section, say otherwise what a task's
    file says: there is one place for each."""
    given = {section: typed.get(section) for section in sections}
    if task is None or not is_task_file(task) or not any(given.values()):
        return
    file = read_task(task)
    for section, values in given.items():
        own = _said(getattr(file.settings, section))
        for key, value in (values if isinstance(values, dict) else {}).items():
            if key in own and key != "path" and own[key] != value:
                raise UserError(
                    f"{file.path} says {section}.{key}={own[key]} itself, so {section}.{key}="
                    f"{value} beside it would be another task; leave it out, or take it out of "
                    "the file"
                )


S = TypeVar("S", EvalSettings, VerifierSettings)


def _over(settings: S, said: dict[str, Any], task: str) -> S:
    return fitted(type(settings), {**settings.model_dump(), **said}, task)


def _said(section: Section) -> dict[str, Any]:
    return section.model_dump(exclude_unset=True)


def _divided(task: str) -> tuple[Path, str]:
    """A task's path and the digest behind it."""
    path, at, digest = task.rpartition("@")
    pin = at and Path(path).suffix in SUFFIXES
    return (Path(path), digest) if pin else (Path(task), "")
