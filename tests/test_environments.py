"""Environments of the package `verifiers` as data and verifier."""

from __future__ import annotations

import importlib.util
import itertools
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

import castctl
from castctl.data.prompts import load_prompts
from castctl.errors import UserError
from castctl.recipe.environment import parse_environment
from castctl.recipe.public import public_name
from castctl.recipe.reader import load_recipe
from castctl.recipe.recipe import DataSettings, Recipe
from castctl.recipe.task import about
from castctl.recipe.trust import runs_code, trusted_code
from castctl.recipe.verifier import VerifierSettings
from castctl.verify.judge import Judgement, Row, grader_name, judge, judging_pool

INSTALLED = importlib.util.find_spec("verifiers") is not None
needs_verifiers = pytest.mark.skipif(not INSTALLED, reason="verifiers is not installed")

HEAD = """
import verifiers.v1 as vf

class Data(vf.TaskData):
    answer: int = 0
    forbidden: str = ""

class Config(vf.TasksetConfig):
    tasks: int = 6
    start: int = 0
"""

TASK = """
class Task(vf.Task[Data]):
    @vf.reward(weight=0.7)
    async def exact(self, trace):
        return float(trace.last_reply == str(self.data.answer))

    @vf.reward(weight=0.1)
    async def short(self, trace):
        return len(trace.last_reply) < 20

    @vf.reward(weight=0.2)
    async def clean(self, trace):
        return float(self.data.forbidden not in trace.last_reply)
"""

TASKSET = """
class Tasks(vf.Taskset[Task, Config]):
    def load(self):
        for a in range(self.config.start, self.config.start + self.config.tasks):
            yield Task(
                Data(
                    prompt=[
                        vf.UserMessage(content="0+1=?"), vf.AssistantMessage(content="1"),
                        vf.UserMessage(content=f"  {a}+1=? #### 7"),
                    ],
                    system_prompt="Only the number.", answer=a + 1, forbidden="never",
                ),
                self.config.task,
            )

__all__ = ["Tasks"]
"""

EXACT = "return float(trace.last_reply == str(self.data.answer))"

Write = Callable[..., str]
_numbers = itertools.count()


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Write an environment as a package where Python finds it; its name."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def write(code: str = HEAD + TASK + TASKSET) -> str:
        name = f"sums_{os.getpid()}_{next(_numbers)}"
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(code)
        return name.replace("_", "-")

    return write


def changed(old: str, new: str) -> str:
    """The code of an environment with one piece changed."""
    whole = HEAD + TASK + TASKSET
    assert whole.count(old) == 1
    return whole.replace(old, new)


def judged(
    function: str, *completions: str, problem: str = "  1+1=? #### 7", **more: Any
) -> list[Judgement]:
    settings = VerifierSettings(function=function, workers=1, **more)
    with judging_pool(settings) as pool:
        return judge(pool, settings, [Row(problem, each, "2", "stop") for each in completions])


# Its name


def test_a_name_says_arguments_and_a_reward() -> None:
    asked = parse_environment("env:owner/my-env@0.1?split=test&task.a=b%26c#exact")
    assert asked.id == "owner/my-env@0.1" and asked.reward == "exact"
    assert asked.arguments == {"split": "test", "task": {"a": "b&c"}}
    wrong = ("env:", "env:x?split", "env:x?a=1&a=2", "env:x?id=y", "env:x?a=1&a.b=2")
    for each in (*wrong, "env:x?a.b=2&a=1"):
        with pytest.raises(ValueError, match=r"env:"):
            parse_environment(each)


def test_an_environment_brings_its_verifier_and_whole_prompts(tmp_path: Path) -> None:
    recipe = load_recipe(overrides=["data.path=env:one?n=2"])
    assert recipe.verifier.function == "env:one?n=2"
    assert recipe.data.prompt_template == "{{ problem }}"
    own = load_recipe(
        data={"path": "env:one", "prompt_template": "a {{ problem }}"},
        overrides=["verifier.function=null"],
    )
    assert own.verifier.function is None and own.data.prompt_template == "a {{ problem }}"
    file = tmp_path / "recipe.yaml"
    file.write_text("data: {path: env:one}\nverifier: {timeout: 9}\n")
    assert load_recipe(file).verifier.function == "env:one"
    assert load_recipe(file, overrides=["train.steps=3"]).verifier.function == "env:one"
    another = load_recipe(file, data={"path": "env:two"})
    assert another.verifier.function == "env:two" and another.verifier.timeout == 9
    math = load_recipe(file, data={"path": "gsm8k"})
    assert math.verifier.function is None and math.eval.task is None
    assert math.data.prompt_template == Recipe().data.prompt_template
    file.write_text("data: {path: env:one}\nverifier: {function: my.py:check}\n")
    assert load_recipe(file).verifier.function == "my.py:check"
    assert load_recipe(file, data={"path": "env:one"}).verifier.function == "my.py:check"


def test_it_grades_no_other_problems(tmp_path: Path) -> None:
    recipe = load_recipe("grpo-qwen3-1.7b", data={"path": "env:one"})
    assert recipe.eval.task == "held-out"
    assert about(recipe, "held-out").verifier.function == "env:one"
    with pytest.raises(UserError, match="env:one grades its own problems, and none of aime24"):
        about(recipe, "aime24")
    task = tmp_path / "task.yaml"
    task.write_text("data: {path: aime24}\n")
    with pytest.raises(UserError, match=r"none of .*task\.yaml"):
        about(recipe, str(task))
    task.write_text("data: {path: aime24}\nverifier: {function: null}\n")
    assert about(recipe, str(task)).verifier.function is None


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"path": "env:one", "split": "test"}, "split is of files and data sets"),
        ({"path": "env:one", "answer_column": "a"}, "answer_column is of files"),
        ({"path": "env:one#exact"}, "leave out what follows #"),
        ({"path": "env:"}, "write an environment as env:NAME"),
        ({"mix": [{"path": "env:one", "weight": 1}, {"path": "a.jsonl", "weight": 1}]}, "alone"),
    ],
)
def test_settings_that_are_none_of_an_environments(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        load_recipe(data=settings)


def test_a_file_alone_does_not_run_it(tmp_path: Path, write: Write) -> None:
    mark = tmp_path / "ran"
    code = f"open({str(mark)!r}, 'w').close()"
    name = f"env:{write(code)}"
    file = tmp_path / "theirs.yaml"
    file.write_text(yaml.safe_dump({"data": {"path": name}}))
    theirs = load_recipe(file)
    assert set(runs_code(theirs)) == {"data.path", "verifier.function"}
    assert not trusted_code(theirs)
    with pytest.raises(UserError, match=r"problems from code.*--trust-verifier"):
        load_prompts(theirs.data)
    with pytest.raises(UserError, match=r"grades with code.*the environment.*--trust-verifier"):
        judging_pool(theirs.verifier)
    plain = {"data": {"path": "gsm8k"}, "eval": {"task": name}}
    file.write_text(yaml.safe_dump({**plain, "model": {"path": "embedded"}}))
    with pytest.raises(UserError, match="is data, and no evaluation task"):
        castctl.evaluate(castctl.create_run(load_recipe(file), tmp_path / "run"))
    file.write_text(yaml.safe_dump({"data": {"path": name}}))
    typed = load_recipe(data={"path": name})
    for trusted in (typed, castctl.load_recipe(file, trust_verifier=True)):
        assert trusted_code(trusted) >= {"data.path", "verifier.function"}
    assert not mark.exists()


def test_a_card_says_no_argument_which_may_be_a_place() -> None:
    assert public_name("env:owner/mine?file=/home/me/secret.json") == "env:owner/mine"


@pytest.mark.skipif(INSTALLED, reason="verifiers is installed")
def test_it_says_what_to_install() -> None:
    with pytest.raises(UserError, match=r"env:one needs the package verifiers; install it: pip"):
        load_prompts(DataSettings(path="env:one"))


# Its tasks


@needs_verifiers
def test_prompts_are_those_of_its_tasks_word_for_word(write: Write) -> None:
    name = f"env:{write()}?start=1&tasks=3"
    prompts = load_prompts(DataSettings(path=name))
    rows = prompts.table.to_pylist()
    assert [row["problem"] for row in rows] == [f"  {a}+1=? #### 7" for a in (1, 2, 3)]
    assert [row["answer"] for row in rows] == ["2", "3", "4"]
    assert {row["source"] for row in rows} == {name}
    assert rows[0]["earlier"] == [
        {"role": "system", "content": "Only the number."},
        {"role": "user", "content": "0+1=?"},
        {"role": "assistant", "content": "1"},
    ]
    assert prompts.revision == grader_name(VerifierSettings(function=name))
    assert prompts.revision.startswith(f"{name} ") and "verifiers 0.4" in prompts.revision
    assert len(load_prompts(DataSettings(path=name, limit=2)).table) == 2


@needs_verifiers
def test_the_version_is_that_of_its_code(write: Write) -> None:
    versions = [
        grader_name(VerifierSettings(function=f"env:{write(HEAD + TASK + TASKSET + more)}"))
        for more in ("", "", "# another\n")
    ]
    same, other, changed = (version.split()[1] for version in versions)
    assert same == other != changed


@needs_verifiers
def test_the_reward_is_the_weighted_sum(write: Write) -> None:
    name = f"env:{write()}"
    completions = ["2", " 2\n", "3", "never", "I think that it is 2", "a long reply, never right"]
    found = judged(name, *completions)
    assert [each.reward for each in found] == pytest.approx([1.0, 1.0, 0.3, 0.1, 0.2, 0.0])
    # 0.2 + 0.7 + 0.1, added one after the other, is less than 1.
    assert [each.verdict for each in found] == ["correct"] * 2 + ["wrong"] * 4
    short = judged(f"{name}#short", *completions)
    assert [each.reward for each in short] == [1, 1, 1, 1, 0, 0]


@needs_verifiers
@pytest.mark.parametrize(
    ("completion", "reward"),
    [
        ("<think>It is 3, never 2.</think>2", 1.0),
        ("It is 3, never 2, thus\n</think>\n\n2", 1.0),  # the prompt opened the thought
        ("<think>2", 0.3),
    ],
)
def test_thoughts_are_no_reply(write: Write, completion: str, reward: float) -> None:
    [found] = judged(f"env:{write()}", completion)
    assert found.reward == pytest.approx(reward)


@needs_verifiers
@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("return 1 / (len(trace.last_reply) - 1)", "ZeroDivisionError"),
        ("return float('nan')", "the verifier returned nan"),
        ("return float(trace.is_truncated)", "no is_truncated of a reply"),
        ("return float(trace.num_output_tokens)", "no num_output_tokens of a reply"),
        ("return float(trace.usage is None)", "no usage of a reply"),
    ],
)
def test_a_reward_that_fails_is_an_error_and_no_zero(write: Write, body: str, said: str) -> None:
    [found] = judged(f"env:{write(changed(EXACT, body))}", "2")
    assert found.verdict == "error" and found.reward is None
    assert said in (found.message or "")


@needs_verifiers
def test_another_problem_or_reward_is_an_error_and_no_zero(write: Write) -> None:
    name = f"env:{write()}"
    [found] = judged(name, "2", problem="1+1=?")
    assert found.verdict == "error" and "no task of this problem" in (found.message or "")
    [found] = judged(f"{name}#exakt", "2")
    assert found.verdict == "error" and "it has clean, exact, short" in (found.message or "")


@needs_verifiers
def test_a_reward_that_hangs_is_a_timeout(write: Write) -> None:
    [found] = judged(f"env:{write(changed(EXACT, 'while True: pass'))}", "2", timeout=0.5)
    assert (found.verdict, found.reward) == ("timeout", 0.0)


CLASS = "class Task(vf.Task[Data]):"
ALL = '__all__ = ["Tasks"]'


@needs_verifiers
@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (CLASS, f"{CLASS}\n    NEEDS_CONTAINER = True", "container"),
        ("async def short(self, trace):", "async def short(self, trace, runtime):",
         "takes a runtime for short"),
        (CLASS, f"{CLASS}\n    async def setup(self, trace, runtime): ...",
         r"around a reply \(setup\)"),
        (CLASS, f"{CLASS}\n    @vf.intercept\n    async def mend(self, response: vf.Response): ...",
         "rewrites"),
        (CLASS, f"{CLASS}\n    @classmethod\n    def toolsets(cls, config): return [object()]",
         "has tools"),
        ("    def load(self):", "    @classmethod\n"
         "    def toolsets(cls, config): return [object()]\n    def load(self):", "has tools"),
        ("    def load(self):", "    INFINITE = True\n    def load(self):", "without end"),
        (ALL, 'class Own(vf.SingleAgentEnv): ...\n__all__ = ["Tasks", "Own"]',
         "environment class of its own"),
        (ALL, 'class Own(vf.Harness): ...\n__all__ = ["Tasks", "Own"]', "program of its own"),
        ('vf.UserMessage(content=f"  {a}+1=? #### 7"),', "", "begins task 0 otherwise"),
        ('system_prompt="Only the number.", answer=a + 1,', 'system_prompt=f"{a}", answer=1,',
         "has two tasks, 0 and 1"),
        ("range(self.config.start, self.config.start + self.config.tasks)", "()", "has no tasks"),
        (ALL, "def load_environment(): ...", "does not load: AttributeError"),
        ("    start: int = 0", "    start: int", "does not load: ValidationError"),
    ],
)  # fmt: skip
def test_what_takes_more_than_one_reply_is_refused(
    write: Write, old: str, new: str, said: str
) -> None:
    code = changed(old, new)
    if "two tasks" in said:
        code = code.replace("{a}+1=?", "1+1=?")
    name = f"env:{write(code)}"
    for ask in (lambda: load_prompts(DataSettings(path=name)), lambda: judged(name, "2")):
        with pytest.raises(UserError, match=said) as error:
            ask()
        assert str(error.value).startswith(name) and "\n" not in str(error.value)


@needs_verifiers
@pytest.mark.parametrize("wrong", ["tusks=3", "tasks=many"])
def test_a_wrong_argument_is_told(write: Write, wrong: str) -> None:
    name = f"env:{write()}?{wrong}"
    with pytest.raises(UserError, match=f"does not load: ValidationError.*{wrong[:5]}"):
        load_prompts(DataSettings(path=name))
    with pytest.raises(UserError, match="'nowhere' not found"):
        load_prompts(DataSettings(path="env:nowhere"))


# Training on it


SMALL: dict[str, Any] = {
    "train.steps": 1, "train.prompts_per_step": 4, "train.part_size": 2, "sampling.n": 4,
    "sampling.max_tokens": 16, "eval.every": 0, "eval.k": 2, "verifier.workers": 1,
}  # fmt: skip


@needs_verifiers
@pytest.mark.slow
def test_a_run_trains_on_it_and_is_evaluated_on_what_it_holds_out(
    tmp_path: Path, write: Write
) -> None:
    name = f"env:{write()}?tasks=40"
    rewards = [
        {"kind": "correct"},
        {"kind": "custom", "function": f"{name}#clean", "name": "clean", "weight": 0},
    ]
    recipe = castctl.load_recipe(**SMALL, **{"data.path": name, "verifier.rewards": rewards})
    run = castctl.train(recipe, tmp_path / "run", quiet=True)
    table = run.step(0).table("rewards")
    assert table["reward"].to_pylist() == table["reward_correct"].to_pylist()
    assert table["reward_clean"].to_pylist() == [1.0] * 16
    assert {round(each, 5) for each in table["reward"].to_pylist()} <= {0.2, 0.3, 1.0}
    assert run.manifest["data"]["revision"] == grader_name(recipe.verifier)
    held = run.held_out_folder.table("prompts")["problem"].to_pylist()
    trained = run.prompts_folder.table("prompts")["problem"].to_pylist()
    assert held and len(held) + len(trained) == 40 and not set(held) & set(trained)


@needs_verifiers
@pytest.mark.slow
def test_the_command_line_needs_the_word_for_a_file(tmp_path: Path, write: Write) -> None:
    name = f"env:{write()}"
    file = tmp_path / "theirs.yaml"
    file.write_text("extends: tiny\n" + yaml.safe_dump({"data": {"path": name}}))
    settings = [word for key, value in SMALL.items() for word in ("--set", f"{key}={value}")]
    paths = [str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])]

    def run(*arguments: str, code: int = 0) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "castctl", *arguments], cwd=tmp_path, text=True,
            capture_output=True, env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        )  # fmt: skip
        assert done.returncode == code, done.stderr
        return " ".join((done.stdout + done.stderr).split())

    asked = ["rollout", "--recipe", str(file), "--run", "R", *settings]
    assert "problems from code" in run(*asked, code=2)
    assert "castctl score --run runs/R/step-00000 --trust-verifier" in run(
        *asked, "--trust-verifier"
    )
    assert "grades with code" in run("score", "--run", "R", code=2)
    assert "data.path, the environment sums-" in run("score", "--run", "R", "--trust-verifier")
