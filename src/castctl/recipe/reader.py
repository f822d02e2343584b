"""Recipes as text: read from YAML, options and overrides, refused in one line, written back."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from castctl.errors import UserError
from castctl.methods import merged
from castctl.methods.presets import ALIASES
from castctl.recipe.address import without_address
from castctl.recipe.environment import brought, without_brought
from castctl.recipe.files import Part, Tree, default_recipe_path, is_written, read_source
from castctl.recipe.plain_yaml import MOST_CHARACTERS, read_yaml, write_yaml
from castctl.recipe.problems import fitted
from castctl.recipe.recipe import Recipe
from castctl.recipe.recommended import without_named
from castctl.recipe.split import names_data
from castctl.recipe.task import refuse_beside
from castctl.recipe.trust import runs_code, trusting, with_environment
from castctl.settings import settings_in

ABSENT = object()

Origins = dict[str, str]
"""Where each setting that is not its default comes from, by dotted key: `preset NAME`, the file of
the recipe or of one that it extends, with the variant in it, `option` or `--set`."""


def load_recipe(
    name: str | Path | None = None,
    overrides: Iterable[str] = (),
    *,
    tiny: bool = False,
    trusted: Collection[str] = (),
    **sections: dict[str, Any] | int | None,
) -> Recipe:
    """The recipe that `read_recipe` reads, without its origins."""
    return read_recipe(name, overrides, tiny=tiny, trusted=trusted, **sections)[0]


def read_recipe(
    name: str | Path | None = None,
    overrides: Iterable[str] = (),
    *,
    tiny: bool = False,
    trusted: Collection[str] = (),
    **sections: dict[str, Any] | int | None,
) -> tuple[Recipe, Origins]:
    """Read a recipe: the file over those it extends, its variant, then `sections` (options), then
    `a.b=c` overrides.

    `name` is a file, or the name of a recipe that comes with castctl, or either with `:VARIANT`.
    With `tiny`, it is its method on the embedded default. Code that a file asks for is not trusted
    (`CodeSection`), unless its setting is among `trusted`, the options or the overrides.
    Raises `UserError` naming the key, what is wrong with it, and the nearest valid key.
    """
    layers = _layers(name, tiny)
    given = {key: value for key, value in sections.items() if value not in (None, {})}
    typed = with_overrides(given, overrides)
    below = layers[-1][1]
    tree = _over(_room_for(below, typed), merged(brought(below, typed), given))
    layers.append(("option", tree))
    tree = with_overrides(tree, overrides)
    layers.append(("--set", tree))
    recipe = validated(tree, "settings")
    refuse_beside(recipe.eval.task, typed, ["eval"])
    asked = {key for key in runs_code(recipe) if _value_at(typed, key) is not ABSENT}
    asked = with_environment(asked, recipe)
    return trusting(recipe, asked | set(trusted)), _origins(recipe, layers)


def chosen_recipe(name: str | Path | None, sections: Tree) -> str | Path | None:
    """`name`, or the embedded default's recipe where `sections` name no other model either."""
    default = default_recipe_path()
    model = sections.get("model", {}).get("path")
    return default if name is None and model in (None, load_recipe(default).model.path) else name


def _layers(name: str | Path | None, tiny: bool) -> list[tuple[str, Tree]]:
    """The parts that a recipe is made of, the one it rests on first: each one's name, and its
    settings over all before it."""
    parts = [] if name is None else read_source(name).parts
    if tiny:
        parts = [*read_source(default_recipe_path()).parts, *map(_on_tiny, parts)]
    layers: list[tuple[str, Tree]] = [("recipe", {})]
    for part in parts:
        below = layers[-1][1]
        tree = _over(below, merged(brought(below, part.settings), part.settings))
        # Each by itself, so that its mistake is told from an option's.
        recipe = validated(tree, str(part.of))
        if not is_written(part.of.file):
            refuse_beside(recipe.eval.task, part.settings, ["eval"])
        layers.append((part.of.origin, tree))
    return layers


def _on_tiny(part: Part) -> Part:
    """What a part says of the embedded default: its method, and what it says differs there."""
    method = {key: value for key, value in part.settings.items() if key == "method"}
    return replace(part, settings=_over(method, part.tiny))


def _over(base: Tree, own: Tree) -> Tree:
    """`own` over `base`; another method brings all its slots along."""
    base = _room_for(base, own)
    method = own.get("method")
    if isinstance(method, dict) and "name" in method and _method_name(own) != _method_name(base):
        base = {**base, "method": {}}
    return merged(base, own)


def _room_for(base: Tree, own: Tree) -> Tree:
    """`base` without what `own` brings anew: a family's sampling, the revision of another path, the
    rewards of another environment."""
    return without_address(without_brought(without_named(base, own), own), own)


def _method_name(tree: Tree) -> object:
    method = tree.get("method")
    name = method.get("name", "grpo") if isinstance(method, dict) else "grpo"
    return ALIASES.get(name, name) if isinstance(name, str) else name


def _origins(recipe: Recipe, layers: list[tuple[str, Tree]]) -> Origins:
    """`layers`: each one's name and the tree with it and all before it merged."""
    return {
        setting.key: _origin(setting.key, layers) or _preset(setting.key, recipe)
        for setting in settings_in(recipe, Recipe())
        if setting.changed
    }


def _preset(key: str, recipe: Recipe) -> str:
    """What chose a setting that no layer speaks of."""
    name = recipe.eval.sampling if key.startswith("eval.") else recipe.method.name
    return f"preset {name}"


def _origin(key: str, layers: list[tuple[str, Tree]]) -> str | None:
    """The layer since which a setting has been what it is; None where no layer speaks of it."""
    values = [_value_at(tree, key) for _, tree in layers]
    if values[-1] is ABSENT:
        return None
    first = len(values) - 1
    while first > 0 and values[first - 1] == values[-1]:
        first -= 1
    return layers[first][0]


def _value_at(tree: Any, key: str) -> Any:
    for part in key.split("."):
        if not isinstance(tree, dict) or part not in tree:
            return ABSENT
        tree = tree[part]
    return tree


def dump_recipe(recipe: Recipe) -> str:
    """The fully resolved recipe as YAML, without data where nobody has chosen any; `UserError`
    where it is too long to be read again."""
    tree = recipe.model_dump(mode="json")
    if not names_data(recipe):
        del tree["data"]["path"]
    text = write_yaml(tree)
    if len(text) > MOST_CHARACTERS:  # nobody could open the run again
        raise UserError(
            f"the recipe has {len(text):,} characters, more than the {MOST_CHARACTERS:,} that are "
            "read; shorten its texts"
        )
    return text


def nested(overrides: Tree) -> Tree:
    """Settings by dotted keys or whole sections as sections; a method may be its name alone."""
    tree: Tree = {}
    for key, value in overrides.items():
        if key == "method" and isinstance(value, str):
            value = {"name": value}
        for part in reversed(key.split(".")):
            value = {part: value}
        tree = merged(tree, value)
    return tree


def validated(tree: Tree, origin: str) -> Recipe:
    """`tree` as a recipe; `UserError` in one line where it is none."""
    return fitted(Recipe, tree, origin)


def with_overrides(tree: Tree, overrides: Iterable[str]) -> Tree:
    """`tree` with `a.b=c` overrides over it; `UserError` for one that is not written so."""
    for override in overrides:
        tree = merged(tree, _parse_override(override))
    return tree


def _parse_override(override: str) -> Tree:
    key, equals, text = override.partition("=")
    if not equals or not key.strip():
        raise UserError(f"--set {override}: write it as section.key=value")
    try:
        value = read_yaml(text)
    except (yaml.YAMLError, ValueError):
        value = text
    for part in reversed(key.strip().split(".")):
        value = {part: value}
    return value
