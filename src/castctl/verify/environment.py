"""Environments of the package `verifiers` that one reply plays: found, loaded once, and named."""

from __future__ import annotations

import hashlib
import importlib
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from castctl.errors import UserError, one_line
from castctl.recipe.environment import Named, parse_environment

if TYPE_CHECKING:
    from castctl.verify.tasks import Tasks

READS = "0.4"
"""The release of `verifiers` whose tasks are read; others have them otherwise."""


def load_tasks(name: str) -> Tasks:
    """The tasks of the environment `env:NAME?KEY=VALUE`, whichever reward it names; loaded once.

    Runs code of the environment's. Raises `UserError` where the package is not there, where the
    environment does not load, and where one reply is not all that it takes.
    """
    return _load(name.partition("#")[0])


@cache
def _load(name: str) -> Tasks:
    install = "install it: pip install 'castctl[env]'"
    try:
        found = version("verifiers")
    except PackageNotFoundError:
        raise UserError(f"{name} needs the package verifiers; {install}") from None
    if not f"{found}.".startswith(f"{READS}."):
        raise UserError(f"{name} needs verifiers {READS}, and {found} is installed; {install}")
    from castctl.verify.tasks import Tasks, Unplayable

    asked = _named(name)
    try:
        return Tasks(asked)
    except Unplayable as error:
        raise UserError(f"{name} {error}") from None
    except Exception as error:  # whatever its code runs into
        raise UserError(f"{name} does not load: {one_line(error, named=True)}") from error


def environment_version(name: str) -> str:
    """The environment as it was named, with the version of its package and eight hex digits of its
    code, and the version of `verifiers`."""
    load_tasks(name)
    module = module_name(_named(name))
    try:
        installed = f" {version(module)}"
    except PackageNotFoundError:
        installed = ""
    digest = _digest(importlib.import_module(module))
    return f"{name}{installed} {digest}, verifiers {version('verifiers')}"


def module_name(asked: Named) -> str:
    """The module that `verifiers` imports for an environment, such as `owner/my-env@0.1`."""
    return asked.id.rsplit("/", 1)[-1].partition("@")[0].replace("-", "_").lower()


def _named(name: str) -> Named:
    try:
        return parse_environment(name)
    except ValueError as error:
        raise UserError(str(error)) from None


def _digest(module: ModuleType) -> str:
    """Eight hex digits of the SHA-256 over a module's files of Python, or a package's, by name."""
    file = Path(module.__file__ or "")
    files = sorted(file.parent.rglob("*.py")) if hasattr(module, "__path__") else [file]
    whole = hashlib.sha256()
    for each in files:
        whole.update(f"{each.relative_to(file.parent)}\0".encode() + each.read_bytes() + b"\0")
    return whole.hexdigest()[:8]
