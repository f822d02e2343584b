"""Several processes train one run: the numbers of one, and an end of all when one ends."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from castctl.errors import UserError
from castctl.launcher import Rank, rank_of, without_rank
from castctl.ranks import ALONE, Ranks
from castctl.runs.run import Run, create_run, open_run
from commands import Command, Commands
from rank_entries import moments
from rank_processes import ended, started
from runs import (
    SMALL,
    assert_same_step,
    assert_same_weights,
    small_recipe,
    train_small,
)

ENTRIES = Path(__file__).with_name("rank_entries.py")

METHODS = ("grpo", "cast", "sdpg", "oar-g", "bicc")


def trained(commands: Commands, count: int, path: Path, *options: str) -> list[Command]:
    """`castctl train` of the small recipe as so many ranks."""
    sets = [word for line in (*SMALL, "train.part_size=1") for word in ("--set", line)]
    words = ("train", "--run", str(path), *(options or ("--method", "cast", *sets)))
    return started(count, partial(commands.start, *words, cwd=path.parent))


def entered(commands: Commands, count: int, folder: Path, *words: str) -> list[Command]:
    """A function of `rank_entries.py` as so many ranks."""
    return started(count, partial(commands.start_file, ENTRIES, *words, cwd=folder))


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, Rank()),
        ({"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"},
         Rank(3, 8, 1, 2)),
        ({"SLURM_PROCID": "5", "SLURM_NTASKS": "6"}, Rank()),
        ({"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "1", "SLURM_NTASKS": "4"}, Rank()),
        ({"SLURM_PROCID": "9", "SLURM_STEP_NUM_TASKS": "11", "SLURM_LOCALID": "1",
          "SLURM_NODEID": "2", "SLURM_STEP_TASKS_PER_NODE": "4(x2),3"}, Rank(9, 11, 1, 3)),
        ({"RANK": "1", "WORLD_SIZE": "2", "SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "1"},
         Rank(1, 2, 1, 2)),
    ],
)  # fmt: skip
def test_a_launcher_says_which_rank_this_is(environment: dict[str, str], expected: Rank) -> None:
    assert rank_of(environment) == expected


@pytest.mark.parametrize("rank", [("2", "2"), ("-1", "2"), ("a", "2"), ("0", "")])
def test_a_launchers_nonsense_is_refused(rank: tuple[str, str]) -> None:
    with pytest.raises(UserError, match="name no rank"):
        rank_of(dict(zip(("RANK", "WORLD_SIZE"), rank, strict=True)))


def test_a_process_that_a_rank_starts_is_none() -> None:
    told = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "GROUP_RANK": "0",
            "MASTER_ADDR": "a", "MASTER_PORT": "1", "TORCHELASTIC_RUN_ID": "x"}  # fmt: skip
    assert without_rank({**told, "HOME": "/", "RANKING": "1"}) == {"HOME": "/", "RANKING": "1"}


def test_alone_nothing_is_waited_for() -> None:
    given = [np.arange(3.0), np.array([1.0])]
    assert all(a is b for a, b in zip(ALONE.sums(given), given, strict=True))
    assert list(ALONE.mine(range(3))) == [0, 1, 2]
    assert ALONE.first_begins("x", lambda: 5) == ALONE.first_does("x", lambda: 5) == 5
    assert ALONE.waited == 0


@pytest.mark.parametrize(
    ("prompts", "size", "ranks", "remedy"),
    [(16, 16, 2, "train.part_size=8"), (4, 2, 3, "train.part_size=1"), (2, 1, 3, "at most 2")],
)
def test_fewer_parts_than_ranks_are_refused(
    prompts: int, size: int, ranks: int, remedy: str
) -> None:
    settings = (f"train.prompts_per_step={prompts}", f"train.part_size={size}")
    with pytest.raises(UserError, match=remedy):
        small_recipe("grpo", *settings).require_parts_for(ranks)
    small_recipe("grpo", *settings).require_parts_for(-(-prompts // size))


@pytest.fixture(scope="module")
def shaped(tmp_path_factory: pytest.TempPathFactory) -> list[Run]:
    """A shaped step of each method, whose update has several micro-batches and minibatches."""
    folder = tmp_path_factory.mktemp("shaped")
    cut = (
        "train.steps=1",
        "train.prompts_per_step=8",
        "train.microbatch_tokens=400",
        "optimizer.lr=1e-8",
    )  # Adam would blow rounding up to the size of a step
    often = ("train.minibatches=2", "train.epochs=2")
    recipes = [small_recipe(m, *cut, *(often if m != "sdpg" else ())) for m in METHODS]
    return [train_small(folder / recipe.method.name, recipe)[0] for recipe in recipes]


@pytest.mark.slow
def test_an_update_of_several_ranks_is_that_of_one(
    shaped: list[Run], commands: Commands, tmp_path: Path
) -> None:
    paths = [str(run.path) for run in shaped]
    for count, of in ((2, paths), (3, paths[1:2])):
        printed = ended(entered(commands, count, tmp_path, "write_moments", *of))
        for path in of:
            assert (Path(path) / f"ranks-{count}.npz").exists(), printed
            alone, row = moments(Path(path), Ranks(Rank()))
            with np.load(Path(path) / f"ranks-{count}.npz") as found:
                assert list(found["row"]) == pytest.approx(list(row.values()), rel=1e-5, abs=1e-7)
                away = sum(((found[n] - alone[n]) ** 2).sum() for n in alone) ** 0.5
            size = sum((moment**2).sum() for moment in alone.values()) ** 0.5
            assert size > 0 and away < 1e-6 * size, (path, count)


@pytest.mark.slow
def test_two_ranks_train_as_one_process_does_and_go_on_when_they_were_killed(
    commands: Commands, tmp_path: Path
) -> None:
    path = tmp_path / "two"
    processes = trained(commands, 2, path)
    first, second = ended(processes)
    assert [process.end() for process in processes] == [0, 0], first + second
    assert "difference:" in first and second == ""
    assert "difference:" in (path / "rank-1.log").read_text()
    whole = open_run(str(path))
    assert whole.manifest["state"] == "finished"
    alone, _ = train_small(tmp_path / "one", small_recipe("cast", "train.part_size=1"))
    assert_as_alone(whole, alone)
    killed = tmp_path / "killed"
    kill_rank(commands, 1, killed, after=1)
    kill_rank(commands, 0, killed, after=2, resume=True)
    processes = trained(commands, 2, killed, "--resume")
    printed = "".join(ended(processes))
    assert [process.end() for process in processes] == [0, 0], printed
    for step in range(3):
        assert_same_step(whole.step(step), open_run(str(killed)).step(step))
    assert_same_weights(whole.checkpoint(3), open_run(str(killed)).checkpoint(3))


def assert_as_alone(pair: Run, alone: Run) -> None:
    """Two ranks' run has the completions and, but for rounding, the numbers of one process."""
    for step in range(3):
        assert_same_step(alone.step(step), pair.step(step), ["rollouts", "rewards"])
    timed = ("seconds", "sampled_tokens_per_second", "peak_memory_gb")
    rows = [run.metrics().to_pylist() for run in (alone, pair)]
    for one, two in zip(*rows, strict=True):
        assert two.pop("ranks") == 2 and 0 < two.pop("wait_share") < 1
        assert one.keys() == two.keys()
        for name, value in one.items():
            if value is None:
                assert two[name] is None, name
            elif not name.startswith(timed):
                assert two[name] == pytest.approx(value, rel=1e-3, abs=1e-5, nan_ok=True), name


def kill_rank(commands: Commands, rank: int, path: Path, after: int, resume: bool = False) -> None:
    """Kill one of two ranks once a checkpoint is there; the other says so, once, and ends."""
    processes = trained(commands, 2, path, *(["--resume"] if resume else []))
    until = time.monotonic() + 200
    while not (path / "checkpoints" / f"step-{after:05d}").exists():
        assert time.monotonic() < until and processes[0].running()
        time.sleep(0.02)
    processes[rank].send_signal(signal.SIGKILL)
    printed = "".join(ended(processes, seconds=60))
    assert processes[1 - rank].end() == 2
    assert printed.count("castctl: rank") == 1
    assert f"rank {rank} (process {processes[rank].pid}" in printed
    assert "Traceback" not in printed
    assert open_run(str(path)).manifest["state"] == "interrupted"


@pytest.mark.slow
def test_ranks_that_differ_or_do_not_come_end_the_others(
    commands: Commands, tmp_path: Path
) -> None:
    first, second = ended(entered(commands, 2, tmp_path, "fall_out"))
    assert (
        "rank 1 did not come to the rollouts within 1 s; see its log, and train.rank_timeout"
        in first
    )
    assert "rank 1 has another policy than rank 0" in second
    assert "all have come late" in first and "all have come late" in second


@pytest.mark.slow
def test_a_mistake_is_said_once_and_ends_all(tmp_path: Path) -> None:
    path = tmp_path / "run"
    create_run(small_recipe("cast"), str(path), "test")
    command = ("-m", "castctl", "train", "--gpus", "2", "--device", "cpu", "--run", str(path))
    done = subprocess.run(
        [sys.executable, *command, "--method", "cast", "--set", "train.part_size=1"],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.count("castctl: ") == 1 + done.stderr.count("will be answered")
    assert "Traceback" not in done.stderr and str(path) in done.stderr


@pytest.mark.parametrize(
    ("environment", "command", "said"),
    [
        ({"RANK": "2", "WORLD_SIZE": "2"}, ["rollout"], "RANK=2 and WORLD_SIZE=2 name no rank"),
        ({"SLURM_PROCID": "1", "SLURM_STEP_NUM_TASKS": "2"}, ["rollout", "-n", "2"], "needs --run"),
        ({"RANK": "1", "WORLD_SIZE": "2"}, ["rollout", "--shard", "0/2"], "leave --shard out"),
        ({"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "1"}, ["train"], "fsdp_version: 2"),
        ({}, ["train", "--gpus", "65536"], "--gpus 65536, but torch sees"),
    ],
)
def test_a_mistake_under_a_launcher_is_one_line(
    environment: dict[str, str], command: list[str], said: str, commands: Commands, tmp_path: Path
) -> None:
    done = commands.start(*command, cwd=tmp_path, **environment).wait(60)
    last = done.stderr.strip().splitlines()[-1]
    assert done.returncode == 2 and last.startswith("castctl: ") and said in last
    assert "Traceback" not in done.stderr
