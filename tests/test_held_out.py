"""Problems held out of one's own data: never trained on, the same whatever is run, and told of."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from castctl import embedded
from castctl.comparison.entries import Entry, Planned
from castctl.comparison.sameness import require_same_prompts
from castctl.data.held_out import held_out, problem_hashes
from castctl.data.prompts import load_prompts
from castctl.errors import UserError
from castctl.models.loading import load_tokenizer
from castctl.progress import Silent
from castctl.recipe.files import default_recipe_path
from castctl.recipe.model import ModelSettings
from castctl.recipe.reader import dump_recipe, load_recipe
from castctl.recipe.recipe import DataSettings, Recipe
from castctl.recipe.split import task_of
from castctl.runs.prompts import prepare_held_out, prepare_prompts
from castctl.runs.run import Run, create_run, open_run
from castctl.shards.part import read_json
from castctl.shards.schema import PROMPTS
from castctl.stages.evaluate.stage import sources
from conftest import Cli
from runs import small_recipe, train_small


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def write_sums(name: str = "sums.jsonl", count: int = 24, answers: int = 1) -> Path:
    """A file of sums, each with `answers` ways to write its answer."""
    rows = [
        {"problem": f"{10 + n} + {20 + n % 7} = ?", "answer": f"{30 + n + n % 7}{'.0' * way}"}
        for n in range(count)
        for way in range(answers)
    ]
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Path(name)


ON_SUMS = ("--data", "sums.jsonl", "--set", "eval.task=held-out")


def on_sums(method: str = "grpo", *overrides: str, file: str = "sums.jsonl") -> Recipe:
    return small_recipe(method, f"data.path={file}", "eval.task=null", *overrides)


def prompts_of(run: Run) -> tuple[pa.Table, pa.Table]:
    """The prompts that a run trains on and those that it holds out."""
    tokenizer = load_tokenizer(embedded.ensure().model, ModelSettings())
    return (
        prepare_prompts(run, tokenizer, Silent()), prepare_held_out(run, tokenizer, Silent())
    )  # fmt: skip


def table(problems: list[str], answer: str = "1") -> pa.Table:
    return pa.Table.from_pylist(
        [{"prompt_id": p, "problem": p, "answer": answer} for p in problems], PROMPTS
    )


def chosen(problems: list[str], number: int) -> set[str]:
    prompts = table(problems)
    return set(prompts.filter(held_out(prompts, number))["problem"].to_pylist())


# The choice


@settings(max_examples=40)
@given(st.integers(1, 30), st.integers(1, 150), st.integers(0, 150), st.randoms())
def test_with_more_data_nothing_that_was_trained_on_is_held_out(
    number: int, before: int, more: int, random: object
) -> None:
    first = [f"problem {n}" for n in range(before)]
    later = first + [f"problem {n}" for n in range(before, before + more)]
    random.shuffle(later)  # type: ignore[attr-defined]
    trained = set(first) - chosen(first, number)
    assert not trained & chosen(later, number)


def test_as_many_as_asked_for_or_about_a_quarter_or_one() -> None:
    many = [f"problem {n}" for n in range(2000)]
    assert len(chosen(many, 128)) == 128 and chosen(many, 3) < chosen(many, 128)
    assert 450 < len(chosen(many, 10_000)) < 550
    assert len(chosen(["a", "b"], 128)) >= 1
    assert chosen(many, 128) == chosen(many[::-1], 128)


def test_rows_of_one_problem_stay_together() -> None:
    problems = [f"problem {n}" for n in range(200)]
    both = pa.concat_tables([table(problems, "2"), table(problems, "2.0")])
    mask = held_out(both, 20)
    assert (mask[:200] == mask[200:]).all() and mask.sum() == 40
    assert (problem_hashes(both)[:200] == problem_hashes(both)[200:]).all()


# A run


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run on sums with two spellings of each answer that goes over its data more than once, and
    draws again in place of the groups it drops."""
    folder = tmp_path_factory.mktemp("held-out")
    write_sums(str(folder / "sums.jsonl"), count=12, answers=2)
    recipe = on_sums(
        "dapo", "train.steps=2", "train.prompts_per_step=8", "eval.limit=null", "eval.every=1",
        "sampling.n=2", "sampling.max_tokens=32", "method.zero_variance.max_rounds=2",
        file=str(folder / "sums.jsonl"),
    )  # fmt: skip
    return train_small(folder / "run", recipe)[0]


def test_no_held_out_problem_is_ever_trained_on(trained: Run) -> None:
    held = trained.held_out_folder.table("prompts")
    everything = load_prompts(DataSettings(path=trained.recipe.data.path)).table
    seen: set[str] = set()
    draws = 0
    for step in range(2):
        rollouts = trained.step(step).table("rollouts")
        seen |= set(rollouts["problem"].to_pylist())
        draws += len(rollouts) // 2
        assert max(trained.metrics()["rounds"].to_pylist()) > 1
    assert draws > len(everything) - len(held), "one pass over the data, so nothing is tested"
    assert held.num_rows and not seen & set(held["problem"].to_pylist())
    kept = trained.prompts_folder.table("prompts")
    assert set(kept["prompt_id"].to_pylist()) | set(held["prompt_id"].to_pylist()) == set(
        everything["prompt_id"].to_pylist()
    )
    for step in (0, 1, 2):
        asked = trained.eval_folder("held-out", step)
        assert set(asked.table("rollouts")["prompt_id"].to_pylist()) == set(
            held["prompt_id"].to_pylist()
        )
        assert read_json(asked.path / "results.json")["task"] == "held-out"


def test_the_split_is_the_same_for_every_method_seed_and_step() -> None:
    write_sums()
    runs = [
        create_run(on_sums(method, f"seed={seed}"), f"{method}-{seed}", "test")
        for method, seed in (("grpo", 0), ("cast", 1), ("opsd", 2))
    ]
    held = [prompts_of(run)[1]["prompt_id"].to_pylist() for run in runs]
    assert held[0] == held[1] == held[2] and 0 < len(held[0]) < 12
    dropped = pa.parquet.read_table(runs[0].path / "dropped.parquet").to_pylist()
    assert sorted(row["prompt_id"] for row in dropped) == sorted(held[0])
    assert {row["reason"] for row in dropped} == {"held out"}


def test_more_data_later_changes_nothing_in_a_run_and_leaks_nothing() -> None:
    write_sums(count=24)
    run = create_run(on_sums(), "early", "test")
    trained, held = prompts_of(run)
    write_sums(count=60)
    again, still = prompts_of(run)
    assert again.equals(trained) and still.equals(held)
    later = prompts_of(create_run(on_sums(), "later", "test"))[1]
    assert len(later) > len(held)
    assert not np.isin(problem_hashes(later), problem_hashes(trained)).any()


def test_a_run_is_not_evaluated_on_what_it_trains_on() -> None:
    """A run that held nothing out is not asked its own problems, and no other way leads there."""
    write_sums()
    tokenizer = load_tokenizer(embedded.ensure().model, ModelSettings())
    run = create_run(on_sums("grpo", "eval.task=embedded"), "all", "test")
    prepare_prompts(run, tokenizer, Silent())
    asked = run.changed(["eval.task=held-out"])
    with pytest.raises(UserError, match=r"trains on \d+ of the \d+ problems that held-out"):
        prepare_held_out(asked, tokenizer, Silent())
    assert not run.held_out_folder.path.exists()

    write_sums(count=8)
    early = create_run(on_sums("grpo", "eval.held_out=1"), "evaluated-first", "test")
    prepare_held_out(early, tokenizer, Silent())
    write_sums(count=200)  # which holds another one out
    with pytest.raises(UserError, match="trains on 1 of the 1 problems that held-out"):
        prepare_prompts(early, tokenizer, Silent())


def test_too_few_problems_to_hold_one_out(castctl: Cli) -> None:
    write_sums(count=1)
    said = castctl("train", *ON_SUMS, code=2).stderr.splitlines()[-1]
    assert "sums.jsonl has 1 problems, too few" in said and "eval.task=FILE" in said


# What is told


def test_it_is_told_once_and_before_anything_starts(castctl: Cli) -> None:
    write_sums(count=120)
    few = (*ON_SUMS, "--set", "train.prompts_per_step=2", "-n", "2",
                "--max-tokens", "8")  # fmt: skip
    told = castctl("rollout", *few, "--run", "r").stderr
    held = open_run("r").held_out_folder.table("prompts").num_rows
    line = f"sums.jsonl: {held} problems are held out for evaluation and not trained on"
    assert told.count(line) == 1 and "eval.held_out=128" in told
    assert line not in castctl("rollout", "--run", "r", "--overwrite").stderr
    quiet = castctl("rollout", *few, "--run", "q", "--quiet").stderr
    assert "held out" not in quiet
    page = " ".join(castctl("explain", *ON_SUMS).stdout.split())
    assert "all problems of held-out, 128 problems of the data, chosen by hash" in page
    done = castctl("eval", "--run", "r", "-k", "2", "--max-tokens", "8", "--limit", "3", "--json")
    [result] = json.loads(done.stdout)["results"]
    assert (result["task"], result["problems"]) == ("held-out", 3)
    assert result["data"]["path"] == "sums.jsonl" and line not in done.stderr


# Which problems evaluate what


def test_a_task_left_out_is_the_data_s_own() -> None:
    tiny = load_recipe(default_recipe_path())
    assert task_of(tiny) == task_of(Recipe()) == "embedded"
    own = load_recipe(default_recipe_path(), ["eval.task=null"], data={"path": "a.jsonl"})
    assert task_of(own) == "held-out"
    model, data = {"path": "a/b"}, {"path": "gsm8k"}
    assert task_of(load_recipe(model=model, data=data)) == "held-out"
    assert task_of(load_recipe(model=model, data=data, eval={"task": "aime24"})) == "aime24"
    assert task_of(load_recipe("cast-qwen3-1.7b", data={"path": "a.jsonl"})) == "aime24"
    assert task_of(load_recipe(model=model, data={"path": "embedded"})) == "embedded"


def test_data_of_one_s_own_that_a_recipe_evaluates_on_arithmetic_is_a_warning() -> None:
    assert not load_recipe(default_recipe_path()).check_training()
    mixed = load_recipe(default_recipe_path(), data={"path": "a.jsonl"})
    [warning] = mixed.check_training()
    assert "evaluated on the embedded arithmetic, trained on a.jsonl: set eval.task=held" in warning


def test_a_file_of_problems_is_not_read_under_another_s_name() -> None:
    for task in ("a.jsonl", "held-out"):
        with pytest.raises(UserError, match=f"{task} is .*; leave one of them out"):
            sources([task], "b.jsonl")
    assert sources(["a.jsonl"], "a.jsonl") == {"a.jsonl": "a.jsonl"}


def test_a_model_of_one_s_own_asks_for_data(castctl: Cli, tmp_path: Path) -> None:
    model = str(embedded.ensure().model)
    for command in (("train",), ("train", "cast"), ("rollout",), ("explain",), ("init",)):
        said = castctl(*command, "--model", model, code=2).stderr.splitlines()[-1]
        assert f"model {model} needs problems of yours" in said and "--data" in said, command
    said = castctl("eval", "--model", model, code=2).stderr.splitlines()[-1]
    assert "needs problems to be asked; name a task, such as aime24, or a file with --data" in said
    assert not list(tmp_path.glob("runs/*")) and not Path("recipe.yaml").exists()


def test_a_run_without_data_is_not_given_any() -> None:
    """An evaluation of somebody's model is no reason to train it on the embedded arithmetic."""
    recipe = load_recipe(model={"path": str(embedded.ensure().model)}, eval={"task": "aime24"})
    run = open_run(str(create_run(recipe, "evaluated", "eval").path))
    tokenizer = load_tokenizer(embedded.ensure().model, ModelSettings())
    with pytest.raises(UserError, match="needs problems of yours"):
        prepare_prompts(run, tokenizer, Silent())
    assert "path: embedded" in dump_recipe(Recipe())


# Comparisons


def planned(name: str, recipe: Recipe) -> Entry:
    return Entry(name, name, True, [Planned(Path("runs") / name, recipe)])


def test_runs_with_other_held_out_problems_are_not_compared() -> None:
    write_sums("sums.jsonl", 60)
    rows = Path("sums.jsonl").read_text().splitlines(keepends=True)
    prompts = load_prompts(DataSettings(path="sums.jsonl")).table
    mask = held_out(prompts, 128)
    fewer = [row for row, held in zip(rows, mask, strict=True) if not held]
    first = int(np.flatnonzero(mask)[0])
    Path("one-less.jsonl").write_text("".join(row for n, row in enumerate(rows) if n != first))
    Path("other.jsonl").write_text("".join(fewer[1:]))
    base = planned("base", on_sums())
    require_same_prompts([base, planned("again", on_sums("cast"))], Silent())
    for name, recipe, said in (
        ("size", on_sums("grpo", "eval.held_out=3"), "the number of prompts"),
        ("data", on_sums(file="other.jsonl"), "the number of prompts"),
        ("held", on_sums(file="one-less.jsonl"), "the problems held out"),
    ):
        with pytest.raises(UserError, match=f"differ in {said}"):
            require_same_prompts([base, planned(name, recipe)], Silent())
