"""Which problems a recipe trains on, and which it is evaluated on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from castctl.errors import UserError

if TYPE_CHECKING:
    from castctl.recipe.recipe import Recipe

HELD_OUT = "held-out"
"""The evaluation task whose problems are those of the data that are not trained on."""


def task_of(recipe: Recipe) -> str:
    """What is evaluated: `eval.task`, or else problems like those trained on."""
    embedded = names_data(recipe) and recipe.data.path == "embedded"
    return recipe.eval.task or ("embedded" if embedded else HELD_OUT)


def holds_out(recipe: Recipe) -> bool:
    """Whether some problems of the data are kept from training, to be evaluated on."""
    return task_of(recipe) == HELD_OUT


def names_data(recipe: Recipe) -> bool:
    """Whether somebody chose the data: it is embedded by default, which suits that model alone."""
    return recipe.model.path == "embedded" or "path" in recipe.data.model_fields_set


def asks_elsewhere(recipe: Recipe) -> bool:
    """Whether other data than the embedded arithmetic is evaluated on it."""
    return task_of(recipe) == "embedded" != recipe.data.path


def require_data(recipe: Recipe) -> None:
    """Raise `UserError` for a model of the user's without data to train it on."""
    if not names_data(recipe):
        raise UserError(
            f"model {recipe.model.path} needs problems of yours: name a Parquet, JSONL or CSV "
            "file, a benchmark or a hub id with --data (data.path)"
        )
