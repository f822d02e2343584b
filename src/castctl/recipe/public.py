"""What may be said of a recipe to strangers: names of models, data and code, but no place on this
machine."""

from __future__ import annotations

import os
import re
from typing import Any

from castctl.recipe.address import at_revision
from castctl.recipe.environment import PREFIX, is_environment, parse_environment
from castctl.recipe.recipe import Recipe

PLACES = (
    "model.path", "model.adapter", "method.teacher.path", "data.path", "eval.task",
    "verifier.function",
)  # fmt: skip
"""Settings that may be a path."""

CACHED = re.compile(r"(?:models|datasets)--([^/]+?)--([^/]+)/snapshots/[^/]+/?$")
"""The hub's own folder of what it has fetched."""

HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*", re.ASCII)


def hub_id(name: str) -> str | None:
    """The hub id that a model or data set is named by, or that the hub's cache holds it under; None
    for a file, a folder or another name."""
    if found := CACHED.search(name):
        return "/".join(found.groups())
    return name if HUB_ID.fullmatch(name) and not os.path.exists(name) else None


def public_name(path: str) -> str:
    """A hub id as it is; of an environment, a file or a folder its own name alone."""
    if is_environment(path):
        return PREFIX + parse_environment(path).id  # an argument may be a place
    name, revision = at_revision(path)
    if revision is not None and hub_id(name):
        return f"{hub_id(name)}@{revision}"
    return hub_id(path) or os.path.basename(path.rstrip("/")) or path


def public_recipe(recipe: Recipe) -> dict[str, Any]:
    """The recipe's settings as plain values, every place in them by its `public_name`."""
    tree: dict[str, Any] = recipe.model_dump(mode="json")
    for key in PLACES:
        *sections, name = key.split(".")
        inner = tree
        for section in sections:
            inner = inner[section]
        if isinstance(inner.get(name), str):
            inner[name] = public_name(inner[name])
    for source in (mix := tree["data"]["mix"]):
        source["path"] = public_name(source["path"])
    if mix:
        tree["data"]["path"] = " + ".join(source["path"] for source in mix)
    return tree
