"""Statistics of an evaluation, against closed forms, simulation and cases made by hand."""

from __future__ import annotations

import json
import math
import re
from importlib.metadata import version
from itertools import combinations
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from castctl import __version__ as castctl_version
from castctl.data.benchmarks import BENCHMARKS, task_source
from castctl.errors import UserError
from castctl.recipe.reader import read_recipe
from castctl.recipe.recipe import DataSettings, EvalSettings, Recipe
from castctl.recipe.verifier import VerifierSettings
from castctl.report.evaluation import markdown
from castctl.shards.part import read_json
from castctl.stages.evaluate.results import task_name, variant
from castctl.stages.evaluate.runner import Posed, require_room
from castctl.stages.evaluate.statistics import majority, paired_difference, pass_at_k, problem_mean
from castctl.stages.evaluate.summary import summarise
from castctl.verify.pool import CheckPool
from conftest import Cli


@given(st.integers(1, 9), st.data())
def test_pass_at_k_is_the_share_of_subsets_that_hold_a_correct_one(
    samples: int, data: st.DataObject
) -> None:
    k = data.draw(st.integers(1, samples))
    correct = data.draw(st.integers(0, samples))
    marks = [True] * correct + [False] * (samples - correct)
    subsets = list(combinations(marks, k))
    expected = sum(any(subset) for subset in subsets) / len(subsets)
    assert pass_at_k(np.array([correct]), samples, k)[0] == pytest.approx(expected, abs=1e-12)


def test_pass_at_k_stays_exact_where_binomials_overflow() -> None:
    expected = 1 - math.comb(9_000, 5_000) / math.comb(10_000, 5_000)
    assert pass_at_k(np.array([1_000]), 10_000, 5_000)[0] == pytest.approx(expected, abs=1e-12)
    with pytest.raises(ValueError, match="k must be"):
        pass_at_k(np.array([1]), 4, 5)


def test_the_interval_is_students_over_problems() -> None:
    estimate = problem_mean(np.array([0.0, 0.5, 1.0, 0.5]))
    half = 3.182446305284263 * np.std([0, 0.5, 1, 0.5], ddof=1) / 2
    assert estimate.mean == 0.5
    assert estimate.low == pytest.approx(0.5 - half) and estimate.high == pytest.approx(0.5 + half)
    assert problem_mean(np.array([0.25])).low is None
    paired = paired_difference(np.array([0.1, 0.9, 0.4]), np.array([0.3, 1.1, 0.7]))
    half = 4.302652729696142 * np.std([0.2, 0.2, 0.3], ddof=1) / math.sqrt(3)
    assert (paired.mean, paired.high) == pytest.approx((0.7 / 3, 0.7 / 3 + half))


@pytest.mark.parametrize(
    ("problems", "difficulty", "low", "high"),
    [
        (200, (1.0, 2.0), 0.93, 0.97),
        (200, (0.3, 0.7), 0.93, 0.97),
        (30, (1.0, 2.0), 0.93, 0.97),
        (30, (0.3, 0.7), 0.93, 0.97),
        (30, (0.2, 1.8), 0.89, 0.93),  # most problems unsolved: the mean of 30 is skewed
    ],
)
def test_the_interval_covers_the_mean_over_the_population_of_problems(
    problems: int, difficulty: tuple[float, float], low: float, high: float
) -> None:
    """Problems of Beta difficulty, 8 samples each: how many intervals hold the true mean.

    An interval over problems x samples as if they were independent would be too narrow.
    """
    rng = np.random.default_rng(0)
    truth = difficulty[0] / sum(difficulty)
    covered = narrow = 0
    trials = 2000
    for _ in range(trials):
        means = rng.binomial(8, rng.beta(*difficulty, problems)) / 8
        estimate = problem_mean(means)
        assert estimate.low is not None and estimate.high is not None
        covered += estimate.low <= truth <= estimate.high
        half = 1.96 * math.sqrt(estimate.mean * (1 - estimate.mean) / (8 * problems))
        narrow += abs(estimate.mean - truth) <= half
    assert low < covered / trials < high
    assert narrow / trials < 0.85


@pytest.mark.parametrize(
    ("answers", "winner"),
    [
        (["1", "2", "2"], 1),
        (["1", "2"], 0),  # a tie goes to the answer given first
        ([None, "3", None], 1),
        ([None, None], None),
        (["2", "1/2", "0.5"], 1),  # equivalent answers count as one
        (["7", "7", "1/2", "0.5", "\\frac12"], 2),
    ],
)
def test_majority(answers: list[str | None], winner: int | None) -> None:
    half = [text for text in ("1/2", "0.5", "\\frac12") if text in answers]
    assert next(iter(majority(answers, combinations(half, 2))), None) == winner


def _table(rewards: list[list[float | None]], answers: list[list[str | None]]) -> pa.Table:
    return pa.Table.from_pylist(
        [
            {
                "prompt_id": f"p{p}",
                "sample": s,
                "reward": reward,
                "extracted": answers[p][s],
                "verdict": "correct" if reward else "wrong",
            }
            for p, samples in enumerate(rewards)
            for s, reward in enumerate(samples)
        ]
    )


def test_a_summary_by_hand() -> None:
    rewards: list[list[float | None]] = [[1.0, 0.0, 0.0, 0.0], [1.0, 1.0, 0.0, 1.0]]
    answers = [["1", "0.50", "1/2", None], ["2", "2.0", "3", "2"]]
    lengths, truncated = np.array([1, 2, 3, 4] * 2), np.array([True, False, False, False] * 2)
    with CheckPool(VerifierSettings(workers=1)) as pool:
        result = summarise(_table(rewards, answers), lengths, truncated, 4, pool, "task")
    assert result["avg"]["mean"] == 0.5
    assert result["pass"]["1"]["mean"] == 0.5 and result["pass"]["4"]["mean"] == 1.0
    assert result["pass"]["2"]["mean"] == pytest.approx((0.5 + 1.0) / 2)
    assert result["maj"]["mean"] == 0.5  # one half outvotes the gold of the first problem
    assert result["truncated_share"] == 0.25 and result["length_mean"] == 2.5
    assert result["by_problem"] == {"p0": 0.25, "p1": 0.75}


@pytest.mark.parametrize("broken", [[[1.0, None], [0.0, 1.0]], [[1.0], [0.0, 1.0]], []])
def test_fewer_samples_than_k_are_no_result(broken: list[list[float | None]]) -> None:
    answers: list[list[str | None]] = [["1"] * len(samples) for samples in broken]
    columns = {"prompt_id": pa.string(), "reward": pa.float32(), "extracted": pa.string(),
               "verdict": pa.string()}  # fmt: skip
    table = _table(broken, answers) if broken else pa.schema(columns).empty_table()
    with (
        CheckPool(VerifierSettings(workers=1)) as pool,
        pytest.raises(UserError, match="there is no avg@2"),
    ):
        summarise(table, None, None, 2, pool, "task")


def test_a_task_names_its_folder() -> None:
    assert task_name("aime24") == "aime24"
    assert task_name("some/where/my.jsonl") == "my"
    assert task_name("owner/data") == "owner--data"
    assert task_name("owner/data-v1.5") == "owner--data-v1.5"


# Folders


def changed(*overrides: str) -> Recipe:
    return read_recipe(overrides=overrides)[0]


@pytest.mark.parametrize(
    ("overrides", "name"),
    [
        ((), ""),
        (("eval.task=aime24", "eval.every=3", "train.steps=7", "data.limit=9"), ""),
        (("eval.k=16",), "k16"),
        (("eval.k=1", "eval.temperature=0"), "k1-t0"),
        (("eval.top_p=0.95", "eval.limit=4", "seed=7"), "top-p0.95-limit4-seed7"),
        (
            ("eval.presence_penalty=1.5", "eval.repetition_penalty=1.05"),
            "presence1.5-repetition1.05",
        ),
        (("eval.max_tokens=64", "model.dtype=bfloat16"), "max64-dtype-bfloat16"),
    ],
)
def test_what_differs_from_the_run_stands_in_the_folder(
    overrides: tuple[str, ...], name: str
) -> None:
    assert variant(changed(), changed(*overrides)) == name


def test_no_two_ways_to_evaluate_share_a_folder() -> None:
    ways = [
        (), ("eval.k=2",), ("eval.limit=2",), ("seed=2",), ("eval.temperature=0.2",),
        ("data.prompt_template={{ problem }}!",), ("data.prompt_template={{ problem }}?",),
        ("data.system_prompt=Hm.",), ("data.chat=false",), ("verifier.function=a:b",),
        ("data.chat_template_options={enable_thinking: true}",), ("sampling.max_tokens=2",),
        ('sampling.stop=["Q:"]',), ('sampling.stop=["Q:", "\\n"]',), ("verifier.correct_from=0.5",),
    ]  # fmt: skip
    names = [variant(changed(), changed(*way)) for way in ways]
    assert len(set(names)) == len(ways)
    own = changed("eval.limit=2")
    assert variant(own, changed()) == "limit-none" and variant(own, own) == ""


# The command


SMALL = ("-k", "2", "--max-tokens", "16", "--set", "data.max_prompt_tokens=2048")
SUMS = [{"problem": f"{n} + 1 = ?", "answer": str(n + 1)} for n in range(5)]


def write_tasks(folder: Path) -> None:
    """A folder with two benchmarks of a few sums."""
    (folder / "problems").mkdir()
    lines = [json.dumps(row) + "\n" for row in SUMS]
    (folder / "problems/aime24.jsonl").write_text("".join(lines[:3]))
    pq.write_table(pa.Table.from_pylist(SUMS[2:]), folder / "problems/olympiadbench.parquet")


def test_several_tasks_from_a_folder(castctl: Cli, tmp_path: Path) -> None:
    write_tasks(tmp_path)
    tasks = ("aime24", "olympiadbench")
    default = f"data.prompt_template={json.dumps(DataSettings().prompt_template)}"
    done = castctl("eval", *tasks, "--data", "problems", "--run", "r", "--model", "embedded",
                   *SMALL, "--set", default, "--full")  # fmt: skip
    results = {task: tmp_path / f"runs/r/eval/{task}/step-00000/results.json" for task in tasks}
    made = {task: read_json(file) for task, file in results.items()}
    assert [made[task]["problems"] for task in tasks] == [3, 3]
    aime, olympiad = made["aime24"], made["olympiadbench"]
    assert aime["prompt"]["prompt_template"] == DataSettings().prompt_template
    assert olympiad["prompt"]["prompt_template"].startswith(DataSettings().prompt_template)
    assert "separated by commas" in olympiad["prompt"]["prompt_template"]
    assert aime["template"] != olympiad["template"]
    for result, path in ((aime, "problems/aime24.jsonl"), (olympiad, "problems/olympiadbench.pa")):
        assert result["data"]["path"].startswith(path) and len(result["data"]["content"]) == 16
        assert result["grader"].startswith("math-verify") and result["seed"] == 0
        assert result["sampling"]["n"] == result["k"] == 2 and len(result["model"]) == 16
        for library in ("torch", "transformers", "math-verify"):
            assert result["libraries"][library].split("+")[0] == version(library).split("+")[0]
        assert result["libraries"]["castctl"] == castctl_version
    *_, header, rule, first, second = done.stdout.splitlines()
    answer = " ".join(done.stdout.split())
    assert answer.startswith("embedded answers right: ") and " on olympiadbench. Probl" in answer
    assert header.startswith("| model | task | problems | k | avg@2 (95 % CI) |")
    assert len({line.count("|") for line in (header, rule, first, second)}) == 1
    assert first.startswith("| embedded | aime24 | 3 | 2 |") and "olympiadbench" in second

    again = castctl("eval", *tasks, "--data", "problems", "--run", "r", "--markdown", "--quiet",
                    *SMALL)  # fmt: skip
    assert again.stdout.splitlines() == [header, rule, first, second] and not again.stderr
    shown = json.loads(
        castctl("eval", "aime24", "--data", "problems/aime24.jsonl", "--run", "r", "--json",
                *SMALL, "-k", "3", "--set", "data.prompt_template={{ problem }}").stdout
    )  # fmt: skip
    [result] = shown["results"]
    assert result["prompt"]["prompt_template"] == "{{ problem }}" and result["k"] == 3
    assert re.fullmatch(r"runs/r/eval/aime24-k3-prompt-\w{8}/step-00000", result["folder"])
    assert read_json(results["aime24"]) == aime  # the run's own stays what it was


def test_answers_that_nothing_can_meet_are_told_wherever_prompts_are_read(
    castctl: Cli, tmp_path: Path
) -> None:
    prose = "He sells every one of the eggs and so has 18 dollars"
    rows = [{"problem": "0 + 1 = ?", "answer": prose}, *SUMS]
    (tmp_path / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    told = f"1 of 6 answers cannot be read as an answer.*{re.escape(repr(prose))}.*answer_column"
    few = ("--set", "sampling.n=2", "--set", "train.prompts_per_step=6")
    for command in (
        ("rollout", "--data", "sums.jsonl", "--run", "trained", *few, *SMALL[2:]),
        ("eval", "sums.jsonl", "--run", "evaluated", "--model", "embedded", *SMALL),
        ("inspect", "trained", "--prompts"),
    ):
        done = castctl(*command)
        assert re.search(told, " ".join((done.stdout + done.stderr).split())), command
    seen = json.loads(castctl("inspect", "trained", "--prompts", "--json").stdout)
    assert re.search(told, seen["golds"][0])


def test_a_prompt_of_the_recipes_own_wins_over_a_benchmarks() -> None:
    own = DataSettings(prompt_template="{{ problem }} Boxed, please.")
    assert task_source("olympiadbench", own).prompt_template == own.prompt_template
    asked = BENCHMARKS["olympiadbench"].prompt_template
    assert task_source("olympiadbench", DataSettings()).prompt_template == asked
    file = task_source("olympiadbench", DataSettings(answer_column="a"), "here.jsonl")
    assert (file.path, file.prompt_template, file.answer_column) == ("here.jsonl", asked, "a")


def test_a_result_for_a_paper_is_markdown_and_nothing_else() -> None:
    share = {"mean": 0.5, "low": 0.25, "high": 0.75}
    result = {"task": "a|b", "problems": 30, "k": 1, "avg": share, "pass": {"1": share},
              "maj": share, "sampling": {"temperature": 0.6, "max_tokens": 16384}}  # fmt: skip
    *_, one, two = markdown(
        [("<b>m_1|`x`\x1b[0m", result), ("m", {**result, "sampling": None})]
    ).splitlines()
    cells = ["50.0 (25.0 to 75.0)"] * 3
    assert one == "| " + " | ".join(
        ["\\<b>m_1\\|\\`x\\`\\\\x1b\\[0m", "a\\|b", "30", "1", *cells, "0.6", "16384"]
    ) + " |"  # fmt: skip
    assert two == f"| m | a\\|b | 30 | 1 | {' | '.join(cells)} |  |  |"


def test_the_model_limits_a_prompt_of_an_evaluation_and_training_does_not(
    castctl: Cli, tmp_path: Path
) -> None:
    """The embedded recipe trains on prompts of at most 128 tokens; its model takes 4,096."""
    rows = [{"problem": f"{n} + 1 = ? " + "7" * 300 * n, "answer": str(n + 1)} for n in range(3)]
    (tmp_path / "long.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    few = ("long.jsonl", "--model", "embedded", "-k", "1", "--json")
    [made] = json.loads(castctl("eval", *few, "--max-tokens", "4").stdout)["results"]
    assert made["problems"] == 3
    refused = castctl("eval", *few, "--max-tokens", "3700", code=2).stderr.splitlines()[-1]
    said = re.search(
        r"long.jsonl: (\d) of 3 problems leave less than 3700 tokens in the model's 4096 positions "
        r"\(the longest prompt has (\d+) tokens\).* lower eval.max_tokens to (\d+)", refused,
    )  # fmt: skip
    assert said and said[1] == "1" and int(said[2]) + int(said[3]) == 4096
    recipe = Recipe(eval=EvalSettings(max_tokens=int(said[3])))
    posed = Posed(DataSettings(), None, None, np.array([5, int(said[2])]), None)  # type: ignore[arg-type]
    require_room(posed, recipe, 4096)
    for context, words in ((4095, "lower eval.max_tokens"), (int(said[2]), "a longer context")):
        with pytest.raises(UserError, match=words):
            require_room(posed, recipe, context)


def test_real_benchmarks_are_evaluated_by_the_embedded_default(
    castctl: Cli, benchmarks: Path
) -> None:
    few = ("-k", "1", "--max-tokens", "4", "--json")
    done = castctl("eval", "aime24", "--data", str(benchmarks / "aime24.jsonl"), *few)
    [result] = json.loads(done.stdout)["results"]
    assert result["problems"] == 30


WRONG = [
    (("aime24", "math500", "--data", "problems/aime24.jsonl"),
     "--data problems/aime24.jsonl holds the problems of one task, not of aime24, math500"),
    (("aime24", "math500", "--data", "problems"),
     "--data problems holds none of math500.parquet, math500.jsonl, math500.json, math500.csv"),
    (("--data", "problems"), "--data problems is a folder; name the tasks whose files it holds"),
    (("aime24", "aime24"), "two tasks go by the name aime24"),
    (("a/x.jsonl", "b/x.csv"), "two tasks go by the name x"),
    (("a/x.jsonl", "--data", "problems/aime24.jsonl"),
     "a/x.jsonl is a file of problems itself, not what --data problems/aime24.jsonl holds"),
    (("aime27",), "no benchmark or file is called aime27; benchmarks are embedded, aime24,"),
    (("aime24", "aime27", "--data", "problems"), "--data problems holds none of aime27.parquet"),
    (("aime24", "--json", "--markdown"), "leave one out"),
    (("aime24", "--rescore", "problems", "-k", "2", "--max-tokens", "5", "--checkpoint", "best"),
     "--rescore grades completions as they are; leave TASK, --checkpoint, -k, --max-tokens out"),
    (("--rescore", "problems", "--model", "embedded"), "leave --model out"),
]  # fmt: skip


def test_wrong_input_is_one_line_and_leaves_no_run(castctl: Cli, tmp_path: Path) -> None:
    write_tasks(tmp_path)
    for arguments, said in WRONG:
        stderr = castctl("eval", *arguments, code=2).stderr
        assert said in stderr.splitlines()[-1], arguments
    assert not list(tmp_path.glob("runs/*"))


def test_the_help_names_every_benchmark(castctl: Cli) -> None:
    words = re.sub(r"[\s│]+", " ", castctl("eval", "--help").stdout)
    assert f"{', '.join(BENCHMARKS)}, a file, a hub id, or a task" in words
