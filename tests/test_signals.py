"""SIGTERM and SIGHUP end a command in order, its workers at once; nohup's children go on."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from castctl.runs.lock import FILE
from castctl.runs.run import open_run
from castctl.shards.part import read_json
from commands import Commands
from runs import SMALL

SLEEPY = """
import os, pathlib, time
def sleepy(problem, completion, answer):
    pathlib.Path(f"asleep-{os.getpid()}").touch()
    time.sleep(100)
"""


def alive(processes: list[psutil.Process]) -> list[psutil.Process]:
    return [p for p in processes if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_a_signal_ends_the_loop_in_order_and_its_workers_at_once(
    commands: Commands, tmp_path: Path, number: signal.Signals
) -> None:
    (tmp_path / "rules.py").write_text(SLEEPY)
    settings = (*SMALL, "data.limit=32", "verifier.function=rules.py:sleepy",
                "verifier.timeout=100", "verifier.workers=2")  # fmt: skip
    words = [word for line in settings for word in ("--set", line)]
    command = commands.start("train", "--run", "r", *words, cwd=tmp_path)
    deadline = time.monotonic() + 120
    while len(asleep := list(tmp_path.glob("asleep-*"))) < 2:
        assert command.running() and time.monotonic() < deadline
        time.sleep(0.02)
    workers = [psutil.Process(int(file.name.removeprefix("asleep-"))) for file in asleep]
    run = open_run(str(tmp_path / "runs/r"))
    assert run.manifest["state"] == "running" and str(command.pid) in (run.path / FILE).read_text()
    command.send_signal(number)
    if number != signal.SIGKILL:
        command.send_signal(number)  # as `timeout` does, to the process and to its group
    began = time.monotonic()
    done = command.wait(30)
    while alive(workers):
        assert time.monotonic() - began < 2
        time.sleep(0.01)
    if number == signal.SIGKILL:
        assert done.returncode == -signal.SIGKILL
    else:
        assert done.returncode == 128 + number and "Traceback" not in done.stderr
        last, stopped = done.stderr.splitlines()[-1], "stopped; go on with: castctl train --resume"
        assert f"{stopped} --run runs/r" in done.stderr
        assert last.startswith(f"castctl: ended by {number.name}. Whole parts are kept")
        assert read_json(run.path / "manifest.json")["state"] == "interrupted"
        assert not (run.path / FILE).read_text()
    with run.alone():
        pass


def test_a_signal_that_is_ignored_stays_so_and_a_second_one_later_ends_the_clearing_up() -> None:
    script = """
import os, signal, time
signal.signal(signal.SIGHUP, signal.SIG_IGN)
from castctl.cli.ending import Ending
ending = Ending()
os.kill(os.getpid(), signal.SIGHUP)
time.sleep(0.01)
print("on", ending, flush=True)
try:
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(5)
except KeyboardInterrupt:
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(1.1)
    print("cleared", ending, flush=True)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(5)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout.splitlines() == ["on interrupted", "cleared ended by SIGTERM"]
    assert done.stderr.rstrip().endswith("KeyboardInterrupt")


def test_a_signal_that_a_library_wraps_while_it_is_imported_is_still_one() -> None:
    script = """
import importlib, os, signal, sys, time
main = importlib.import_module("castctl.cli.main")

def imported(**_):
    try:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)
        except KeyboardInterrupt as signalled:
            raise RuntimeError("Error calling __set_name__") from signalled
    except RuntimeError as error:
        raise ModuleNotFoundError("Could not import module 'get_scheduler'") from error

main.app = imported if sys.argv[1:] == ["wrapped"] else lambda **_: {}["no key"]
sys.argv = ["castctl"]
main.main()
"""
    python = [sys.executable, "-c", script]
    done = subprocess.run([*python, "wrapped"], capture_output=True, text=True)
    assert done.returncode == 128 + signal.SIGTERM
    line = "castctl: ended by SIGTERM. Whole parts are kept; the same command goes on from them"
    assert done.stderr.splitlines() == [line]
    bug = subprocess.run(python, capture_output=True, text=True)
    assert bug.returncode == 1 and "this is a bug in castctl" in bug.stderr
