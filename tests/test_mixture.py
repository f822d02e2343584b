"""Data of several sources, and data and models at a revision."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from castctl.data.benchmarks import task_source
from castctl.data.mixture import load_mixture
from castctl.data.order import mixed_further, mixed_prompts
from castctl.errors import UserError
from castctl.recipe.public import public_recipe
from castctl.recipe.reader import dump_recipe, read_recipe
from castctl.recipe.recipe import Recipe
from castctl.shards.part import read_table
from castctl.stages.evaluate.results import task_name
from conftest import Cli


def changed(*overrides: str, file: Path | None = None, **sections: Any) -> Recipe:
    return read_recipe(file, overrides, **sections)[0]


def jsonl(file: Path, first: int, count: int) -> Path:
    file.parent.mkdir(exist_ok=True)
    rows = ({"problem": f"{n} + 1 = ?", "answer": str(n + 1)} for n in range(first, first + count))
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def mixed(*sources: dict[str, Any]) -> Recipe:
    return changed(data={"mix": [*sources]}, eval={"task": "embedded"})


# Revisions


def test_a_revision_may_stand_behind_a_hub_id(tmp_path: Path) -> None:
    recipe = changed("data.path=owner/name@v1.5", model={"path": "Qwen/Qwen3-1.7B@refs/pr/1"})
    assert (recipe.data.path, recipe.data.revision) == ("owner/name", "v1.5")
    assert (recipe.model.path, recipe.model.revision) == ("Qwen/Qwen3-1.7B", "refs/pr/1")
    file = tmp_path / "recipe.yaml"
    file.write_text(dump_recipe(recipe))
    assert changed(file=file) == recipe
    # Another path brings its own revision, or none; the same path keeps it.
    assert changed("data.path=owner/other", file=file).data.revision is None
    assert changed("model.path=Qwen/Qwen3-1.7B", file=file).model.revision == "refs/pr/1"
    again = changed(file=file, data={"path": "owner/name@v2"}).data
    assert (again.path, again.revision) == ("owner/name", "v2")
    with pytest.raises(UserError, match="names one revision, and revision=v3 another"):
        changed("data.path=owner/name@v2", "data.revision=v3")


def test_a_path_with_an_at_in_it_is_itself(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "owner").mkdir()
    (tmp_path / "owner/model@v1").mkdir()
    recipe = changed("data.path=sums@v1.jsonl", "model.path=owner/model@v1")
    assert (recipe.data.path, recipe.data.revision) == ("sums@v1.jsonl", None)
    assert (recipe.model.path, recipe.model.revision) == ("owner/model@v1", None)


def test_a_benchmark_at_a_revision_is_asked_as_it_is_used_to() -> None:
    plain, pinned = (task_source(t, Recipe().data) for t in ("olympiadbench", "olympiadbench@v1"))
    assert pinned == plain.model_copy(update={"revision": "v1"})
    assert task_name("owner/name@v1") == "owner--name@v1"


# Mixtures


def test_no_place_of_a_mixture_is_told_to_strangers() -> None:
    sources = [{"path": "/home/me/a.jsonl", "weight": 2}, {"path": "a/b@v1", "weight": 1}]
    recipe = changed("eval.task=owner/name@v1", data={"mix": sources})
    told = public_recipe(recipe)
    assert "/home" not in json.dumps(told) and told["data"]["path"] == "a.jsonl + a/b"
    assert told["eval"]["task"] == "owner/name@v1"


def test_a_mixture_is_read_as_one_data_set(tmp_path: Path) -> None:
    a, b = jsonl(tmp_path / "a/x.jsonl", 0, 4), jsonl(tmp_path / "b/x.jsonl", 2, 5)
    b.write_text('{"problem": " "}\n' + b.read_text())
    data = mixed({"path": str(a), "weight": 3}, {"path": str(b), "weight": 1, "limit": 4}).data
    read = load_mixture(data)
    assert Counter(read.table["source"].to_pylist()) == {str(a): 4, str(b): 2}
    assert len(set(read.table["prompt_id"].to_pylist())) == 6
    assert read.rows.to_pylist() == [0, 1, 2, 3, 7, 8]
    assert read.dropped.select(["row", "reason"]).to_pylist() == [
        {"row": 4, "reason": "empty problem"}
    ]
    assert read.notes == [f"{b}: 2 prompts are those of a source before it, left out"]
    other = mixed({"path": str(b), "weight": 1}, {"path": str(a), "weight": 1}).data
    assert len(load_mixture(other).table) == 7
    inside = jsonl(a.parent / "y.jsonl", 1, 2)
    swallowed = mixed({"path": str(a), "weight": 1}, {"path": str(inside), "weight": 1}).data
    with pytest.raises(UserError, match=r"every prompt of y\.jsonl is one of a source before it"):
        load_mixture(swallowed)


@given(
    st.lists(st.tuples(st.integers(1, 12), st.integers(1, 9)), min_size=1, max_size=4),
    st.integers(1, 12),
    st.integers(0, 99),
)
def test_steps_hold_the_shares_and_no_prompt_twice(
    sources: list[tuple[int, int]], per_step: int, seed: int
) -> None:
    weights = np.array([weight for _, weight in sources], float)
    share = weights / weights.sum()
    sizes = np.maximum([size for size, _ in sources], np.ceil(share * per_step).astype(int))
    source_P = np.repeat(np.arange(len(sizes)), sizes)
    rng = np.random.default_rng(seed)
    rng.shuffle(source_P)  # where a prompt stands in the data decides nothing
    steps = [mixed_prompts(source_P, share, per_step, step, seed) for step in range(12)]
    counts = np.array([np.bincount(source_P[step], minlength=len(sizes)) for step in steps])
    for step, count in zip(steps, counts, strict=True):
        assert len(set(step.tolist())) == len(step) == per_step
        assert (np.abs(count - share * per_step) < 1 + 1e-9).all()
    for source, size in enumerate(sizes):
        stream = [p for step in steps for p in step if source_P[p] == source]
        whole = len(stream) // size
        # Within a step the order is shuffled, so epochs are told by how often each was taken.
        taken = Counter(stream)
        assert not stream or max(taken.values()) <= whole + 1
        assert whole == 0 or min(taken[p] for p in np.flatnonzero(source_P == source)) >= whole - 1
    more = mixed_further(steps[0], source_P, share, per_step, 0, 1, seed)
    assert not set(more.tolist()) & set(steps[0].tolist()) and len(set(more.tolist())) == len(more)


def test_over_many_steps_the_shares_are_exact() -> None:
    source_P, share = np.repeat([0, 1, 2], [40, 30, 30]), np.array([0.61, 0.3, 0.09])
    taken = np.concatenate([mixed_prompts(source_P, share, 7, step, 5) for step in range(300)])
    found = np.bincount(source_P[taken]) / len(taken)
    assert np.abs(found - share).max() < 0.01  # drawn one by one the deviation would be 0.011
    first = np.bincount(source_P[mixed_prompts(source_P, share, 7, 0, 6)], minlength=3)
    assert first.sum() == 7


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        ({"path": "x.jsonl", "mix": [{"path": "a.jsonl", "weight": 1}]}, "path and mix are two"),
        ({"limit": 3, "mix": [{"path": "a.jsonl", "weight": 1}]}, "write limit into the sources"),
        ({"mix": [{"path": "a.jsonl"}]}, r"data\.mix\.0\.weight: field required"),
        ({"mix": [{"path": "a.jsonl", "weight": 0}]}, r"data\.mix\.0\.weight: .*got 0"),
        (
            {
                "mix": [
                    {"path": "a.jsonl", "weight": 1},
                    {"path": "b.csv", "weigth": 1, "weight": 2},
                ]
            },
            r"unknown key data\.mix\.weigth; the nearest one is data\.mix\.weight",
        ),
    ],
)
def test_a_mistake_in_a_mixture_is_one_line(data: dict[str, Any], complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        changed(data=data)


def test_a_mixture_and_a_path_take_each_others_place(tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(
        dump_recipe(mixed({"path": "a/b@v1", "weight": 2}, {"path": "c.csv", "weight": 1}))
    )
    again = changed(file=file).data
    assert again.path == "a/b + c.csv" and again.mix[0].revision == "v1"
    alone = changed("data.path=d.jsonl", file=file).data
    assert (alone.path, alone.mix) == ("d.jsonl", ())
    other = changed(file=file, data={"mix": [{"path": "e.csv", "weight": 1}]}).data
    assert other.path == "e.csv" and len(other.mix) == 1
    twice = mixed({"path": "a.csv", "weight": 2}, {"path": "a.csv", "weight": 1}).data
    with pytest.raises(UserError, match=r"names a\.csv twice"):
        load_mixture(twice)


def test_a_run_draws_by_the_shares_whatever_the_part_size(castctl: Cli, tmp_path: Path) -> None:
    jsonl(tmp_path / "a.jsonl", 0, 30)
    jsonl(tmp_path / "b.jsonl", 25, 14)
    recipe = {
        "extends": "tiny",
        "data": {"mix": [{"path": "a.jsonl", "weight": 3}, {"path": "b.jsonl", "weight": 1}]},
        "eval": {"task": "embedded"},
        "train": {"prompts_per_step": 8},
    }
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(recipe))
    words = castctl("explain", "mine.yaml").stdout
    assert "75.0% a.jsonl, 25.0% b.jsonl" in words and "data a.jsonl + b.jsonl" in words
    how = ("rollout", "--recipe", "mine.yaml", "-n", "2", "--max-tokens", "4")
    done = castctl(*how, "--run", "r", "--step", "0", "--set", "train.part_size=8")
    assert "b.jsonl: 5 prompts are those of a source before it" in done.stderr + done.stdout
    castctl(*how, "--run", "s", "--step", "0", "--set", "train.part_size=3")

    def drawn(run: str) -> list[str]:
        parts = sorted((tmp_path / f"runs/{run}/step-00000/rollouts").glob("*.parquet"))
        return [
            i
            for part in parts
            for i in read_table(part, "rollouts", "")[0]["prompt_id"].to_pylist()
        ]

    assert drawn("r") == drawn("s")
    prompts = read_table(tmp_path / "runs/r/prompts/part-00000.parquet", "prompts", "")[0]
    source = dict(
        zip(*(prompts[name].to_pylist() for name in ("prompt_id", "source")), strict=True)
    )
    assert Counter(source[i] for i in set(drawn("r"))) == {"a.jsonl": 6, "b.jsonl": 2}
    few = castctl(*how, "--run", "t", "--set", "train.prompts_per_step=44", code=2)
    assert "b.jsonl has 9 prompts to train on" in few.stderr
