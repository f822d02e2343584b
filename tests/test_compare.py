"""`castctl compare`: recipes trained with the same seeds, finished runs, what is said of both."""

from __future__ import annotations

import io
import json
import math
import random
import re
import shutil
import signal
import statistics
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from filelock import FileLock
from rich.console import Console
from scipy.stats import t as student

from castctl.comparison.entries import plan
from castctl.comparison.numbers import Comparison, EntryNumbers, OverSeeds, SeedNumbers
from castctl.recipe.files import recipes_folder
from castctl.recipe.reader import dump_recipe, read_recipe
from castctl.report.comparison import comparison_page
from castctl.report.plots import draw_curves
from castctl.runs.run import open_run
from castctl.shards.part import read_json, write_json
from castctl.stages.evaluate.statistics import Estimate, problem_share
from castctl.stages.train.metrics import Metrics
from commands import Commands
from conftest import Cli
from runs import metrics_without_time, small_recipe

STEPS, PROBLEMS, K = 2, 6, 2
ARGUMENTS = ("grpo.yaml", "cast.yaml", "--seeds", "2", "--name", "made")


def write_recipes(folder: Path) -> None:
    """Two recipes of a few quick steps, which differ in their method."""
    for method in ("grpo", "cast"):
        recipe = small_recipe(
            method, f"train.steps={STEPS}", f"eval.limit={PROBLEMS}", "data.limit=32",
            "verifier.workers=1", "optimizer.lr=0.0003",
        )  # fmt: skip
        (folder / f"{method}.yaml").write_text(dump_recipe(recipe))


@pytest.fixture(scope="module")
def made(commands: Commands, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder where two recipes were compared with two seeds each; `said` holds the output."""
    folder = tmp_path_factory.mktemp("compare")
    write_recipes(folder)
    done = commands.start("compare", *ARGUMENTS, "--full", cwd=folder).wait()
    assert done.returncode == 0, done.stderr
    (folder / "said.out").write_text(done.stdout)
    (folder / "said.err").write_text(done.stderr)
    return folder


@pytest.fixture
def here(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the command line, with recipes and finished runs of its own in it."""
    write_recipes(tmp_path)
    shutil.copytree(made / "runs", tmp_path / "runs")
    shutil.copy(made / "said.out", tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def numbers(folder: Path, name: str = "made") -> dict[str, Any]:
    return read_json(folder / "runs" / name / "comparison.json")


def result_file(run: Path, step: int) -> Path:
    return run / f"eval/embedded/step-{step:05d}/results.json"


def by_hand(values: list[float], least: float | None = None) -> dict[str, float | None]:
    """Mean and Student's interval by the textbook, none without spread; from `least` to 1."""
    mean, count = statistics.fmean(values), len(values)
    if max(values) - min(values) < 1e-7:
        return {"mean": mean, "low": None, "high": None}
    half = student.ppf(0.975, count - 1) * statistics.stdev(values) / math.sqrt(count)
    low, high = mean - half, mean + half
    if least is not None:
        low, high = max(low, least), min(high, 1)
    return {"mean": mean, "low": low, "high": high}


def judged(run: Path, step: int) -> dict[str, list[float]]:
    """Rewards of an evaluation's samples by problem, from its shards."""
    rewards: dict[str, list[float]] = {}
    for row in open_run(str(run)).eval_folder("embedded", step).table("rewards").to_pylist():
        rewards.setdefault(row["prompt_id"], []).append(row["reward"])
    return rewards


def seconds_left_out(value: Any) -> Any:
    """Numbers without what the clock and the folder's name put into them."""
    if isinstance(value, dict):
        told = {k: v for k, v in value.items() if k not in ("seconds_per_step", "path")}
        return {key: seconds_left_out(inner) for key, inner in told.items()}
    return [seconds_left_out(inner) for inner in value] if isinstance(value, list) else value


# What comes out


def test_the_folder_holds_runs_numbers_and_a_picture(made: Path) -> None:
    folder = made / "runs/made"
    there = {path.name for path in folder.iterdir() if not path.name.startswith(".")}
    runs = {f"{method}-seed-{seed}" for method in ("grpo", "cast") for seed in (0, 1)}
    assert there == {*runs, "comparison.json", "curves.png"}
    assert (folder / "curves.png").read_bytes().startswith(b"\x89PNG")
    found = numbers(made)
    assert (found["finished"], found["k"], found["problems"]) == (True, K, PROBLEMS)
    assert [(e["name"], e["seeds"], e["trained"]) for e in found["entries"]] == [
        ("grpo", [0, 1], True), ("cast", [0, 1], True),
    ]  # fmt: skip


def test_numbers_are_those_of_the_shards(made: Path) -> None:
    for entry in numbers(made)["entries"]:
        runs = [Path(made, run["path"]) for run in entry["runs"]]
        for when, step in (("before", 0), ("after", STEPS)):
            seeds = [judged(run, step) for run in runs]
            means = [statistics.fmean(x for seed in seeds for x in seed[p]) for p in seeds[0]]
            hits = [statistics.fmean(any(seed[p]) for seed in seeds) for p in seeds[0]]
            # The very function that an evaluation's own intervals come from.
            assert entry[f"avg_{when}"] == pytest.approx(asdict(problem_share(np.array(means))))
            assert entry[f"pass_{when}"] == pytest.approx(asdict(problem_share(np.array(hits))))
            of_seeds = [
                statistics.fmean(x for problem in seed.values() for x in problem) for seed in seeds
            ]
            assert entry["over_seeds"][f"avg_{when}"] == pytest.approx(by_hand(of_seeds, 0))
            assert entry["evaluations"][str(step)] == entry[f"avg_{when}"]
        rows = [row for run in runs for row in Metrics(run / "metrics.parquet").rows]
        assert len(rows) == 2 * STEPS
        tokens, shares = 0, []
        for folder in (open_run(str(run)).step(step) for run in runs for step in range(STEPS)):
            tokens += sum(map(len, folder.table("rollouts")["completion_token_ids"]))
            groups: dict[str, list[float]] = {}
            for row in folder.table("rewards").to_pylist():
                groups.setdefault(row["prompt_id"], []).append(row["reward"])
            shares.append(statistics.fmean(len(set(rewards)) == 1 for rewards in groups.values()))
        assert entry["generated_tokens"] == tokens
        assert entry["zero_variance_share"] == pytest.approx(statistics.fmean(shares))
        score = statistics.fmean(row["seconds_verify"] + row["seconds_score"] for row in rows)
        assert entry["seconds_per_step"]["score"] == pytest.approx(score)


def test_a_run_of_a_comparison_is_the_run_that_train_makes(castctl: Cli, here: Path) -> None:
    castctl("train", "cast.yaml", "--seed", "1", "--run", "alone")
    alone, compared = (
        metrics_without_time(Metrics(Path("runs", name, "metrics.parquet")).rows)
        for name in ("alone", "made/cast-seed-1")
    )
    assert alone == compared
    assert (
        read_json(result_file(Path("runs/alone"), STEPS))["by_problem"]
        == (read_json(result_file(Path("runs/made/cast-seed-1"), STEPS))["by_problem"])
    )


def test_the_page_says_what_was_counted_and_what_it_cannot_tell(made: Path) -> None:
    said = (made / "said.out").read_text()
    table = [line.split() for line in said.splitlines()]
    grpo, cast = (next(row for row in table if row[:2] == [m, "2"]) for m in ("grpo", "cast"))
    assert len(cast) == len(grpo) + 4  # the first entry has no difference: mean (low to high)
    assert sum(row[:2] == ["over", "seeds"] for row in table) == 2
    assert "±" not in said
    words = " ".join(said.split())
    assert f"{PROBLEMS} problems, {K} samples of each for every seed" in words
    assert "not what other seeds would" in words and "tells what other seeds would" in words
    assert (
        "paired by the seeds that both have" in words
        and "whatever else ran on the machine" in words
    )
    assert "one in twenty" not in words  # of two entries
    steps = (made / "said.err").read_text()
    assert "run 1 of 4, runs/made/grpo-seed-0: grpo" in steps and "run 4 of 4" in steps
    assert steps.count("step    1/2  reward") == steps.count("step    2/2  reward") == 4


# Again


def test_the_same_command_again_changes_nothing(castctl: Cli, here: Path) -> None:
    folder = here / "runs/made"
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    done = castctl("compare", *ARGUMENTS, "--full")
    assert "run 1 of" not in done.stderr
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    assert done.stdout == (here / "said.out").read_text()
    short = castctl("compare", *ARGUMENTS).stdout
    highest, against, _, title, *_ = short.splitlines()
    assert [highest, against, "", title] == done.stdout.splitlines()[:4]
    assert highest.startswith(f"Highest avg@{K} after training: ") and "Accuracy on" in title
    assert against.startswith("Against grpo, in points: cast ")
    assert "Cost:" in done.stdout and "Cost:" not in short and "--full" in short
    shown = json.loads(castctl("compare", *ARGUMENTS, "--json", "--quiet").stdout)
    told = numbers(here)
    assert shown["entries"] == told["entries"] and shown["folder"] == "runs/made"


def test_a_comparison_that_was_killed_ends_as_if_it_had_not_been(
    commands: Commands, made: Path, tmp_path: Path
) -> None:
    write_recipes(tmp_path)
    marks = ("grpo-seed-0/checkpoints/step-00001", "grpo-seed-1/step-00000/rollouts")
    for mark, number, code in zip(
        marks, (signal.SIGKILL, signal.SIGINT), (-signal.SIGKILL, 130), strict=True
    ):
        command = commands.start("compare", *ARGUMENTS, cwd=tmp_path)
        while command.running() and not (tmp_path / "runs/made" / mark).exists():
            time.sleep(0.002)
        command.send_signal(number)
        stopped = command.wait()
        assert stopped.returncode == code, stopped.stderr
        assert numbers(tmp_path) == {"finished": False}
    assert "stopped; go on with the same command and --name runs/made" in stopped.stderr
    unfinished = "runs/made/grpo-seed-1"
    refusal = commands.start("compare", unfinished, "grpo.yaml", cwd=tmp_path).wait()
    assert refusal.returncode == 2
    assert f"run {unfinished} is not finished (state: interrupted)" in refusal.stderr
    done = commands.start("compare", *ARGUMENTS, cwd=tmp_path).wait()
    assert done.returncode == 0, done.stderr
    assert "run 1 of 3, runs/made/grpo-seed-1" in done.stderr
    entries, expected = (numbers(folder)["entries"] for folder in (tmp_path, made))
    assert seconds_left_out(entries) == seconds_left_out(expected)


# Finished runs


def test_finished_runs_are_taken_as_they_are(castctl: Cli, here: Path) -> None:
    runs = ("runs/made/grpo-seed-0", "runs/made/cast-seed-0", "runs/made/cast-seed-1")
    done = castctl("compare", *runs, runs[0], "--name", "taken", "--full")
    assert "run 1 of" not in done.stderr
    assert {path.name for path in (here / "runs/taken").iterdir()} == {
        ".lock", "comparison.json", "curves.png",
    }  # fmt: skip
    entries = numbers(here, "taken")["entries"]
    assert [entry["name"] for entry in entries] == [
        "grpo-seed-0", "cast-seed-0", "cast-seed-1", "grpo-seed-0-2",
    ]  # fmt: skip
    assert entries[3]["difference"] == {"mean": 0.0, "low": None, "high": None}
    words = " ".join(done.stdout.split())
    assert "do not have the same seeds: grpo-seed-0 0; cast-seed-0 0; cast-seed-1 1;" in words
    assert "Every entry of one seed cannot tell a method from the luck of its seed." in words
    assert "About one in twenty of 3 differences" in words
    assert "grpo-seed-0-2 is runs/made/grpo-seed-0." in words


def change_results(run: Path, step: int, means: dict[str, float]) -> None:
    """Give an evaluation other outcomes."""
    result = read_json(result_file(run, step))
    hits = statistics.fmean(mean > 0 for mean in means.values())
    result["pass"][str(K)] = {"mean": hits, "low": None, "high": None}
    result["avg"] = {"mean": statistics.fmean(means.values()), "low": None, "high": None}
    write_json(result_file(run, step), {**result, "by_problem": means})


@pytest.mark.parametrize("seed", range(2))
def test_the_difference_is_paired_over_problems(castctl: Cli, here: Path, seed: int) -> None:
    """Against a naive reading; the problems stand in another order in every file."""
    draw = random.Random(seed)
    outcomes: dict[str, list[dict[str, float]]] = {}
    for method in ("grpo", "cast"):
        for run in sorted((here / "runs/made").glob(f"{method}-*")):
            problems = list(read_json(result_file(run, STEPS))["by_problem"])
            draw.shuffle(problems)
            means = {problem: draw.randint(0, K) / K for problem in problems}
            change_results(run, STEPS, means)
            outcomes.setdefault(method, []).append(means)
    castctl("compare", *ARGUMENTS, "--quiet")
    differences = [
        statistics.fmean(seed[p] for seed in outcomes["cast"])
        - statistics.fmean(seed[p] for seed in outcomes["grpo"])
        for p in problems
    ]
    cast = numbers(here)["entries"][1]
    assert cast["difference"] == pytest.approx(by_hand(differences, -1))
    grown = [
        statistics.fmean(ours.values()) - statistics.fmean(theirs.values())
        for ours, theirs in zip(outcomes["cast"], outcomes["grpo"], strict=True)
    ]
    assert cast["over_seeds"]["difference"] == pytest.approx(by_hand(grown, -1))


def test_none_or_almost_all_solved_has_the_interval_of_eval(castctl: Cli, here: Path) -> None:
    """None of 30 solved is no 0 ± 0, and 28 of 30 stays below 100 %."""
    for method, solved in (("grpo", 0), ("cast", PROBLEMS - 1)):
        for run in sorted((here / "runs/made").glob(f"{method}-*")):
            names = sorted(judged(run, STEPS))
            change_results(run, STEPS, {p: float(n < solved) for n, p in enumerate(names)})
    grpo, cast = json.loads(castctl("compare", *ARGUMENTS, "--json", "--quiet").stdout)["entries"]
    for entry, solved in ((grpo, 0), (cast, PROBLEMS - 1)):
        wilson = asdict(problem_share(np.array([1.0] * solved + [0.0] * (PROBLEMS - solved))))
        assert entry["avg_after"] == entry["pass_after"] == pytest.approx(wilson)
        assert 0 <= entry["avg_after"]["low"] < entry["avg_after"]["high"] <= 1
        assert entry["over_seeds"]["avg_after"]["low"] is None  # of two equal seeds
    assert grpo["avg_after"]["low"] == 0 and grpo["avg_after"]["high"] > 0.3
    said = castctl("compare", *ARGUMENTS).stdout
    assert "0.0 (0.0 to " in said and "±" not in said
    shares = [float(n) for n in re.findall(r"(?<![+\-\d.])(\d+\.\d)", said)]
    assert max(shares) <= 100


def test_no_pass_at_k_where_correct_samples_cannot_be_counted(castctl: Cli, here: Path) -> None:
    run = here / "runs/made/cast-seed-0"
    change_results(run, STEPS, {p: 0.25 for p in judged(run, STEPS)})
    words = " ".join(castctl("compare", *ARGUMENTS, "--full").stdout.split())
    assert numbers(here)["entries"][1]["pass_after"] is None
    assert "No pass@k stands where rewards are more than right or wrong." in words


# Names and the page


def test_entries_of_one_name_are_told_apart(tmp_path: Path) -> None:
    files = [tmp_path / name for name in ("a/x.yaml", "b/x.yaml", "b/X.yaml", "..\n\x1b$ ü.yaml")]
    files.append(tmp_path / f"{'ü' * 100}.yaml")
    for file in files:
        file.parent.mkdir(exist_ok=True)
        file.write_text("seed: 7\n")
    entries = plan(map(str, files), tmp_path / "c", 2, lambda path: read_recipe(path))
    *short, long = [entry.name for entry in entries]
    assert short == ["x", "x-2", "X-3", "ü"] and long == "ü" * 40
    paths = [planned.path for entry in entries for planned in entry.runs]
    assert paths[:4] == [tmp_path / "c" / f"{n}-seed-{s}" for n in ("x", "x-2") for s in (7, 8)]
    assert [planned.recipe.seed for planned in entries[0].runs] == [7, 8]


def test_an_entry_on_the_embedded_default_is_not_named_after_a_model(tmp_path: Path) -> None:
    sources = ["grpo-qwen3-1.7b", "cast-qwen3-4b:mixed-only"]
    plain = plan(sources, tmp_path, 1, lambda name: read_recipe(name))
    assert [entry.name for entry in plain] == ["grpo-qwen3-1.7b", "cast-qwen3-4b-mixed-only"]
    tiny = plan(sources, tmp_path, 1, lambda name: read_recipe(name, tiny=True), tiny=True)
    assert [entry.name for entry in tiny] == ["tiny-grpo", "tiny-cast-mixed-only"]
    assert [entry.source for entry in tiny] == sources
    assert {entry.runs[0].recipe.model.path for entry in tiny} == {"embedded"}


def entry_of(
    name: str, difference: Estimate | None, seeds: int = 1, over: Estimate | None = None
) -> EntryNumbers:
    some = Estimate(0.5, 0.4, 0.6)
    runs = [SeedNumbers("p", seed, 0.5, 0.5 + seed / 10, [0.1, None]) for seed in range(seeds)]
    return EntryNumbers(
        name, name, True, "grpo", 2, list(range(seeds)), some, some, some, None, difference, None,
        {"rollout": 1.0, "score": 123.4, "shape": None, "train": 0.5, "all": 2.0}, 1234,
        {0: some, 2: Estimate(0.6, None, None)}, runs,
        OverSeeds(some, some, over) if seeds > 1 else None,
    )  # fmt: skip


def test_only_a_difference_whose_interval_excludes_0_stands_out(tmp_path: Path) -> None:
    entries = [
        entry_of("first", None, 2), entry_of("ahead", Estimate(0.05, 0.03, 0.07)),
        entry_of("behind", Estimate(-0.05, -0.07, -0.03)), entry_of("tie", Estimate(0.0, 0.0, 0.0)),
        entry_of("open", Estimate(0.05, -0.01, 0.11)), entry_of("lone", Estimate(0.5, None, None)),
    ]  # fmt: skip
    comparison = Comparison("task", 2, 1.0, 4, 8, 2, entries)
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=True, color_system="standard", width=160)
    console.print(comparison_page(comparison, full=True))
    shown = stream.getvalue()
    for bold, plain in (
        ("+5.0 (+3.0 to +7.0)", "+5.0 (-1.0 to +11.0)"),
        ("-5.0 (-7.0 to -3.0)", "+0.0 (+0.0 to +0.0)"),
    ):
        assert re.search(rf"\x1b\[1m *{re.escape(bold)}", shown)
        assert plain in shown and not re.search(rf"\x1b\[1m *{re.escape(plain)}", shown)
    assert "first 50.0 to 60.0" in shown and "first 0, 1; ahead 0;" in shown
    assert "2 different machines" in shown and "(1, 2 seeds an entry)" in shown
    draw_curves(comparison, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("over", "said"),
    [
        (None, "is higher with these seeds, +5.0 (+3.0 to +7.0), over seeds no interval"),
        (Estimate(0.05, 0.01, 0.09), "is higher, +5.0 (+3.0 to +7.0), over seeds +1.0 to +9.0"),
        (Estimate(0.05, -0.9, 1.0), "is higher with these seeds, +5.0 (+3.0 to +7.0), "
                                    "over seeds -90.0 to +100.0"),
    ],
)  # fmt: skip
def test_what_holds_for_these_seeds_alone_says_so(over: Estimate | None, said: str) -> None:
    over = over or Estimate(0.05, None, None)
    entries = [entry_of("first", None, 2), entry_of("ahead", Estimate(0.05, 0.03, 0.07), 2, over)]
    stream = io.StringIO()
    console = Console(file=stream, width=100)
    console.print(comparison_page(Comparison("task", 2, 1.0, 4, 8, 1, entries), full=False))
    words = " ".join(stream.getvalue().split())
    assert f"Against first, in points: ahead {said}." in words
    assert words.count("over seeds 50.0 (40.0 to 60.0)") == 2  # a row below each
    assert "in the row below an entry over its seeds" in words


# Wrong input


def refused(castctl: Cli, *arguments: str) -> str:
    """The line that a refused comparison ends in; nothing is left of it."""
    before = {path for path in Path("runs").rglob("*") if path.name != ".lock"}
    last = castctl("compare", *arguments, code=2).stderr.rstrip("\n").splitlines()[-1]
    assert last.startswith("castctl: ")
    assert {path for path in Path("runs").rglob("*") if path.name != ".lock"} == before
    return last


WRONG = [
    (["tinny"], "tinny is no recipe's file, no recipe's name and no run; did you mean tiny?"),
    (["nothing/there.yaml"], "recipes known by name: "),
    (["x" * 300], "File name too long"),
    (["tiny", "--seeds", "0"], "Invalid value for '--seeds'"),
    (["runs/made"], "runs/made is a comparison; name one of the runs in it"),
    (["runs/made/cast-seed-0", "--seeds", "2"], "every entry is a finished run, taken as it is"),
    (["runs/made/cast-seed-0", "-k", "3"], "every entry is a finished run, taken as it is"),
    (["grpo.yaml", "--name", "runs/made/grpo-seed-0"], "is there and is a run; give another"),
    (["grpo.yaml", "--name", "."], "is there and is no comparison; give another --name"),
    (["grpo.yaml", "--name", "grpo.yaml/x"], "cannot be a comparison's folder (Not a directory)"),
    (["grpo.yaml", "--name", ""], "--name is empty"),
    ([*ARGUMENTS, "--steps", "3"], "run runs/made/grpo-seed-0 is there with another train.steps "
     "(2, now 3); give the comparison another --name, or delete that run"),
    (["grpo.yaml", "--set", "sampling.n=1"], "grpo compares completions of one prompt"),
    (["runs/made/cast-seed-0", "grpo.yaml", "-k", "3"],
     "runs/made/cast-seed-0 and grpo.yaml differ in k (2 and 3), so their evaluations do not"),
    (["runs/made/cast-seed-0", "grpo.yaml", "--set", "eval.temperature=0.5"],
     "differ in the evaluation's temperature (1.0 and 0.5)"),
    (["runs/made/cast-seed-0", "grpo.yaml", "--set", "eval.presence_penalty=0.5"],
     "differ in the evaluation's presence_penalty (0.0 and 0.5)"),
    (["runs/made/cast-seed-0", "grpo.yaml", "--stop", "['Q:']"],
     "differ in the evaluation's stop ([] and ['Q:'])"),
    (["runs/made/cast-seed-0", "grpo.yaml", "--set", "eval.task=gsm8k"],
     "differ in the evaluation's task (embedded and gsm8k)"),
    (["runs/made/cast-seed-0", "grpo.yaml", "--set", "data.limit=8"],
     "differ in the number of prompts (32 and 8), so they do not train on the same prompts"),
]  # fmt: skip


@pytest.mark.parametrize(("arguments", "said"), WRONG)
def test_wrong_input_is_one_line(castctl: Cli, here: Path, arguments: list[str], said: str) -> None:
    assert said in refused(castctl, *arguments)


def test_entries_that_cannot_be_compared_are_refused(castctl: Cli, here: Path) -> None:
    first, second = "runs/made/grpo-seed-0", "runs/made/cast-seed-0"
    result = read_json(result_file(here / second, STEPS))
    result["by_problem"].popitem()
    write_json(result_file(here / second, STEPS), result)
    write_json(result_file(here / second, 0), result)
    assert "differ in the number of problems evaluated (6 and 5)" in refused(castctl, first, second)
    write_json(result_file(here / second, 0), {**result, "k": 5})
    assert "before and after training differ in k (5 and 2)" in refused(castctl, first, second)
    result_file(here / second, 0).unlink()
    assert "castctl eval --run runs/made/cast-seed-0 --checkpoint 0" in (
        refused(castctl, first, second)
    )
    (here / first / "metrics.parquet").unlink()
    assert "holds 0 of 2 steps" in refused(castctl, first, first)


def test_a_name_that_is_a_recipe_and_a_run_is_asked_for_again(castctl: Cli, here: Path) -> None:
    shutil.copytree(here / "runs/made/grpo-seed-0", here / "runs/tiny")
    said = refused(castctl, "tiny")
    assert f"tiny is a recipe and a run; name {recipes_folder() / 'tiny.yaml'}" in said


def test_two_at_once_in_one_folder_are_refused(castctl: Cli, here: Path) -> None:
    with FileLock(here / "runs/made/.lock"):
        said = refused(castctl, *ARGUMENTS)
    assert "another castctl compare works in runs/made" in said


# Hostile names


def test_hostile_names_are_shown_escaped(castctl: Cli, here: Path) -> None:
    hostile = "_\x1b[31m$\\frac$ [bold]\u202e\n\U0001f600"
    shutil.copytree(here / "runs/made/grpo-seed-0", here / "runs" / hostile)
    done = castctl(
        "compare", f"runs/{hostile}", "runs/made/cast-seed-0", "--name", "hostile", "--full"
    )
    assert "\\x1b[31m$\\frac$" in done.stdout
    assert not {"\x1b", "\u202e"} & set(done.stdout + done.stderr)
    assert numbers(here, "hostile")["entries"][0]["name"] == hostile
    assert (here / "runs/hostile/curves.png").stat().st_size > 10_000
    recipe = here / f"{hostile}.yaml"
    recipe.write_text((here / "grpo.yaml").read_text())
    said = refused(castctl, "runs/made/cast-seed-0", str(recipe.name), "-k", "3")
    assert "differ in k (2 and 3)" in said and not {"\x1b", "\u202e"} & set(said)
