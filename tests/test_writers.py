"""One writer a run: who holds it is named, whoever lost it stops, and no row goes unnoticed."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import psutil
import pytest

import castctl
from castctl.errors import UserError
from castctl.progress import Silent
from castctl.runs.lock import FILE, Taken, Writer, writing
from castctl.runs.run import Run, create_run, discarded_if_empty, open_run
from castctl.shards.part import atomic_file, write_text
from castctl.stages.train.checkpoint import prune_checkpoints, save_checkpoint
from castctl.stages.train.loop import train
from castctl.stages.train.metrics import Metrics, named_steps
from commands import Command, Commands
from conftest import Cli
from runs import SMALL, small_recipe, train_small

QUICK = ("data.limit=32", "train.prompts_per_step=2", "sampling.n=2", "sampling.max_tokens=16",
         "eval.limit=2", "eval.k=1")  # fmt: skip


def until(there: Callable[[], object], command: Command | None = None, seconds: float = 90) -> None:
    end = time.monotonic() + seconds
    while not there():
        assert time.monotonic() < end and (command is None or command.running())
        time.sleep(0.005)


def files(run: Run) -> dict[Path, bytes]:
    """What a run holds, its lock apart."""
    found = (path for path in run.path.rglob("*") if path.is_file() and path.name != FILE)
    return {path: path.read_bytes() for path in found}


def steps_of(run: Run) -> list[int]:
    return [row["step"] for row in Metrics(run.path / "metrics.parquet").rows]


def somebody(**facts: Any) -> Writer:
    """A castctl that trains on another machine."""
    known: dict[str, Any] = {
        "token": "theirs", "alone": True, "pid": 1, "born": 0.0, "host": "elsewhere",
        "since": "yesterday", "command": "castctl train --resume",
    }  # fmt: skip
    return Writer(**{**known, **facts})


def this_process(**facts: Any) -> Writer:
    own = {
        "host": socket.gethostname(), "pid": os.getpid(), "born": psutil.Process().create_time(),
    }  # fmt: skip
    return somebody(**{**own, **facts})


def take_over(run: Run, writer: Writer) -> None:
    (run.path / FILE).write_text(json.dumps(asdict(writer)) + "\n")


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return create_run(small_recipe("cast", *QUICK), str(tmp_path / "runs/r"), "test")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Run:
    path = tmp_path_factory.mktemp("trained") / "r"
    return train_small(path, small_recipe("cast", *QUICK))[0]


@pytest.fixture
def finished(trained: Run, tmp_path: Path) -> Run:
    """A run of three steps that is done; a copy."""
    shutil.copytree(trained.path, tmp_path / "runs/done")
    return open_run(str(tmp_path / "runs/done"))


# Holding a run


def test_a_resume_beside_a_stopped_one_is_refused_and_goes_on_at_once_after_kill_9(
    commands: Commands, tmp_path: Path
) -> None:
    settings = [word for line in (*SMALL, *QUICK) for word in ("--set", line)]
    command = commands.start("train", "--run", "r", *settings, cwd=tmp_path)
    until((tmp_path / "runs/r/checkpoints/step-00001").exists, command)
    command.send_signal(signal.SIGSTOP)
    until(lambda: psutil.Process(command.pid).status() == psutil.STATUS_STOPPED)
    run = open_run(str(tmp_path / "runs/r"))
    before = files(run)
    with pytest.raises(UserError) as caught:
        castctl.train(run=run, resume=True, quiet=True)
    said = str(caught.value)
    assert f"(process {command.pid} on {socket.gethostname()}, since 20" in said
    assert "castctl train --run r" in said and f"kill -CONT {command.pid}" in said
    assert files(run) == before
    command.send_signal(signal.SIGKILL)
    command.wait()
    castctl.train(run=run, resume=True, quiet=True)
    assert steps_of(run) == [0, 1, 2] and run.checkpoints() == [1, 2, 3]
    assert run.manifest["state"] == "finished" and not (run.path / FILE).read_text()


def test_stages_share_a_run_that_a_loop_must_have_alone(castctl: Cli, run: Run) -> None:
    with run.beside_others(), run.beside_others():
        castctl("rollout", "--run", "r", "--set", "train.part_size=1", "--shard", "0/2")
        refused = castctl("train", "--resume", "--run", "r", code=2).stderr
        assert f"(process {os.getpid()} on" in refused and "is written by" in refused
        with pytest.raises(Taken):
            run.alone().__enter__()
    with run.alone():
        before = files(run)
        for stage in ("rollout", "score", "train --resume", "train --steps 9 --resume"):
            refused = castctl(*stage.split(), "--run", "r", code=2).stderr
            assert f"(process {os.getpid()} on" in refused, stage
        assert "is written by" in castctl("train", "--from", "r/step-0", code=2).stderr
        assert files(run) == before
        castctl("inspect", "r")
    castctl("rollout", "--run", "r", "--set", "train.part_size=1", "--shard", "1/2")
    with run.alone():
        castctl("inspect", "r/step-0")
        (run.step(0).path / "rewards").mkdir()
        shutil.copy(run.step(0).part_path("rollouts", 0), run.step(0).part_path("rewards", 0))
        assert "is written by" in castctl("shape", "--run", "r", code=2).stderr


def test_who_finds_another_at_work_does_not_remove_the_run(run: Run) -> None:
    other = open_run(str(run.path))
    with other.alone(), pytest.raises(Taken), discarded_if_empty(run):
        train(run, Silent(), lambda row: None)
    assert (run.path / "manifest.json").exists()
    with pytest.raises(UserError, match="wrong"), discarded_if_empty(run):
        raise UserError("wrong")
    assert not run.path.exists()


def test_a_name_left_in_the_lock_stands_in_nobodys_way(
    run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    for left in (this_process(born=1.0), this_process(pid=2**22), this_process(alone=False)):
        take_over(run, left)
        with run.alone():
            pass
    for nonsense in ("", "{", "[" * 4000, '{"pid": 1}', "\x00" * 5000):
        (run.path / FILE).write_text(nonsense)
        with run.alone() as held:
            held.require_place()
    assert not caplog.records
    take_over(run, somebody())
    with run.alone():
        assert "was not seen to end: castctl train --resume (process 1 on elsewhere" in caplog.text
    take_over(run, somebody())
    with run.beside_others():  # a stage does not stop a loop that may be at work elsewhere
        first = (run.path / FILE).read_text().splitlines()[0]
        assert json.loads(first)["token"] == "theirs"


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_without_locks_the_token_tells(
    run: Run, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def no_locks(handle: int, how: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", no_locks)
    take_over(run, this_process())
    for begin in (run.alone, run.beside_others):
        with pytest.raises(Taken, match=f"process {os.getpid()} on"):
            begin().__enter__()
    take_over(run, this_process(alone=False))
    with run.beside_others(), pytest.raises(Taken):
        run.alone().__enter__()
    (run.path / FILE).write_text("")
    with run.alone() as first:
        take_over(run, replace(this_process(), born=1.0))  # as if its process had ended
        with run.alone() as second:
            second.record(by="second")
            with pytest.raises(Taken, match="was taken over: it is written by"):
                first.record(by="first")
            assert run.manifest["by"] == "second"
        with pytest.raises(Taken, match="does not name this process"):
            first.record(by="first")


@pytest.mark.parametrize("odd", ["link", "pipe", "folder"])
def test_a_lock_that_is_no_file_is_refused_and_nothing_behind_it_is_written(
    run: Run, tmp_path: Path, odd: str
) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    lock = run.path / FILE
    make: dict[str, Callable[[], object]] = {
        "link": lambda: lock.symlink_to(victim), "pipe": lambda: os.mkfifo(lock),
        "folder": lock.mkdir,
    }  # fmt: skip
    make[odd]()
    with pytest.raises(UserError, match=r"cannot write in|is no file"):
        run.alone().__enter__()
    assert victim.read_text() == "precious"


# Losing a run


@pytest.mark.parametrize("how", ["another's", "removed"])
def test_a_writer_that_lost_its_place_writes_nothing_more(finished: Run, how: str) -> None:
    with finished.alone() as held:
        held.record(mine=True)
        if how == "removed":
            (held.path / FILE).unlink()
        else:
            take_over(held, somebody())
        before = files(held)
        writes: tuple[Callable[[], object], ...] = (
            lambda: held.record(mine=False),
            lambda: save_checkpoint(held, 9, None),  # type: ignore[arg-type]
            lambda: prune_checkpoints(held, set()),
        )
        for write in writes:
            with pytest.raises(Taken, match="taken over"):
                write()
        assert files(held) == before
    if how == "another's":  # nor does it take the other's name away
        assert json.loads((held.path / FILE).read_text())["token"] == "theirs"


@pytest.mark.parametrize("when", ["between steps", "within a step"])
def test_a_loop_that_lost_its_run_stops(run: Run, when: str) -> None:
    """The loser's rows and checkpoints would take those of the winner away."""
    before: dict[Path, bytes] = {}

    class Watch(Silent):
        step = 0

        def task(self, name: str, total: int, unit: str) -> Any:
            if name == "shape":
                self.step += 1
                if when == "within a step" and self.step == 2:
                    lose()
            return super().task(name, total, unit)

    def lose() -> None:
        take_over(run, somebody())
        before.update(files(run))

    def on_row(row: dict[str, Any]) -> None:
        if when == "between steps" and row["step"] == 0:
            lose()

    with pytest.raises(Taken, match=r"taken over: it is written by castctl .* on elsewhere"):
        train(run, Watch(), on_row)
    shared = {
        path for path in before if path.suffix != ".parquet" or path.name == "metrics.parquet"
    }
    after = files(run)
    assert shared and all(after[path] == before[path] for path in shared)
    assert steps_of(run) == [0] and run.checkpoints() == [1]


# Rows


def test_a_resume_says_which_rows_are_lost_and_verify_finds_them(
    castctl: Cli, finished: Run, caplog: pytest.LogCaptureFixture
) -> None:
    castctl("inspect", "done", "--verify")
    metrics = Metrics(finished.path / "metrics.parquet")
    row = metrics.rows[1]
    metrics.rewind(0)
    metrics.append(row)
    found = castctl("inspect", "done", "--verify", "--json", code=2)
    [problem] = json.loads(found.stdout)["problems"]
    assert problem.endswith("metrics.parquet lacks steps 0, 2 of the 3 that are done")
    train(finished, Silent(), lambda row: None)
    assert "lacks steps 0, 2, though there is a checkpoint at the start of step 3" in caplog.text
    assert finished.manifest["lost_metrics"] == [0, 2]
    metrics.append(row)
    (finished.path / "checkpoints/step-00003").rename(finished.path / "elsewhere")
    found = castctl("inspect", "done", "--verify", "--json", code=2)
    problems = " ".join(json.loads(found.stdout)["problems"])
    assert "does not have each step once and in order" in problems
    assert "is finished, but has no checkpoint of step 3" in problems
    (finished.path / "metrics.parquet").unlink()
    found = castctl("inspect", "done", "--verify", code=2).stdout
    assert "lacks steps 0 to 2 of the 3" in " ".join(found.split())


def test_steps_updated_by_hand_have_no_rows_to_lose(
    castctl: Cli, finished: Run, caplog: pytest.LogCaptureFixture
) -> None:
    state = finished.checkpoint(2) / "castctl.json"
    state.write_text(json.dumps({**json.loads(state.read_text()), "provenance": {"model": "m"}}))
    metrics = Metrics(finished.path / "metrics.parquet")
    metrics.rows = [row for row in metrics.rows if row["step"] == 0]
    metrics.append({"step": 2, "reward_mean": 0.0})
    castctl("inspect", "done", "--verify")
    train(finished, Silent(), lambda row: None)
    assert "lacks" not in caplog.text and "lost_metrics" not in finished.manifest


def test_steps_are_named_in_stretches() -> None:
    assert named_steps([4]) == "step 4"
    assert named_steps([0, 1, 2, 4, 6, 7]) == "steps 0 to 2, 4, 6 to 7"
    assert named_steps([0, 2, 4, 6, 8]) == "steps 0, 2, 4, and 2 stretches more"


# What a kill leaves


KILLED = """
import os, sys
from pathlib import Path
from castctl.shards.drafts import drafted_folder
from castctl.shards.part import atomic_file

with atomic_file(Path("part")) as stream, drafted_folder(Path("run")) as folder:
    stream.write(b"half")
    (folder / "half").touch()
    print("ready", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def writer(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A process in the middle of writing `part` and the folder `run`."""
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED], cwd=tmp_path, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    with process:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        yield process
        process.kill()


def hidden(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name.startswith("."))


def test_what_a_killed_writer_left_goes_when_the_same_is_written_again(
    tmp_path: Path, writer: subprocess.Popen[str]
) -> None:
    assert len(hidden(tmp_path)) == 2
    for again in range(2):
        if again:
            writer.kill()
            writer.wait()
        write_text(tmp_path / "part", "whole")
        write_text(tmp_path / "other", "whole")
        create_run(small_recipe(), str(tmp_path / f"made-{again}"), "test")
        assert len(hidden(tmp_path)) == (0 if again else 2)  # a living one keeps its own


def test_a_living_writer_beside_another_ends_its_file(
    tmp_path: Path, writer: subprocess.Popen[str]
) -> None:
    with atomic_file(tmp_path / "part") as stream:
        stream.write(b"mine")
        writer.communicate("")
        assert (tmp_path / "part").read_text() == "half" and writer.returncode == 0
    assert (tmp_path / "part").read_text() == "mine"
    assert not hidden(tmp_path)


def test_the_next_loop_removes_half_checkpoints(finished: Run) -> None:
    for name in (".step-00007.tmp", ".step-00002.old"):
        (finished.path / "checkpoints" / name / "teacher").mkdir(parents=True)
    train(finished, Silent(), lambda row: None)
    names = sorted(path.name for path in (finished.path / "checkpoints").iterdir())
    assert names == ["step-00001", "step-00002", "step-00003"]


# The lock of a folder


def test_two_who_take_and_leave_a_place_never_have_it_together(tmp_path: Path) -> None:
    script = """
import sys
from pathlib import Path
from castctl.runs.lock import Taken, writing
had = 0
while had < 50:
    try:
        with writing(Path(sys.argv[1]), alone=True) as place:
            (Path(sys.argv[1]) / "inside").mkdir()
            place.require()
            (Path(sys.argv[1]) / "inside").rmdir()
            had += 1
    except Taken:
        pass
"""
    both = [subprocess.Popen([sys.executable, "-c", script, str(tmp_path)]) for _ in range(2)]
    assert [process.wait(60) for process in both] == [0, 0]
    with writing(tmp_path, alone=True) as place:
        place.require()
