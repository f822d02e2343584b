"""Environments of the package `verifiers`, by name: `env:NAME`, with arguments
`env:NAME?split=test&task.judge=none`, and `env:NAME#REWARD` for one of its rewards alone."""

from __future__ import annotations

from typing import Any, NamedTuple
from urllib.parse import parse_qsl

PREFIX = "env:"

BARE = "{{ problem }}"
"""`data.prompt_template` of an environment, whose prompts are whole."""


class Named(NamedTuple):
    """What the name of an environment says."""

    id: str
    """What `verifiers` finds it by."""
    arguments: dict[str, Any]
    """Settings of its tasks, nested where they are written with dots; each is a text."""
    reward: str | None
    """The one of its rewards that is meant; None for their weighted sum."""


def is_environment(name: str) -> bool:
    return name.startswith(PREFIX)


def parse_environment(name: str) -> Named:
    """What `env:NAME?KEY=VALUE&...#REWARD` says; `ValueError` where it is not written so."""
    whole, _, reward = name.removeprefix(PREFIX).partition("#")
    id_, _, query = whole.partition("?")
    arguments: dict[str, Any] = {}
    try:
        pairs = parse_qsl(query, keep_blank_values=True, strict_parsing=bool(query))
    except ValueError:
        pairs = []
    keys = [key for key, _ in pairs]
    if not id_.strip() or (query and not pairs) or "id" in keys or len(set(keys)) < len(keys):
        raise ValueError(
            f"{name}: write an environment as env:NAME, with arguments, each once, as "
            "env:NAME?split=test&seed=0"
        )
    for key, value in pairs:
        *sections, last = key.split(".")
        inner = arguments
        for section in sections:
            inner = inner.setdefault(section, {})
            if not isinstance(inner, dict):
                raise ValueError(f"{name}: {section} is a value and a section; leave one out")
        if isinstance(inner.get(last), dict):
            raise ValueError(f"{name}: {last} is a value and a section; leave one out")
        inner[last] = value
    return Named(id_, arguments, reward or None)


def brought(base: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    """What the environment that `own` settings name for data brings along, where they and not
    `base` name it: prompts as they stand, its rewards as the verifier, and evaluations on problems
    of its own, which it alone grades."""
    path = _path(own)
    if not is_environment(path) or path == _path(base):
        return {}
    return {
        section: {key: value}
        for section, key, value in _brings(path)
        if key not in (own.get(section) or {})
    }


def without_brought(base: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    """A recipe's settings without what its environment brought, where `own` settings over it name
    other data."""
    path, data = _path(base), own.get("data")
    names = isinstance(data, dict) and ("path" in data or data.get("mix"))
    if not names or not is_environment(path) or path == _path(own):
        return base
    for section, key, value in _brings(path):
        said = base.get(section) or {}
        if said.get(key) == value:
            base = {**base, section: {each: said[each] for each in said if each != key}}
    return base


def _brings(path: str) -> list[tuple[str, str, str]]:
    """Section, key and value of each setting that comes with an environment."""
    return [
        ("data", "prompt_template", BARE),
        ("verifier", "function", path),
        ("eval", "task", "held-out"),
    ]


def _path(tree: dict[str, Any]) -> str:
    data = tree.get("data")
    path = data.get("path") if isinstance(data, dict) else None
    return path if isinstance(path, str) else ""
