"""What runs, comparisons and evaluations may be called."""

from __future__ import annotations

from pathlib import Path

import pytest

from castctl.comparison.training import comparison_folder
from castctl.errors import UserError
from castctl.runs.run import create_run, is_run, open_run
from conftest import Cli
from runs import small_recipe

ODD = ("x" * 300, ".hidden", "a/../../x", "a\tb", "a\nb", "\x1b[31mred", "..", "-x", " x", "x ",
       "ok/" + "é" * 120, "a\u202eb", " ", "")  # fmt: skip
RULES = ("a name has at most 200 bytes", "name is empty", "a path has .. only at its start")


@pytest.mark.parametrize("name", ODD)
def test_an_odd_name_is_refused_with_the_rule(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    for make in (lambda: create_run(small_recipe(), name, "test"), lambda: comparison_folder(name)):
        with pytest.raises(UserError) as caught:
            make()
        assert any(rule in str(caught.value) for rule in RULES)
        assert str(caught.value).isprintable()
    if name.strip() and name != "..":
        assert not is_run(name)
        with pytest.raises(UserError):
            open_run(name)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["x" * 300, "a/../../x"])
def test_every_command_refuses_an_odd_name(castctl: Cli, tmp_path: Path, name: str) -> None:
    for command in (
        ("train", "--tiny", "--run", name),
        ("rollout", "--tiny", "--run", name),
        ("eval", "--tiny", "--run", name),
        ("score", "--run", name),
        ("train", "--resume", "--run", name),
        ("train", "--from", name),
        ("inspect", name),
        ("compare", "grpo", "cast", "--tiny", "--name", name),
    ):
        said = castctl(*command, code=2).stderr
        assert any(rule in said for rule in RULES), (command, said)
    castctl("eval", "--rescore", name, code=2)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("task", ["..", "x" * 300, ".hidden", "...jsonl", "a\tb.jsonl"])
def test_an_evaluation_is_called_what_a_folder_may_be(
    castctl: Cli, tmp_path: Path, task: str
) -> None:
    said = castctl("eval", task, "--tiny", "--run", "r", code=2).stderr
    assert "an evaluation cannot be called" in said
    said = castctl("train", "--tiny", "--run", "r", "--set", f"eval.task={task}", code=2).stderr
    assert "an evaluation cannot be called" in said
    assert not (tmp_path / "runs/r").exists()


@pytest.mark.parametrize(
    "name",
    ["plain", "with space", "größe-7.v2", "sub/folder/run", "../beside/run", "x" * 200, "(1)"],
)
def test_other_names_and_paths_are_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    made = create_run(small_recipe(), name, "test")
    assert open_run(name).path == made.path and made.name == Path(name).name
    absolute = create_run(small_recipe(), str(tmp_path / "there" / Path(name).name), "test")
    assert open_run(str(absolute.path)).path == absolute.path


def test_a_folder_that_is_there_opens_whatever_it_is_called(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = create_run(small_recipe(), str(tmp_path / "run"), "test")
    odd = run.path.rename(tmp_path / ".set aside ")
    assert open_run(str(odd)).path == odd
    monkeypatch.chdir(odd)
    assert open_run(".").recipe == run.recipe
    empty = tmp_path / "empty"
    empty.mkdir()
    monkeypatch.chdir(empty)
    create_run(small_recipe(), ".", "test")
    with pytest.raises(UserError, match="empty"):
        open_run("")
