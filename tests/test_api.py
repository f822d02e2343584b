"""The functions of `import castctl`: the page that shows them, and what they refuse."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

import castctl
from castctl.runs.run import Run
from runs import assert_same_step, small_recipe, train_small

PAGE = Path(__file__).parents[1] / "docs" / "python.md"


@pytest.mark.slow
def test_the_blocks_of_the_page_run_one_after_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    names: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), names)
    assert len(blocks) >= 8
    assert "optimizer.lr" in capsys.readouterr().out  # what to write for learning_rate
    run = castctl.open_run("runs/notebook")
    assert run.steps == [0, 1] and run.checkpoints() == [2]
    assert run.metrics().column("step").to_pylist() == [0, 1]
    assert isinstance(names["advantages"], pa.Table) and names["advantages"].num_rows == 16
    assert names["results"]["embedded"]["avg"]["mean"] >= 0  # type: ignore[index]
    assert names["judgement"].verdict == "correct"  # type: ignore[attr-defined]
    assert (tmp_path / "runs/by-hand/checkpoints/step-00001/model.safetensors").is_file()


def test_every_function_is_on_the_page_and_says_what_it_does() -> None:
    page = PAGE.read_text()
    for name in castctl.__all__:
        assert f"castctl.{name}" in page
        assert inspect.getdoc(getattr(castctl, name))


def test_the_import_is_light() -> None:
    """No library but the standard one, whose import would be waited for."""
    code = "import castctl, sys; print(*{name.split('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    heavy = {"torch", "transformers", "pydantic", "numpy", "pyarrow", "yaml", "typer", "rich"}
    assert "castctl" in done.stdout.split() and not heavy & set(done.stdout.split())


SCRIPT = r"""
import castctl

print(castctl.grade("1 + 1?", r"\boxed{2}", "2").verdict)
print(castctl.grade("1 + 1?", r"\boxed{3}", "2").verdict)
print(castctl.grade("1 + 1?", "2", "2").verdict)
"""


@pytest.mark.parametrize("how", ["file", "standard input"])
def test_grading_needs_no_main_guard(tmp_path: Path, how: str) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    arguments = ["script.py"] if how == "file" else ["-"]
    done = subprocess.run(
        [sys.executable, *arguments], input=SCRIPT, cwd=tmp_path, capture_output=True, text=True,
        check=True, timeout=120,
    )  # fmt: skip
    assert done.stdout.split() == ["correct", "wrong", "no_answer"] and not done.stderr


def test_a_notebook_grades(tmp_path: Path) -> None:
    """In a process whose main module is no file, as a kernel's is not."""
    code = "import sys; sys.modules['__main__'].__dict__.pop('__file__', None)\n" + SCRIPT
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert done.stdout.split() == ["correct", "wrong", "no_answer"] and not done.stderr


@pytest.mark.slow
def test_the_functions_make_what_the_loop_makes(tmp_path: Path) -> None:
    looped, _ = train_small(tmp_path / "looped", small_recipe("cast", "train.steps=1"))
    run = castctl.create_run(looped.recipe, tmp_path / "by-hand")
    for stage in (castctl.rollout, castctl.score, castctl.shape):
        folder = stage(run, 0, quiet=True)
    assert_same_step(looped.step(0), folder)


@pytest.mark.slow
def test_a_finished_run_goes_on_and_is_scored_by_other_weights(tmp_path: Path) -> None:
    run, _ = train_small(tmp_path / "run", small_recipe("grpo", "train.steps=1"))
    longer = castctl.train(run=run, resume=True, steps=2, quiet=True)
    assert longer.checkpoints()[-1] == 2 and longer.metrics().num_rows == 2
    last = longer.checkpoint(2)
    found = castctl.diagnose("opsd-gaps", longer, steps=[0], model=last, quiet=True)
    [step] = found.steps
    assert step["policy"] == f"{longer.name}@step-00002", step
    retold = {"method.teacher.context": "answer"}
    told = castctl.diagnose("opsd-gaps", longer, steps=[0], overwrite=True, quiet=True, **retold)
    assert told.steps[0]["teacher_context"] == "answer" != found.steps[0]["teacher_context"]


def test_overrides_are_dotted_keys_or_sections() -> None:
    dotted = castctl.load_recipe(**{"optimizer.lr": 1e-5, "method.teacher.kind": "ema"}, seed=3)
    nested = castctl.load_recipe(
        optimizer={"lr": 1e-5}, method={"teacher": {"kind": "ema"}}, seed=3
    )
    assert dotted == nested and dotted.seed == 3 and dotted.model.path == "embedded"
    assert castctl.load_recipe(method="sdpg").method.name == "sdpg-urkl"
    other = castctl.load_recipe(model={"path": "somewhere/else"})
    assert other.data.prompt_template != castctl.load_recipe().data.prompt_template


@pytest.fixture
def made(tmp_path: Path) -> Run:
    """A run in which nothing has been done yet."""
    return castctl.create_run(run=tmp_path / "made")


MISTAKES: list[Callable[[Any], object]] = [
    lambda made: castctl.open_run(made.path / "none"),
    lambda made: castctl.load_recipe("no-such-recipe"),
    lambda made: castctl.train(resume=True),
    lambda made: castctl.train(run=made),
    lambda made: castctl.train(steps=3),
    lambda made: castctl.diagnose("no-such-diagnosis"),
    lambda made: made.metrics(),
    lambda made: made.step(0).table("rewards"),
    lambda made: castctl.create_run(run=made.path),
    lambda made: castctl.shape(made, 7),
    lambda made: castctl.rollout(made, 7),
    lambda made: castctl.evaluate(made, "no-such-task"),
]


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_a_user_error(made: Any, mistake: Callable[[Any], object]) -> None:
    with pytest.raises(castctl.UserError):
        mistake(made)
