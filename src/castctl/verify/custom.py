"""A verifier of the user's own, from a Python file, an installed package or an environment."""

from __future__ import annotations

import hashlib
import importlib.util
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from importlib.metadata import entry_points
from pathlib import Path

from castctl.errors import UserError, one_line
from castctl.recipe.environment import is_environment, parse_environment
from castctl.recipe.trust import FUNCTION, whole_path
from castctl.verify.environment import environment_version, load_tasks

Verifier = Callable[[str, str, str | None], bool | float]

LARGEST = 3.4e38
"""What a reward may be: float32 holds no more."""

_GROUP = "castctl.verifiers"


@dataclass(unsafe_hash=True)
class CustomVerifier:
    """A loaded verifier `function(problem, completion, answer) -> bool | float`.

    Travels to a worker as its name and is loaded again on arrival, before the clock of
    the call starts. Calling it gives the reward as a float.

    Raises:
        UserError: as `load_verifier` does.
    """

    spec: str
    setting: str = FUNCTION
    """The setting that names it."""

    def __post_init__(self) -> None:
        path, colon, name = self.spec.rpartition(":")
        if colon and not is_environment(self.spec):  # a worker may start in another folder
            self.spec = f"{whole_path(path)}:{name}"
        load_verifier(self.spec, self.setting)

    @property
    def version(self) -> str:
        """The name and, of a file, eight hex digits of its content; of a package, its version; of
        an environment, both."""
        if is_environment(self.spec):
            return environment_version(self.spec)
        path, colon, name = self.spec.rpartition(":")
        if colon:
            digest = hashlib.sha256(Path(path).read_bytes()).hexdigest()[:8]
            return f"{Path(path).name}:{name} {digest}"
        [found, *_] = entry_points(group=_GROUP, name=self.spec)
        return self.spec if found.dist is None else f"{self.spec} {found.dist.version}"

    def __reduce__(self) -> tuple[type[CustomVerifier], tuple[str, str]]:
        return CustomVerifier, (self.spec, self.setting)

    def __call__(self, problem: str, completion: str, answer: str | None) -> float:
        reward = float(load_verifier(self.spec, self.setting)(problem, completion, answer))
        if not abs(reward) <= LARGEST:
            raise ValueError(f"the verifier returned {reward}, which is no reward")
        return reward


@cache
def load_verifier(spec: str, setting: str = FUNCTION) -> Verifier:
    """The function that `path/to/file.py:function`, an entry point's name or an environment's
    stands for, as the `setting` has it.

    Raises:
        UserError: it cannot be found or loaded, or does not take the three arguments.
    """
    if is_environment(spec):
        return _from_environment(spec)
    function = _from_file(spec, setting) if ":" in spec else _from_entry_point(spec, setting)
    if not callable(function):
        raise UserError(f"{setting}: {spec} is not a function")
    try:
        inspect.signature(function).bind("problem", "completion", "answer")
    except TypeError as error:
        raise UserError(
            f"{setting}: {spec} must take (problem, completion, answer): {error}"
        ) from None
    return function


def _from_environment(spec: str) -> Verifier:
    tasks = load_tasks(spec)
    return partial(tasks.reward, which=parse_environment(spec).reward)


def _from_file(spec: str, setting: str) -> object:
    path, _, name = spec.rpartition(":")
    if not path.endswith(".py") or not Path(path).is_file():
        raise UserError(f"{setting}: there is no Python file {path!r}; write file.py:function")
    module_spec = importlib.util.spec_from_file_location(Path(path).stem, path)
    assert module_spec and module_spec.loader  # always, for a name that ends in .py
    module = importlib.util.module_from_spec(module_spec)
    try:
        module_spec.loader.exec_module(module)
    except Exception as error:
        raise UserError(
            f"{setting}: {path} does not load: {one_line(error, named=True)}"
        ) from error
    if not hasattr(module, name):
        raise UserError(f"{setting}: {path} has no function {name!r}")
    return getattr(module, name)


def _from_entry_point(name: str, setting: str) -> object:
    if name.endswith(".py"):
        raise UserError(f"{setting}: name the function too, as in {name}:FUNCTION")
    found = entry_points(group=_GROUP, name=name)
    if not found:
        raise UserError(
            f"{setting}: no installed package has an entry point {name!r} in the group "
            f"{_GROUP}; install it or write file.py:function"
        )
    try:
        return next(iter(found)).load()
    except Exception as error:
        raise UserError(
            f"{setting}: {name} does not load: {one_line(error, named=True)}"
        ) from error
