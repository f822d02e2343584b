"""`castctl runs`: the runs there are, newest first, whatever state they are in."""

from __future__ import annotations

import datetime
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from castctl.inspection.listing import list_runs
from castctl.inspection.target import find_target
from castctl.runs.kind import EVAL, TRAIN, WORKED, newest_run
from castctl.runs.run import Run, adopt_run, open_run, runs_root
from castctl.shards.part import write_json
from castctl.stages.train.metrics import Metrics
from conftest import Cli
from runs import small_recipe


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path / runs_root()


def make_run(root: Path, name: str, minute: int, **facts: Any) -> Run:
    """A run begun at a minute, without any work done."""
    run = adopt_run(root / name, small_recipe())
    run.record(**{"created": f"2026-01-02T03:{minute:02d}:00+00:00", **facts})
    return run


def this_year() -> int:
    return datetime.date.today().year


def listed(castctl: Cli) -> dict[str, dict[str, Any]]:
    rows = json.loads(castctl("runs", "--json").stdout)["runs"]
    return {row["name"]: row for row in rows}


def test_runs_are_listed_newest_first(castctl: Cli, root: Path) -> None:
    for name, minute in (("middle", 20), ("oldest", 10), ("newest", 30)):
        make_run(root, name, minute)
    assert list(listed(castctl)) == ["newest", "middle", "oldest"]
    shown = castctl("runs").stdout
    assert [line.split()[0] for line in shown.splitlines()[2:]] == ["newest", "middle", "oldest"]
    assert "cast" in shown and "embedded" in shown and "0/3" in shown


def test_a_reader_that_goes_away_is_no_bug(root: Path) -> None:
    make_run(root, "one", 1)
    for arguments in (("runs",), ("runs", "--json"), ("--help",), ("--version",)):
        reader, writer = os.pipe()
        os.close(reader)
        command = [sys.executable, "-m", "castctl", *arguments]
        done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, check=False)
        os.close(writer)
        assert (done.returncode, done.stderr) == (141, b""), arguments


def test_names_are_whole_on_80_columns(
    castctl: Cli, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "cast-20260102-030405"
    make_run(root, name, 1, state="interrupted", created=f"{this_year()}-01-02T13:14:00+00:00")
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "80")
    [row] = [line for line in castctl("runs").stdout.splitlines() if name in line]
    assert all(word in row for word in ("embedded", "0/3", "interrupted", " 01-02 "))


def test_runs_that_come_and_go_are_listed_or_not(root: Path) -> None:
    make_run(root, "stays", 1)
    passing = [root / f"passes-{number}" for number in range(10)]
    listed = threading.Event()

    def churn() -> None:
        while not listed.is_set():
            for folder in passing:
                folder.mkdir()
                (folder / "manifest.json").touch()
            for folder in passing:
                shutil.rmtree(folder)

    thread = threading.Thread(target=churn)
    thread.start()
    try:
        for _ in range(30):
            assert "stays" in [row.name for row in list_runs()]
    finally:
        listed.set()
        thread.join()


def test_a_row_has_progress_best_accuracy_and_last_reward(castctl: Cli, root: Path) -> None:
    run = make_run(root, "trained", 1, state="finished")
    metrics = Metrics(run.path / "metrics.parquet")
    metrics.append({"step": 0, "reward_mean": 0.25})
    metrics.append({"step": 1, "reward_mean": 0.5})
    for task, step, mean in (
        ("embedded", 0, 0.4), ("embedded", 1, 0.75), ("embedded", 2, 0.75), ("other", 2, 1.0)
    ):  # fmt: skip
        write_json(run.eval_folder(task, step).path / "results.json", {"avg": {"mean": mean}})
    row = listed(castctl)["trained"]
    assert (row["steps_done"], row["steps_of"]) == (2, 3) and row["reward"] == 0.5
    assert (row["best"], row["best_step"]) == (0.75, 1)  # of its own task, the earliest of equals
    shown = castctl("runs").stdout
    assert "2/3" in shown and "75.0 %" in shown and "finished" in shown


def test_a_run_is_told_by_what_it_was_made_for(castctl: Cli, root: Path) -> None:
    make_run(root, "trained", 1, state="finished")
    (make_run(root, "by-hand", 2).path / "step-00000").mkdir()
    make_run(root, "untouched", 3)
    others = {"measured": {}, "regraded": {"rescored": "theirs.jsonl"}}
    for minute, (name, facts) in enumerate(others.items(), 4):
        run = make_run(root, name, minute, **facts)
        result = run.eval_folder("theirs", 0).path / "results.json"
        write_json(result, {"avg": {"mean": 0.25}})
    rows = listed(castctl)
    assert {name: row["kind"] for name, row in rows.items()} == {
        "trained": "train", "by-hand": "stages", "untouched": "new", "measured": "eval",
        "regraded": "rescored",
    }  # fmt: skip
    for name in others:
        row = rows[name]
        assert (row["method"], row["steps_of"], row["state"], row["best"]) == (
            None, None, None, 0.25,
        )  # fmt: skip
    assert (rows["measured"]["model"], rows["regraded"]["model"]) == ("embedded", None)
    words = {line.split()[0]: line.split() for line in castctl("runs").stdout.splitlines()[2:]}
    assert "finished" in words["trained"] and "0/3" in words["by-hand"]
    assert words["measured"][1:5] == ["embedded", "25.0", "%", "eval"]
    assert words["regraded"][1:4] == ["25.0", "%", "rescored"]


def test_the_time_of_day_is_told(castctl: Cli, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "UTC")
    for name, year in (("now", this_year()), ("old", 2020)):
        make_run(root, name, 1, created=f"{year}-03-04T15:16:00+00:00")
    shown = {line.split()[0]: line for line in castctl("runs").stdout.splitlines()[2:]}
    assert shown["now"].rstrip().endswith(" 03-04 15:16")
    assert shown["old"].rstrip().endswith(" 2020-03-04")


def test_runs_inside_a_comparison_are_listed_and_open_by_that_name(
    castctl: Cli, root: Path
) -> None:
    make_run(root, "alone", 1)
    for folder in ("compared", "no-comparison"):
        make_run(root / folder, "cast-seed-0", 2, state="finished")
    write_json(root / "compared" / "comparison.json", {})
    assert list(listed(castctl)) == ["compared/cast-seed-0", "alone"]
    assert "compared/cast-seed-0" in castctl("runs").stdout
    assert open_run("compared/cast-seed-0").path.resolve() == root / "compared/cast-seed-0"


def test_the_newest_run_is_one_that_works(root: Path) -> None:
    """Evaluations and regraded files made since are not what is gone on with."""
    make_run(root, "trained", 1, state="interrupted")
    (make_run(root, "by-hand", 2).path / "step-00000").mkdir()
    make_run(root, "regraded", 3, rescored="theirs.jsonl")
    measured = make_run(root, "measured", 4)
    measured.eval_folder("aime24", 0).path.mkdir(parents=True)

    def named(run: Run | None) -> str | None:
        return run and run.name

    assert named(newest_run(TRAIN)) == "trained"
    assert named(newest_run(*WORKED)) == named(find_target(None).run) == "by-hand"
    assert named(newest_run(EVAL)) == "measured"
    for name in ("trained", "by-hand"):
        shutil.rmtree(root / name)
    assert newest_run(TRAIN) is None and named(find_target(None).run) == "measured"


def test_a_regraded_file_is_not_resumed(castctl: Cli, root: Path) -> None:
    make_run(root, "regraded", 3, rescored="theirs.jsonl")
    make_run(root, "untouched", 4)
    assert "no run to resume" in castctl("train", "--resume", code=2).stderr


@pytest.fixture
def ended_process() -> Iterator[int]:
    """The number of a process that has ended."""
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    yield pid


def test_a_run_is_running_only_while_its_process_lives(
    castctl: Cli, root: Path, ended_process: int
) -> None:
    make_run(root, "alive", 1, state="running", pid=os.getpid())
    make_run(root, "killed", 2, state="running", pid=ended_process)
    make_run(root, "odd", 3, state="running", pid="many")
    other = {"system": "Another-1.0", "processor": "abacus", "cores": 1}
    make_run(root, "far", 4, state="running", pid=os.getpid(), machine=other)
    reused = make_run(root, "reused", 5, state="running", pid=os.getpid())
    os.utime(reused.path / "manifest.json", (1e9, 1e9))  # written long before this process began
    states = {name: row["state"] for name, row in listed(castctl).items()}
    assert states == {
        "alive": "running", "killed": "interrupted", "odd": "interrupted",
        "far": "interrupted", "reused": "interrupted",
    }  # fmt: skip


BROKEN = {
    "manifest": ("manifest.json", "{"),
    "manifest-list": ("manifest.json", "[1, 2]"),
    "recipe": ("recipe.yaml", "nonsense: 1"),
    "metrics": ("metrics.parquet", "nothing"),
    "result": ("eval/embedded/step-00000/results.json", "{}"),
}


def test_a_broken_run_is_one_row_that_says_so(castctl: Cli, root: Path) -> None:
    make_run(root, "sound", 59)
    for name, (file, content) in BROKEN.items():
        path = make_run(root, name, 1).path / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    rows = listed(castctl)
    assert rows["sound"]["problem"] is None
    assert all(rows[name]["problem"] for name in BROKEN)
    shown = castctl("runs").stdout
    assert shown.count("cannot be read:") == len(BROKEN) and "sound" in shown


def test_a_run_with_a_hostile_name_is_shown_as_text(castctl: Cli, root: Path) -> None:
    make_run(root, "[bold]x\x1b[2J", 1)
    shown = castctl("runs").stdout
    assert "[bold]x\\x1b[2J" in shown and "\x1b" not in shown


def test_no_runs_are_no_error(castctl: Cli) -> None:
    assert json.loads(castctl("runs", "--json").stdout) == {"root": "runs", "runs": []}
    assert "no runs in runs" in castctl("runs").stderr
