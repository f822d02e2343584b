"""A user's Jinja template, as the process that renders templates runs it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from jinja2 import StrictUndefined, meta
from jinja2.sandbox import ImmutableSandboxedEnvironment

_ENVIRONMENT = ImmutableSandboxedEnvironment(undefined=StrictUndefined, keep_trailing_newline=True)

_compiled = lru_cache(64)(_ENVIRONMENT.from_string)


def names_used(text: str) -> frozenset[str]:
    """The values that a template uses, of those that Jinja does not bring along."""
    used = meta.find_undeclared_variables(_ENVIRONMENT.parse(text))
    _compiled(text)
    return frozenset(used - _ENVIRONMENT.globals.keys())


def render_texts(text: str, values: Sequence[dict[str, str]]) -> list[str]:
    """A template rendered over each set of named values, which stay inert text."""
    return [_compiled(text).render(each) for each in values]
