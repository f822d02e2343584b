"""Evaluation tasks that users write as YAML files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml

from castctl.data.benchmarks import task_source
from castctl.errors import UserError
from castctl.recipe.reader import dump_recipe, read_recipe
from castctl.recipe.recipe import Recipe
from castctl.recipe.task import about, pinned, read_task
from castctl.stages.evaluate.results import task_name
from castctl.stages.evaluate.runner import eval_sampling, task_data
from conftest import Cli

SUMS = [{"question": f"{n} + 1 = ?", "result": str(n + 1)} for n in range(3)]

TASK: dict[str, Any] = {
    "about": "sums of one",
    "data": {
        "path": "sums.jsonl",
        "problem_column": "question",
        "answer_column": "result",
        "prompt_template": "{{ problem }} Box it.",
    },
    "verifier": {"box_within_last": 0.5},
    "eval": {"k": 2, "max_tokens": 16, "temperature": 0.7},
}


def write(folder: Path, task: dict[str, Any] = TASK, name: str = "sums.yaml") -> Path:
    (folder / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in SUMS))
    file = folder / name
    file.write_text(yaml.safe_dump(task))
    return file


def changed(*overrides: str) -> Recipe:
    return read_recipe(overrides=overrides)[0]


def test_what_a_file_says_stands_over_the_recipe_and_the_rest_is_the_recipes(
    tmp_path: Path,
) -> None:
    file = write(tmp_path)
    own = changed("eval.k=5", "eval.top_p=0.9", "data.system_prompt=Hm.", "data.limit=9")
    recipe = about(own, pinned(str(file)))
    sampling = eval_sampling(recipe)
    assert (sampling.n, sampling.max_tokens, sampling.temperature) == (2, 16, 0.7)
    assert sampling.top_p == 0.9 and recipe.verifier.box_within_last == 0.5
    data = task_data(recipe, None)
    assert data.path == str(tmp_path / "sums.jsonl") and data.split == "test" and not data.limit
    assert (data.problem_column, data.answer_column) == ("question", "result")
    assert (data.prompt_template, data.system_prompt) == ("{{ problem }} Box it.", "Hm.")
    # Training is as it was.
    assert (own.verifier.box_within_last, own.eval.k) == (None, 5)


def test_a_file_may_name_a_benchmark_and_a_hub_id(tmp_path: Path) -> None:
    for path, split in (("aime24", "train"), ("owner/name", "test")):
        file = write(tmp_path, {"data": {"path": path, "revision": "v1"}})
        data = task_source(str(file), changed().data)
        assert (data.path, data.split, data.revision) == (path, split, "v1")


def test_a_changed_file_is_another_task(tmp_path: Path) -> None:
    file = write(tmp_path)
    begun = changed(f"eval.task={file}")
    task = begun.eval.task
    assert task == pinned(str(file)) and task_name(task) == f"sums-{read_task(task).digest}"
    file.write_text("# a comment\n" + yaml.safe_dump(TASK | {"about": "other words"}))
    assert pinned(str(file)) == task
    write(tmp_path, TASK | {"eval": {"k": 3}})
    assert pinned(str(file)) != task
    with pytest.raises(UserError, match=r"is another task now .* begun with"):
        about(begun, task)
    (tmp_path / "manifest.json").write_text("{}")
    run = tmp_path / "recipe.yaml"
    run.write_text(dump_recipe(begun))
    assert read_recipe(run)[0].eval.task == task  # a run of before still opens
    file.unlink()
    assert read_recipe(run)[0].eval.task == task
    with pytest.raises(UserError, match="no task file at"):
        changed(f"eval.task={file}")


@pytest.mark.parametrize(
    ("task", "complaint"),
    [
        ({"data": {"path": "a.csv"}, "k": 4}, "unknown key k; write eval.k"),
        ({"data": {"path": "a.csv", "colum": "x"}}, "unknown key data.colum; the nearest one is"),
        ({"data": {"path": "a.csv", "limit": 4}}, "unknown key data.limit; write eval.limit"),
        ({"data": {"path": "a.csv"}, "eval": {"every": 4}}, "unknown key eval.every"),
        ({"data": {"path": "a.csv"}, "verifer": {}}, "the nearest one is verifier"),
        ({"data": {"path": "a.csv"}, "eval": {"k": 2, "temperature": 0}}, "set eval.k=1"),
        ({"data": {"path": "a.csv"}, "eval": {"k": "many"}}, "eval.k: .*got 'many'"),
        ({"eval": {"k": 4}}, "data: field required"),
        ([1], "a task is a mapping"),
    ],
)
def test_a_mistake_in_a_file_is_one_line(tmp_path: Path, task: Any, complaint: str) -> None:
    file = write(tmp_path, task)
    with pytest.raises(UserError, match=complaint) as error:
        changed(f"eval.task={file}")
    assert str(file) in str(error.value) and "\n" not in str(error.value)


def test_a_setting_has_one_place(tmp_path: Path) -> None:
    """What is typed or written beside a task's file is never passed over in silence."""
    file = write(tmp_path)
    with pytest.raises(UserError, match=r"says eval\.k=2 itself"):
        changed(f"eval.task={file}", "eval.k=4")
    assert changed(f"eval.task={file}", "eval.k=2", "eval.limit=1").eval.limit == 1
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(yaml.safe_dump({"eval": {"task": str(file), "k": 4}}))
    with pytest.raises(UserError, match=r"says eval\.k=2 itself"):
        read_recipe(recipe)
    # A recipe that knew nothing of the task may have settings for others.
    recipe.write_text(yaml.safe_dump({"eval": {"k": 4}}))
    assert about(read_recipe(recipe, [f"eval.task={file}"])[0], pinned(str(file))).eval.k == 2


def test_a_verifier_that_a_file_names_needs_a_persons_word(castctl: Cli, tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/rules.py").write_text(
        "def check(problem, completion, answer):\n    return 1.0\n"
    )
    write(tmp_path / "sub", TASK | {"verifier": {"function": "rules.py:check"}})
    how = ("eval", "sub/sums.yaml", "--model", "embedded", "--run", "r")
    refused = castctl(*how, code=2)
    assert "--trust-verifier" in refused.stderr and "sub/rules.py:check" in refused.stderr
    castctl(*how, "--trust-verifier")
    [file] = tmp_path.glob("runs/r/eval/sums-*/step-00000/results.json")
    result = json.loads(file.read_text())
    assert result["avg"]["mean"] == 1.0 and result["grader"].startswith("rules.py:check")
    # Graded again, it is graded as the task says.
    again = castctl("eval", "--rescore", str(file.parent), code=2)
    assert "--trust-verifier" in again.stderr
    told = json.loads(
        castctl("eval", "--rescore", str(file.parent), "--trust-verifier", "--json").stdout
    )
    assert told["parts"][0]["after"]["mean"] == 1.0 and not told["parts"][0]["changes"]
    plain = castctl(
        "eval", "--rescore", str(file.parent), "--set", "verifier.function=null", "--json"
    )
    assert json.loads(plain.stdout)["parts"][0]["new_grader"].startswith("math-verify")


def test_the_command_records_the_task(castctl: Cli, tmp_path: Path) -> None:
    file = write(tmp_path)
    done = castctl("eval", "sums.yaml", "--model", "embedded", "--run", "r", "--limit", "2")
    digest = read_task(str(file)).digest
    folder = tmp_path / f"runs/r/eval/sums-{digest}/step-00000"
    result = json.loads((folder / "results.json").read_text())
    assert (result["k"], result["problems"], result["sampling"]["temperature"]) == (2, 2, 0.7)
    assert result["task"] == f"sums.yaml@{digest}"
    assert result["task_file"] == {key: TASK[key] for key in ("data", "verifier", "eval")}
    assert "half" not in result["grader"] and "within the last 0.5" in result["grader"]
    assert pq.read_table(folder / "rollouts")["problem"][0].as_py() == "0 + 1 = ?"
    assert f"sums-{digest}" in done.stdout
    beside = castctl("eval", "sums.yaml", "--run", "r", "-k", "3", code=2)
    assert "says eval.k=2 itself" in beside.stderr
    wrong = castctl("eval", "sums.yaml", "--run", "r", "--data", "sums.jsonl", code=2)
    assert "a file of problems itself" in wrong.stderr
    castctl("eval", "sums.yaml", "aime24", "--run", "r", "--data", "x", code=2)
    other = castctl("eval", "--run", "r", "sums.yaml", "--set", "eval.top_p=0.9")
    assert f"sums-{digest}-top-p0.9" in other.stdout
