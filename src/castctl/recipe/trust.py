"""Settings that run code: what a file says of them counts only where a person says so too."""

from __future__ import annotations

import os
from collections.abc import Collection
from typing import TYPE_CHECKING, Self

from pydantic import PrivateAttr

from castctl.errors import UserError
from castctl.recipe.environment import is_environment, parse_environment
from castctl.settings import Section

if TYPE_CHECKING:
    from castctl.recipe.data import DataSettings
    from castctl.recipe.recipe import Recipe
    from castctl.recipe.verifier import VerifierSettings

REMOTE_CODE = "model.trust_remote_code"
DATA = "data.path"
"""Code where it names an environment."""
FUNCTION = "verifier.function"
REWARDS = "verifier.rewards"
"""The settings that run code; each one's section is a `CodeSection`."""

VERIFIER_CODE = (DATA, FUNCTION, REWARDS)
"""Those of the verifier and of an environment, which has one, trusted together."""

TASK_FUNCTION = "eval.task.verifier.function"
"""The verifier that a task's file names: nobody types it, so --trust-verifier alone trusts it."""

VERIFIERS = {*VERIFIER_CODE, TASK_FUNCTION}
"""What --trust-verifier trusts."""

FLAGS = {REMOTE_CODE: "--trust-remote-code", **dict.fromkeys(VERIFIER_CODE, "--trust-verifier")}
"""The option by which each is trusted as a file has it."""


class CodeSection(Section):
    """Settings of which one runs code.

    Made in Python or typed, they are trusted. As a file has them they are not: a run or a recipe
    may be a stranger's, and its word alone runs nothing.
    """

    _trusted: bool = PrivateAttr(default=True)

    @property
    def trusted(self) -> bool:
        """Whether a person asked for the code, and not a file alone."""
        return self._trusted

    def with_trust(self, trusted: bool) -> Self:
        """The same settings, trusted or not."""
        other = self.model_copy()
        other._trusted = trusted
        return other


def runs_code(recipe: Recipe) -> dict[str, str]:
    """The settings of a recipe that run code, and which code."""
    found = {}
    if recipe.model.trust_remote_code:
        models = dict.fromkeys([recipe.model.path, recipe.method.teacher.path or recipe.model.path])
        found[REMOTE_CODE] = f"Python code that comes with {' and '.join(models)}"
    if is_environment(recipe.data.path):
        found[DATA] = _place(recipe.data.path)
    if recipe.verifier.function:
        found[FUNCTION] = _place(recipe.verifier.function)
    if functions := recipe.verifier.functions:
        found[REWARDS] = " and ".join(map(_place, functions.values()))
    return found


def trusted_code(recipe: Recipe) -> set[str]:
    """Those of the settings that are trusted."""
    trusted = {key for key in runs_code(recipe) if _section(recipe, key).trusted}
    return trusted | ({TASK_FUNCTION} if recipe.eval.trusted else set())


def with_environment(asked: set[str], recipe: Recipe) -> set[str]:
    """Settings that a person asked for, and the verifier that comes with the data among them."""
    alike = recipe.verifier.function == recipe.data.path
    return asked | {FUNCTION} if DATA in asked and alike else asked


def trusting(recipe: Recipe, keys: Collection[str]) -> Recipe:
    """The recipe with the settings among `keys` trusted, and no others; a section of which all that
    runs code is among them."""
    sections: dict[str, CodeSection] = {}
    for key in runs_code(recipe):
        name = key.partition(".")[0]
        also = name not in sections or sections[name].trusted
        sections[name] = _section(recipe, key).with_trust(key in keys and also)
    sections["eval"] = recipe.eval.with_trust(TASK_FUNCTION in keys)
    return recipe.model_copy(update=sections)


def require_trust(settings: VerifierSettings) -> None:
    """Raise `UserError` where the verifier is code that a file alone asks for."""
    if settings.trusted:
        return
    if settings.function:
        raise UserError(
            f"the recipe grades with code of its own, {_place(settings.function)} ({FUNCTION}); "
            f"read it, then add {FLAGS[FUNCTION]}, or grade without it: --set {FUNCTION}=null"
        )
    if settings.functions:
        places = " and ".join(map(_place, settings.functions.values()))
        raise UserError(
            f"the recipe rewards with code of its own, {places} ({REWARDS}); read it, then add "
            f"{FLAGS[REWARDS]}, or reward without it: --set '{REWARDS}=[{{kind: correct}}]'"
        )


def require_trusted_data(data: DataSettings) -> None:
    """Raise `UserError` where the problems come from code that a file alone asks for."""
    if is_environment(data.path) and not data.trusted:
        raise UserError(
            f"the recipe takes its problems from code, {_place(data.path)} ({DATA}); read it, then "
            f"add {FLAGS[DATA]}, or name other data with --data"
        )


def whole_path(path: str) -> str:
    """A path from the root on, as the user would name it."""
    return os.path.abspath(os.path.expanduser(path))


def _section(recipe: Recipe, key: str) -> CodeSection:
    section: CodeSection = getattr(recipe, key.partition(".")[0])
    return section


def _place(function: str) -> str:
    """Where code is: its file by the whole path, an entry point, or an environment."""
    if is_environment(function):
        return f"the environment {parse_environment(function).id}"
    path, colon, name = function.rpartition(":")
    return f"{whole_path(path)}:{name}" if colon else f"the entry point {name}"
