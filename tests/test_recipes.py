"""The recipes that come with castctl: each loads, trains, and says what its name says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from castctl.recipe_reader import load_recipe, recipes_folder
from castctl.settings import settings_in
from conftest import Cli

RECIPES = sorted(recipes_folder().glob("*.yaml"))

ABLATIONS = {
    "mixed-only": {"method.zero_variance.kind"},
    "no-reversal": {"method.shaping.flip"},
    "symmetric-clip": {"method.shaping.positive_range", "method.shaping.negative_range"},
}


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_can_train(path: Path) -> None:
    assert load_recipe(path).check_training() == []


@pytest.mark.parametrize("name", ABLATIONS)
def test_an_ablation_is_one_setting_away(name: str) -> None:
    base = load_recipe(recipes_folder() / "cast-qwen3-1.7b.yaml")
    ablation = load_recipe(recipes_folder() / f"cast-qwen3-1.7b-{name}.yaml")
    changed = {each.key for each in settings_in(ablation, base) if each.changed}
    assert changed == ABLATIONS[name]


GAP = [0.3, -0.3, 2.0, -2.0, *[0.0] * 20]
"""Nats: two tokens that the ranges clip, two that flip, and noise that lifts no threshold."""


@pytest.fixture
def step(tmp_path: Path) -> Path:
    """A mixed group, one all correct and one all wrong, two completions each."""
    folder = tmp_path / "by-hand/step-00000"
    rewards, signals = [], []
    for prompt, outcomes in (("mixed", (1, 0)), ("right", (1, 1)), ("wrong", (0, 0))):
        for sample, reward in enumerate(outcomes):
            key = {"prompt_id": prompt, "sample": sample}
            verdict = "correct" if reward else "wrong"
            rewards.append({**key, "reward": float(reward), "verdict": verdict, "seconds": 0.0})
            policy = [-3.0] * len(GAP)
            teacher = [p + g for p, g in zip(policy, GAP, strict=True)]
            signals.append({**key, "policy_logprobs": policy, "teacher_logprobs": teacher})
    for stage, rows in (("rewards", rewards), ("signals", signals)):
        (folder / stage).mkdir(parents=True)
        pq.write_table(pa.Table.from_pylist(rows), folder / stage / "part-00000.parquet")
    return folder


@pytest.mark.parametrize("name", ["", *ABLATIONS])
def test_an_ablation_leaves_out_what_it_says(castctl: Cli, step: Path, name: str) -> None:
    recipe = recipes_folder() / ("-".join(filter(None, ("cast-qwen3-1.7b", name))) + ".yaml")
    castctl("shape", "--run", "by-hand", "--recipe", str(recipe))
    rows = pq.read_table(step / "advantages/part-00000.parquet").to_pylist()
    shaped = {(row["prompt_id"], row["sample"]): row for row in rows}
    bases = [shaped["right", 0]["base"], shaped["wrong", 0]["base"]]
    assert bases == ([0, 0] if name == "mixed-only" else [1, -1])
    right, wrong = shaped["mixed", 0], shaped["mixed", 1]
    flips = ([3], [2]) if name != "no-reversal" else ([], [])
    assert ([*np.flatnonzero(right["flipped"])], [*np.flatnonzero(wrong["flipped"])]) == flips
    praise, blame = (1.05, 0.8), (0.95, 1.2)
    if name == "symmetric-clip":
        praise, blame = (1.2, 0.8), (0.8, 1.2)
    assert right["weights"][:2] == pytest.approx(praise)
    assert wrong["weights"][:2] == pytest.approx(blame)
    assert right["advantages"][:2] == pytest.approx(praise, abs=1e-5)
    assert wrong["advantages"][:2] == pytest.approx([-b for b in blame], abs=1e-5)
