"""Kill castctl at random instants, run it again, and compare with a run that nobody killed.

    python tests/interruptions.py --times 100 --seed 0

does so 100 times for each stage and for the loop, prints a line for each of them, and exits
with 1 where anything differs.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import signal
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from castctl.runs.run import Run, open_run
from castctl.stages.train.metrics import Metrics
from commands import Commands
from runs import SMALL, assert_same_step, assert_same_weights, metrics_without_time

STEP = 1
"""The step whose stages are interrupted: its teacher comes from a checkpoint."""

INPUTS: dict[str, tuple[str, ...]] = {
    "rollout": (),
    "score": ("rollouts",),
    "shape": ("rollouts", "rewards", "signals"),
    "train": ("rollouts", "rewards", "signals", "advantages"),
    "eval": (),
}
"""Stages that can be interrupted, and the folders each of them starts from."""

ENDS = {-signal.SIGKILL: "killed", 130: "Ctrl-C", 1: "Ctrl-C before the start", 0: "too late"}
"""How a command may end that got one of the signals."""

SIGNALS = (signal.SIGKILL, signal.SIGINT)


@dataclass
class Tally:
    """What became of the interruptions of one stage."""

    stage: str
    interrupted: int = 0
    ended_before: int = 0
    instants: list[float] = field(default_factory=list)

    def __str__(self) -> str:
        shares = {
            "stage": self.stage,
            "interrupted": self.interrupted,
            "ended_before": self.ended_before,
            "first": round(min(self.instants, default=0.0), 3),
            "last": round(max(self.instants, default=0.0), 3),
        }
        return json.dumps(shares)


class Interrupter:
    """A finished run in a folder of its own, and commands that are killed beside it."""

    def __init__(self, commands: Commands, folder: Path, seed: int) -> None:
        self.commands = commands
        self.folder = folder
        self.random = random.Random(seed)
        settings = [word for line in SMALL for word in ("--set", line)]
        self.train = ("train", "--method", "cast", *settings, "--set", "eval.every=1")
        self.seconds: dict[str, float] = {}
        self._run("loop", *self.train, "--run", "whole")
        self.whole = open_run(str(folder / "runs/whole"))
        self.train += ("--set", "train.keep=best_and_last")  # the loop prunes its checkpoints
        self._run("loop", *self.train, "--run", "pruned")
        self.pruned = open_run(str(folder / "runs/pruned"))
        for stage in INPUTS:
            self._run(stage, *self._begun(stage))

    @property
    def broken(self) -> Run:
        """The run that is being interrupted."""
        return Run(self.folder / "runs/broken", self.whole.recipe)

    def stage(self, stage: str, times: int) -> Tally:
        """Interrupt a stage `times` times, each time from its beginning, and finish it."""
        tally = Tally(stage)
        while tally.interrupted < times:
            command = self._begun(stage)
            self._interrupt(tally, stage, *command)
            self._run(stage, *command)
            self._compare(stage)
        return tally

    def loop(self, times: int) -> Tally:
        """Interrupt the loop `times` times in all, up to five times on its way to the end."""
        tally = Tally("loop")
        while tally.interrupted < times:
            self._forget()
            for _ in range(self.random.randint(1, 5)):
                self._interrupt(tally, "loop", *self._onwards())
            self._run("loop", *self._onwards())
            self._compare("loop")
        return tally

    def _forget(self) -> None:
        shutil.rmtree(self.broken.path, ignore_errors=True)

    def _onwards(self) -> tuple[str, ...]:
        """What a user types to go on with the loop."""
        if (self.broken.path / "manifest.json").exists():
            return ("train", "--resume", "--run", "runs/broken")
        return (*self.train, "--run", "broken")

    def _begun(self, stage: str) -> tuple[str, ...]:
        """Lay out what a stage starts from; the command that runs it."""
        self._forget()
        whole, broken = self.whole, self.broken
        shutil.copytree(whole.path / "prompts", broken.path / "prompts")
        for name in ("recipe.yaml", "manifest.json"):
            shutil.copy(whole.path / name, broken.path / name)
        shutil.copytree(whole.checkpoint(STEP), broken.checkpoint(STEP))
        for name in INPUTS[stage]:
            shutil.copytree(whole.step(STEP).path / name, broken.step(STEP).path / name)
        where = str(Path("runs/broken") / broken.step(STEP).path.name)
        if stage == "eval":
            return ("eval", "--run", "runs/broken", "--checkpoint", str(STEP))
        return ("train", "--from", where) if stage == "train" else (stage, "--run", where)

    def _run(self, name: str, *arguments: str) -> None:
        began = time.monotonic()
        done = self.commands.start(*arguments, cwd=self.folder).wait()
        assert done.returncode == 0, f"{arguments}: {done.stderr}"
        self.seconds.setdefault(name, time.monotonic() - began)

    def _interrupt(self, tally: Tally, name: str, *arguments: str) -> None:
        instant = self.random.uniform(0, self.seconds[name])
        command = self.commands.start(*arguments, cwd=self.folder)
        deadline = time.monotonic() + instant
        while command.running() and time.monotonic() < deadline:
            time.sleep(0.002)
        if not command.running():
            assert command.wait().returncode == 0, command.wait().stderr
            tally.ended_before += 1
            return
        command.send_signal(self.random.choice(SIGNALS))
        done = command.wait()
        assert done.returncode in ENDS, f"{done.returncode}: {done.stderr}"
        assert "a bug in castctl" not in done.stderr, done.stderr
        tally.interrupted += 1
        tally.instants.append(instant)

    def _compare(self, stage: str) -> None:
        whole, broken = self.whole, self.broken
        if stage == "loop":
            whole = self.pruned
            for step in range(whole.recipe.train.steps):
                assert_same_step(whole.step(step), broken.step(step))
            names = [sorted(p.name for p in (run.path / "checkpoints").iterdir())
                     for run in (whole, broken)]  # fmt: skip
            assert names[0] == names[1]
            for step in whole.checkpoints():
                assert_same_weights(whole.checkpoint(step), broken.checkpoint(step))
            rows = [Metrics(run.path / "metrics.parquet").rows for run in (whole, broken)]
            assert metrics_without_time(rows[0]) == metrics_without_time(rows[1])
        elif stage == "train":
            assert_same_weights(whole.checkpoint(STEP + 1), broken.checkpoint(STEP + 1))
        elif stage == "eval":
            results = [
                json.loads((run.eval_folder("embedded", STEP).path / "results.json").read_text())
                for run in (whole, broken)
            ]
            results[1]["model"] = results[0]["model"]  # a policy goes by the name of its run
            assert results[0] == results[1]
        else:
            made = {"rollout": ["rollouts"], "score": ["rewards", "signals"]}
            assert_same_step(whole.step(STEP), broken.step(STEP), made.get(stage, ["advantages"]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--times", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        interrupter = Interrupter(Commands(), Path(folder), options.seed)
        for stage in INPUTS:
            print(interrupter.stage(stage, options.times), flush=True)
        print(interrupter.loop(options.times), flush=True)


if __name__ == "__main__":
    sys.exit(main())
