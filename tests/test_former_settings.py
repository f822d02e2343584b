"""Recipes and runs in the words of before: they read, and go on as if they were of today."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from batches import method
from castctl.recipe.reader import load_recipe
from castctl.runs.run import Run
from castctl.shards.part import write_part
from runs import (
    assert_goes_on,
    interrupted,
    small_recipe,
)

SINCE = {"shaping": ("decay_steps", "dead_band", "flip_size"), "zero_variance": ("decay_steps",)}
"""Settings that CAST's slots did not have."""


def as_before(slots: dict[str, Any]) -> dict[str, Any]:
    """CAST's slots as they were written when `flip` was a switch."""
    older = {**slots, **{slot: dict(slots[slot]) for slot in SINCE}}
    for slot, names in SINCE.items():
        for name in names:
            del older[slot][name]
    older["shaping"]["flip"] = {"both": True, "none": False}[older["shaping"]["flip"]]
    return older


def make_older(run: Run) -> None:
    file = run.path / "recipe.yaml"
    tree = yaml.safe_load(file.read_text())
    file.write_text(yaml.dump({**tree, "method": as_before(tree["method"])}))
    for number in run.steps:
        folder = run.step(number)
        for part in folder.parts("advantages"):
            read = folder.read("advantages", part)
            assert read.metadata is not None
            settings = as_before(read.metadata["settings"])
            made = {**read.metadata, "settings": settings}
            write_part(folder.part_path("advantages", part), "advantages", read.table, made)


@pytest.mark.parametrize(("before", "today"), [("true", "both"), ("false", "none")])
def test_a_recipe_in_which_flip_is_a_switch(tmp_path: Path, before: str, today: str) -> None:
    file = tmp_path / "older.yaml"
    file.write_text(f"method: {{name: cast, shaping: {{flip: {before}}}}}\n")
    assert load_recipe(file).method == method(name="cast", shaping={"flip": today})


@pytest.mark.parametrize("flip", ["both", "none"])
def test_a_run_of_cast_goes_on(tmp_path: Path, flip: str) -> None:
    recipe = small_recipe(
        "cast", "train.steps=2", "train.checkpoint_every=2", f"method.shaping.flip={flip}"
    )
    older = interrupted(tmp_path / "older", recipe)
    assert older.step(0).parts("advantages") and not older.checkpoints()
    make_older(older)
    assert_goes_on(older, recipe, tmp_path / "whole")
