"""Sampling by the name of a model's family."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from castctl.errors import UserError
from castctl.recipe.reader import dump_recipe, read_recipe
from castctl.recipe.recipe import Recipe
from castctl.recipe.recommended import OFF, RECOMMENDED
from castctl.recipe.task import about, pinned
from castctl.stages.evaluate.results import variant
from castctl.stages.evaluate.runner import eval_sampling

QWEN3 = {"temperature": 0.7, "top_p": 0.8, "top_k": 20, "min_p": 0.0}


def changed(*overrides: str, file: Path | None = None, **sections: dict[str, object]) -> Recipe:
    return read_recipe(file, overrides, **sections)[0]


def drawn(recipe: Recipe) -> dict[str, float]:
    return eval_sampling(recipe).model_dump(include=set(OFF))


def test_a_family_decides_and_what_stands_beside_it_wins() -> None:
    assert drawn(changed("eval.sampling=qwen3-nothink")) == OFF | QWEN3
    for beside in (
        changed("eval.temperature=1", "eval.sampling=qwen3-nothink"),
        changed("eval.sampling=qwen3-nothink", "eval.temperature=1"),
        changed("eval.sampling=qwen3-nothink", eval={"temperature": 1.0}),
    ):
        assert drawn(beside) == OFF | QWEN3 | {"temperature": 1.0}
    origins = read_recipe(None, ["eval.sampling=qwen3-nothink", "eval.top_p=0.9"])[1]
    assert (origins["eval.top_k"], origins["eval.top_p"]) == ("preset qwen3-nothink", "--set")
    with pytest.raises(UserError, match=r"eval\.sampling: .*'deepseek-r1', got 'qwen3'"):
        changed("eval.sampling=qwen3")


def test_a_family_named_later_takes_the_place_of_settings_before(tmp_path: Path) -> None:
    """A run's recipe holds every setting: without this none of the family's would count."""
    base = tmp_path / "recipe.yaml"
    base.write_text(dump_recipe(changed("eval.temperature=0.2", "eval.presence_penalty=1")))
    assert drawn(changed("eval.sampling=qwen3-nothink", file=base)) == OFF | QWEN3
    mine = tmp_path / "mine.yaml"
    mine.write_text(yaml.safe_dump({"extends": "recipe.yaml", "eval": {"sampling": "deepseek-r1"}}))
    recipe = changed(file=mine)
    assert drawn(recipe) == OFF | {"temperature": 0.6, "top_p": 0.95}
    base.write_text(dump_recipe(recipe))
    again = changed("eval.temperature=1", file=base)
    assert drawn(again) == OFF | {"top_p": 0.95} and again.eval.sampling == "deepseek-r1"


@pytest.mark.parametrize("family", RECOMMENDED)
def test_a_family_stands_in_the_folders_name_by_its_numbers(family: str) -> None:
    name = variant(changed(), changed(f"eval.sampling={family}"))
    assert name == "t0.6-top-p0.95" + "-top-k20" * (family != "deepseek-r1") or (
        name == "t0.7-top-p0.8-top-k20" and family in ("qwen3-nothink", "qwen3-instruct-2507")
    )
    assert changed(f"eval.sampling={family}", "eval.min_p=0.1").eval.min_p == 0.1


def test_a_tasks_file_may_name_one(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("data: {path: aime24}\neval: {sampling: qwen3-nothink, top_p: 0.9}")
    asked = about(changed("eval.temperature=0.1", "eval.k=3"), pinned(str(file)))
    assert drawn(asked) == OFF | QWEN3 | {"top_p": 0.9} and asked.eval.k == 3
    with pytest.raises(UserError, match=r"says eval\.temperature=0\.7 itself"):
        changed(f"eval.task={file}", "eval.temperature=1")
