"""A verifier of the user's own, from a Python file or an installed package."""

from __future__ import annotations

import hashlib
import importlib.util
import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path

from castctl.errors import UserError, one_line
from castctl.recipe.trust import whole_path

Verifier = Callable[[str, str, str | None], bool | float]

_GROUP = "castctl.verifiers"


@dataclass(unsafe_hash=True)
class CustomVerifier:
    """A loaded verifier `function(problem, completion, answer) -> bool | float`.

    Travels to a worker as its name and is loaded again on arrival, before the clock of
    the call starts. Calling it gives the reward as a finite float.

    Raises:
        UserError: as `load_verifier` does.
    """

    spec: str

    def __post_init__(self) -> None:
        path, colon, name = self.spec.rpartition(":")
        if colon:  # a worker may start in another folder
            self.spec = f"{whole_path(path)}:{name}"
        load_verifier(self.spec)

    @property
    def version(self) -> str:
        """The name and, of a file, eight hex digits of its content; of a package, its version."""
        path, colon, name = self.spec.rpartition(":")
        if colon:
            digest = hashlib.sha256(Path(path).read_bytes()).hexdigest()[:8]
            return f"{Path(path).name}:{name} {digest}"
        [found, *_] = entry_points(group=_GROUP, name=self.spec)
        return self.spec if found.dist is None else f"{self.spec} {found.dist.version}"

    def __reduce__(self) -> tuple[type[CustomVerifier], tuple[str]]:
        return CustomVerifier, (self.spec,)

    def __call__(self, problem: str, completion: str, answer: str | None) -> float:
        reward = float(load_verifier(self.spec)(problem, completion, answer))
        if not math.isfinite(reward):
            raise ValueError(f"the verifier returned {reward}, which is no reward")
        return reward


@cache
def load_verifier(spec: str) -> Verifier:
    """The function that `path/to/file.py:function` or an entry point's name stands for.

    Raises:
        UserError: it cannot be found or loaded, or does not take the three arguments.
    """
    function = _from_file(spec) if ":" in spec else _from_entry_point(spec)
    if not callable(function):
        raise UserError(f"verifier.function: {spec} is not a function")
    try:
        inspect.signature(function).bind("problem", "completion", "answer")
    except TypeError as error:
        raise UserError(
            f"verifier.function: {spec} must take (problem, completion, answer): {error}"
        ) from None
    return function


def _from_file(spec: str) -> object:
    path, _, name = spec.rpartition(":")
    if not path.endswith(".py") or not Path(path).is_file():
        raise UserError(
            f"verifier.function: there is no Python file {path!r}; write file.py:function"
        )
    module_spec = importlib.util.spec_from_file_location(Path(path).stem, path)
    assert module_spec and module_spec.loader  # always, for a name that ends in .py
    module = importlib.util.module_from_spec(module_spec)
    try:
        module_spec.loader.exec_module(module)
    except Exception as error:
        raise UserError(
            f"verifier.function: {path} does not load: {one_line(error, named=True)}"
        ) from error
    if not hasattr(module, name):
        raise UserError(f"verifier.function: {path} has no function {name!r}")
    return getattr(module, name)


def _from_entry_point(name: str) -> object:
    if name.endswith(".py"):
        raise UserError(f"verifier.function: name the function too, as in {name}:FUNCTION")
    found = entry_points(group=_GROUP, name=name)
    if not found:
        raise UserError(
            f"verifier.function: no installed package has an entry point {name!r} in the group "
            f"{_GROUP}; install it or write file.py:function"
        )
    try:
        return next(iter(found)).load()
    except Exception as error:
        raise UserError(
            f"verifier.function: {name} does not load: {one_line(error, named=True)}"
        ) from error
