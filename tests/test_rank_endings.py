"""Several ranks under each launcher: the numbers of one process, and how they end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from castctl.runs.run import Run, open_run
from commands import Commands
from runs import SMALL, assert_same_weights, small_recipe, train_small
from side_by_side import free_port, ranks, together

CAST = ("model.lora={r: 4, alpha: 8}", "method.teacher.kind=ema", "method.teacher.decay=0.5")
SNAPSHOT = "method.teacher.every=1"
DAPO = ("method.zero_variance.max_rounds=2", "train.steps=2")


def settings(*more: str) -> tuple[str, ...]:
    """Few steps, whose updates are larger than rounding."""
    return ("train.part_size=1", "train.microbatch_tokens=200", "optimizer.lr=1e-4", *more)


def typed(method: str, *more: str) -> list[str]:
    fitting = [line for line in SMALL if method == "cast" or "teacher" not in line]
    words = [word for line in (*fitting, *settings(*more)) for word in ("--set", line)]
    return ["train", "--method", method, *words]


def wait_for(file: Path, running: Callable[[], bool]) -> None:
    until = time.monotonic() + 120
    while not file.exists():
        assert time.monotonic() < until and running(), f"{file} never came"
        time.sleep(0.01)


def assert_near(pair: Run, alone: Run, step: int = 3) -> None:
    """The same completions in every step, and weights, of teachers too, that moved alike."""
    for number in range(step):
        one, two = (run.step(number).table("rollouts") for run in (alone, pair))
        assert one["completion_token_ids"].equals(two["completion_token_ids"])
    first, last = alone.checkpoint(1), alone.checkpoint(step)
    files = [file.relative_to(last) for file in last.rglob("*.safetensors")]
    assert files
    for file in files:
        one, two = load_file(last / file), load_file(pair.checkpoint(step) / file)
        began = load_file(first / file)
        assert one.keys() == two.keys()
        assert max(np.abs(one[name] - two[name]).max() for name in one) < 1e-6, file
        assert max(np.abs(one[name] - began[name]).max() for name in one) > 1e-5, file


@pytest.mark.slow
def test_adapters_averages_and_trackers_of_two_ranks(commands: Commands, tmp_path: Path) -> None:
    """As one process has them. And ended by Ctrl-C, and gone on with under SLURM, they end with the
    same bits."""
    tracked = ("logging.trackers=[tensorboard]",)
    line = typed("cast", *CAST, *tracked)
    whole = ranks(commands, tmp_path, [*line, "--run", "runs/whole"])
    alone, _ = train_small(tmp_path / "alone", small_recipe("cast", *settings(*CAST)))
    codes, printed = whole.ended()
    assert codes == [0, 0], printed
    pair = open_run(str(tmp_path / "runs/whole"))
    assert_near(pair, alone)
    events = list((tmp_path / "runs/whole/trackers").rglob("events.out.tfevents.*"))
    assert {file.name.split(".")[-2] for file in events} == {str(pair.manifest["pid"])}
    assert any(b"grad_norm" in file.read_bytes() for file in events)

    broken = ranks(commands, tmp_path, [*line, "--run", "runs/broken"])
    run = tmp_path / "runs/broken"
    wait_for(run / "checkpoints/step-00001", broken.command.running)
    os.killpg(broken.command.pid, signal.SIGINT)
    codes, printed = broken.ended()
    assert codes == [130, 130], printed
    both = "".join(printed)
    assert both.count("castctl: ") == 1 and "castctl: interrupted. Whole parts" in both
    assert both.count("go on with: castctl train --resume --run runs/broken") == 1
    assert "Traceback" not in both and open_run(str(run)).manifest["state"] == "interrupted"
    job = free_port() - 20_000  # two ranks of a step of SLURM meet at a port of its number
    told = [
        {"SLURM_PROCID": str(n), "SLURM_LOCALID": str(n), "SLURM_STEP_NUM_TASKS": "2",
         "SLURM_NTASKS": "2", "SLURM_JOB_ID": str(job % 20_000), "SLURM_STEP_ID": "0",
         "SLURM_STEP_NUM_NODES": "1", "SLURM_STEP_TASKS_PER_NODE": "2", "SLURM_NODEID": "0"}
        for n in range(2)
    ]  # fmt: skip
    onwards = ["train", "--resume", "--run", "runs/broken"]
    codes, printed = together(commands, tmp_path, [onwards, onwards], told).ended()
    assert codes == [0, 0] and "difference:" in printed[0] and printed[1] == "", printed
    assert_same_weights(pair.checkpoint(3), open_run(str(run)).checkpoint(3))


@pytest.mark.slow
def test_snapshots_of_two_ranks_that_were_told_to_end(commands: Commands, tmp_path: Path) -> None:
    """SIGTERM to all of them, as `scancel` sends it, and on to the weights of one process."""
    line = typed("cast", SNAPSHOT)
    pair = ranks(commands, tmp_path, [*line, "--run", "runs/pair"])
    run = tmp_path / "runs/pair"
    wait_for(run / "checkpoints/step-00001", pair.command.running)
    os.killpg(pair.command.pid, signal.SIGTERM)
    codes, printed = pair.ended()
    assert codes == [143, 143], printed
    assert "".join(printed).count("castctl: ended by SIGTERM. Whole parts") == 1
    assert "is gone" not in "".join(printed)
    onwards = ["train", "--resume", "--run", "runs/pair"]
    alone, _ = train_small(tmp_path / "alone", small_recipe("cast", *settings(SNAPSHOT)))
    codes, printed = ranks(commands, tmp_path, onwards).ended()
    assert codes == [0, 0], printed
    assert_near(open_run(str(run)), alone)


@pytest.mark.slow
def test_further_rounds_of_two_ranks_under_two_launchers(
    commands: Commands, tmp_path: Path
) -> None:
    """Ctrl-C to the launcher of --gpus ends all with one line; the run goes on under accelerate
    launch, and ends as one process does that was never stopped."""
    alone, _ = train_small(tmp_path / "alone", small_recipe("dapo", *settings(*DAPO)))
    rounds = alone.metrics()["rounds"].to_pylist()
    assert max(rounds) > 1
    line = [*typed("dapo", *DAPO), "--device", "cpu", "--gpus", "2", "--run", "runs/pair"]
    launcher = commands.start(*line, cwd=tmp_path)
    run = tmp_path / "runs/pair"
    wait_for(run / "checkpoints/step-00001", launcher.running)
    launcher.send_signal(signal.SIGINT)
    done = launcher.wait(60)
    assert done.returncode == 130 and done.stdout == "", done.stderr
    assert done.stderr.count("castctl: interrupted. Whole parts") == 1
    assert "torch" not in done.stderr and "Traceback" not in done.stderr
    assert open_run(str(run)).manifest["state"] == "interrupted"
    (tmp_path / "two.yaml").write_text(
        "{compute_environment: LOCAL_MACHINE, distributed_type: MULTI_GPU, num_processes: 2, "
        f"num_machines: 1, machine_rank: 0, mixed_precision: 'no', main_process_port: {free_port()}"
        "}\n"
    )
    accelerate = ("accelerate.commands.launch", "--config_file", "two.yaml", "-m", "castctl")
    done = subprocess.run(
        [sys.executable, "-m", *accelerate, "train", "--resume", "--run", "runs/pair"],
        cwd=tmp_path, capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip
    assert done.returncode == 0 and "difference:" in done.stdout, done.stdout + done.stderr
    pair = open_run(str(run))
    assert pair.metrics()["rounds"].to_pylist() == rounds
    assert pair.metrics()["ranks"].to_pylist() == [2, 2]
    assert_near(pair, alone, 2)


BUG = """
import os
import castctl.stages.train.loop as loop
if os.environ["RANK"] == "1":
    loop.read_batch = lambda *given, **named: 1 / 0
"""


@pytest.mark.slow
def test_a_bug_on_one_rank_ends_both(commands: Commands, tmp_path: Path) -> None:
    """It ends as a bug, with its lines; the other says nothing and ends as by a mistake, long
    before it would have waited in vain."""
    began = time.monotonic()
    pair = ranks(commands, tmp_path, [*typed("cast"), "--run", "runs/bug"], broken=BUG)
    codes, (first, second) = pair.ended()
    assert codes == [2, 1], first + second
    assert time.monotonic() - began < 60
    both = first + second
    assert both.count("castctl: ") == 1 and both.count("ZeroDivisionError") == 1
    assert "castctl: this is a bug in castctl" in second
    log = (tmp_path / "runs/bug/rank-1.log").read_text()
    assert "ZeroDivisionError" in log and "castctl: this is a bug in castctl" in log
    assert open_run(str(tmp_path / "runs/bug")).manifest["state"] == "interrupted"
