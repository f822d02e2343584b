"""When a run is evaluated and saved, in steps that are done."""

from __future__ import annotations

from castctl.recipe.recipe import Recipe


def evaluates_after(recipe: Recipe, done: int) -> bool:
    """Whether the loop evaluates after `done` steps; before the first it always does."""
    return _due(recipe, done, recipe.eval.every)


def saves_after(recipe: Recipe, done: int) -> bool:
    """Whether the loop writes a checkpoint after `done` steps: as asked, and what it evaluates."""
    return evaluates_after(recipe, done) or _due(recipe, done, recipe.train.checkpoint_every)


def _due(recipe: Recipe, done: int, every: int) -> bool:
    return done == recipe.train.steps or (every > 0 and done % every == 0)
