"""Recipes as text: read from YAML, options and overrides, refused in one line, written back."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from castctl.errors import UserError
from castctl.methods import merged
from castctl.methods.method import kinds_of
from castctl.methods.presets import ALIASES
from castctl.recipe.files import Part, Tree, default_recipe_path, read_source
from castctl.recipe.recipe import Recipe
from castctl.settings import settings_in

T = TypeVar("T", bound=BaseModel)

ABSENT = object()

Origins = dict[str, str]
"""Where each setting that is not its default comes from, by dotted key: `preset NAME`, the file of
the recipe or of one that it extends, with the variant in it, `option` or `--set`."""


def load_recipe(
    name: str | Path | None = None,
    overrides: Iterable[str] = (),
    *,
    tiny: bool = False,
    **sections: dict[str, Any] | int | None,
) -> Recipe:
    """The recipe that `read_recipe` reads, without its origins."""
    return read_recipe(name, overrides, tiny=tiny, **sections)[0]


def read_recipe(
    name: str | Path | None = None,
    overrides: Iterable[str] = (),
    *,
    tiny: bool = False,
    **sections: dict[str, Any] | int | None,
) -> tuple[Recipe, Origins]:
    """Read a recipe: the file over those it extends, its variant, then `sections` (options), then
    `a.b=c` overrides.

    `name` is a file, or the name of a recipe that comes with castctl, or either with `:VARIANT`.
    With `tiny`, it is its method on the embedded default. Raises `UserError` naming the key, what
    is wrong with it, and the nearest valid key.
    """
    layers = _layers(name, tiny)
    tree = layers[-1][1]
    given = {key: value for key, value in sections.items() if value not in (None, {})}
    tree = _over(tree, given)
    layers.append(("option", tree))
    for override in overrides:
        tree = merged(tree, _parse_override(override))
    layers.append(("--set", tree))
    recipe = validated(Recipe, tree, "settings")
    return recipe, _origins(recipe, layers)


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
        tree = _over(layers[-1][1], part.settings)
        validated(Recipe, tree, str(part.of))  # so that its mistake is told from an option's
        layers.append((part.of.origin, tree))
    return layers


def _on_tiny(part: Part) -> Part:
    """What a part says of the embedded default: its method, and what it says differs there."""
    method = {key: value for key, value in part.settings.items() if key == "method"}
    return replace(part, settings=_over(method, part.tiny))


def _over(base: Tree, own: Tree) -> Tree:
    """`own` over `base`; another method brings all its slots along."""
    method = own.get("method")
    if isinstance(method, dict) and "name" in method and _method_name(own) != _method_name(base):
        base = {**base, "method": {}}
    return merged(base, own)


def _method_name(tree: Tree) -> object:
    method = tree.get("method")
    name = method.get("name", "grpo") if isinstance(method, dict) else "grpo"
    return ALIASES.get(name, name) if isinstance(name, str) else name


def _origins(recipe: Recipe, layers: list[tuple[str, Tree]]) -> Origins:
    """`layers`: each one's name and the tree with it and all before it merged."""
    preset = f"preset {recipe.method.name}"
    return {
        setting.key: _origin(setting.key, layers) or preset
        for setting in settings_in(recipe, Recipe())
        if setting.changed
    }


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
    """The fully resolved recipe as YAML."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def validated(section: type[T], tree: Any, origin: str) -> T:
    """`tree` as settings of type `section`; `UserError` in one line where it does not fit."""
    try:
        return section.model_validate(tree)
    except ValidationError as error:
        raise UserError(f"{origin}: {_first_problem(section, error)}") from None


def _parse_override(override: str) -> Tree:
    key, equals, text = override.partition("=")
    if not equals or not key.strip():
        raise UserError(f"--set {override}: write it as section.key=value")
    try:
        value = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError):
        value = text
    for part in reversed(key.strip().split(".")):
        value = {part: value}
    return value


def _first_problem(section: type[BaseModel], error: ValidationError) -> str:
    problem = error.errors()[0]
    # Discriminated unions put the chosen kind into the location; it is no key of the recipe.
    kinds = _kinds(section)
    keys = ".".join(str(part) for part in problem["loc"] if part not in kinds)
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    if problem["type"] == "extra_forbidden":
        known = _known_keys(section)
        begun = [key for key in known if key.startswith(keys)]
        near = begun or difflib.get_close_matches(keys, known, n=1, cutoff=0.6)
        if not near:
            return f"unknown key {keys}; the sections are {', '.join(section.model_fields)}{more}"
        if near[0] == keys:
            return f"key {keys} does not belong to the kind chosen beside it{more}"
        return f"unknown key {keys}; the nearest one is {near[0]}{more}"
    if problem["type"] in ("union_tag_invalid", "union_tag_not_found"):
        field = _field_at(section, keys.split("."))
        here = [kind for each in _sections_in(field) for kind in kinds_of(each)] if field else kinds
        return f"{keys}.kind must say which: {', '.join(here)}{more}"
    if problem["type"] in ("model_type", "model_attributes_type"):
        field = _field_at(section, keys.split("."))
        inner = _sections_in(field) if field else []
        first = next((key for each in inner for key in each.model_fields), "KEY")
        mapping = f"{{{first}: {problem['input']}}}"
        return f"{keys}: write its settings as a mapping, such as {mapping}{more}"
    message = problem["msg"].removeprefix("Value error, ")
    if keys and problem["type"] != "value_error":
        shown = repr(problem["input"]) if not isinstance(problem["input"], dict) else ""
        return (
            f"{keys}: {message[0].lower() + message[1:]}{f', got {shown}' if shown else ''}{more}"
        )
    return f"{keys + ': ' if keys else ''}{message}{more}"


def _known_keys(section: type[BaseModel], prefix: str = "") -> list[str]:
    keys = []
    for name, field in section.model_fields.items():
        keys.append(prefix + name)
        for inner in _sections_in(field):
            keys += _known_keys(inner, f"{prefix}{name}.")
    return keys


def _kinds(section: type[BaseModel]) -> set[str]:
    """Names of the members of every discriminated union below `section`."""
    kinds = set()
    for field in section.model_fields.values():
        inner = _sections_in(field)
        if field.discriminator:
            kinds |= {kind for each in inner for kind in kinds_of(each)}
        kinds = kinds.union(*map(_kinds, inner))
    return kinds


def _field_at(section: type[BaseModel], keys: Sequence[str]) -> FieldInfo | None:
    """The field that dotted keys lead to; None where they lead nowhere."""
    field = section.model_fields.get(keys[0])
    if field is None or len(keys) == 1:
        return field
    found = (_field_at(inner, keys[1:]) for inner in _sections_in(field))
    return next((each for each in found if each is not None), None)


def _sections_in(field: FieldInfo) -> list[type[BaseModel]]:
    """The section that a field holds, or each that its union allows."""
    candidates = (field.annotation, *get_args(field.annotation))
    return [c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)]
