"""A recipe to start from, as commented YAML: made from the settings' own docstrings and values."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator
from typing import Any

import yaml

from castctl.methods import MethodSettings
from castctl.recipe.recipe import Recipe
from castctl.settings import Setting, settings_in

FIRST = {
    "seed",
    "model.path",
    "data.path",
    "method.name",
    "sampling.n",
    "sampling.temperature",
    "sampling.max_tokens",
    "engine.kind",
    "optimizer.lr",
    "train.steps",
    "train.prompts_per_step",
    "train.checkpoint_every",
    "eval.task",
    "eval.every",
    "eval.k",
}
"""What a person changes first."""

WIDTH = 96


def starter(recipe: Recipe, *, full: bool = False) -> str:
    """A file that `read_recipe` resolves to `recipe`: the settings that a person changes first and
    those that are not at their method's defaults; with `full`, the others too, switched off by a
    `#` in the first column."""
    usual = Recipe(method=MethodSettings(name=recipe.method.name))
    settings = list(settings_in(recipe, usual))
    written = {each.key for each in settings if each.changed or each.key in FIRST}
    shown = settings if full else [each for each in settings if each.key in written]
    head = "Train by it with castctl train FILE; castctl explain FILE says what that will do."
    off = "A setting behind a # in the first column is at its default; take that # away to set it."
    elsewhere = "Settings that are not here are at their defaults; castctl init --full shows them."
    told = textwrap.wrap(f"{head} {off if full else elsewhere}", WIDTH)
    return "\n".join([*(f"# {line}" for line in told), *_lines(shown, written)]) + "\n"


def _lines(settings: Iterable[Setting], written: set[str]) -> Iterator[str]:
    """Each setting below its sections, which are opened as they come."""
    sections = {key[:at] for key in written for at, char in enumerate(key) if char == "."}
    above: list[str] = []
    for setting in settings:
        *inside, name = setting.key.split(".")
        common = next(
            (n for n, pair in enumerate(zip(above, inside, strict=False)) if pair[0] != pair[1]),
            min(len(above), len(inside)),
        )
        if not common:
            yield ""
        for depth in range(common, len(inside)):
            off = "" if ".".join(inside[: depth + 1]) in sections else "#"
            yield f"{off}{'  ' * depth}{inside[depth]}:"
        indent = "  " * len(inside)
        for line in textwrap.wrap(setting.meaning, WIDTH - len(indent)):
            yield f"{indent}# {line}"
        off = "" if setting.key in written else "#"
        yield f"{off}{indent}{name}: {_value(setting)}"
        above = inside


def _value(setting: Setting) -> str:
    """A value as YAML on one line."""
    value = list(setting.value) if isinstance(setting.value, tuple) else setting.value
    plain = _dumped(value)
    return plain if "\n" not in plain else _dumped(value, default_style='"')


def _dumped(value: Any, default_style: str | None = None) -> str:
    dumped = yaml.safe_dump(
        value,
        default_style=default_style,
        default_flow_style=True,
        allow_unicode=True,
        width=10**9,
    )
    return dumped.removesuffix("...\n").rstrip("\n")
