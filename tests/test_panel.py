"""The live panel: drawn from rows, and by the real command on a pseudo terminal."""

from __future__ import annotations

import fcntl
import io
import json
import os
import pty
import re
import select
import signal
import struct
import termios
import time
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from castctl.recipe.recipe import Recipe
from castctl.report.course import Course, CoursePanel, Stage, duration
from castctl.report.panel import TrainingPanel
from castctl.runs.run import create_run
from commands import START_SECONDS, Command, Commands
from runs import SMALL, small_recipe

ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def row(step: int, reward: float = 0.5, **others: Any) -> dict[str, Any]:
    return {
        "step": step, "reward_mean": reward, "length_mean": 40.0, "entropy_mean": 0.02,
        "gap_rms": 0.1, "flipped_share": 0.03, "flipped_down_share": 0.04, "flipped_up_share": 0.02,
        "grad_norm": 0.3,
        "groups_mixed": 0.5, "groups_all_correct": 0.25, "groups_all_wrong": 0.25,
        "groups_single": 0.0, "seconds": 2.0, "seconds_rollout": 1.0, "seconds_train": 1.0,
        "rounds": 1, **others,
    }  # fmt: skip


def course(rows: list[dict[str, Any]], **others: Any) -> Course:
    recipe = Recipe.model_validate({"train": {"steps": 50}, "eval": {"every": 10}})
    return Course("demo", recipe, began=0.0, rows=rows, **others)


def drawn(course: Course, width: int = 80, now: float = 10.0) -> list[str]:
    console = Console(file=io.StringIO(), width=width, force_terminal=True, legacy_windows=False)
    console.print(CoursePanel(course, now))
    assert isinstance(console.file, io.StringIO)
    return ESCAPES.sub("", console.file.getvalue()).splitlines()


def line_of(lines: list[str], label: str) -> str:
    [found] = [line for line in lines if line.startswith(f"│ {label}")]
    return found


def test_a_row_of_each_measure() -> None:
    result = {"step": 0, "k": 8, "avg": {"mean": 0.5, "low": 0.4, "high": 0.6}}
    lines = drawn(course([row(n) for n in range(4)], evaluation=result))
    assert "demo  step 4/50" in lines[0]
    assert "0.500" in line_of(lines, "reward") and "40.0 tokens" in line_of(lines, "length")
    assert "3.0%" in line_of(lines, "flips") and "0.1000 nats RMS" in line_of(lines, "gap")
    assert "50.0 (40.0 to 60.0) before training" in line_of(lines, "eval")
    assert "2 s a step: rollout 50.0%" in line_of(lines, "time")
    assert "10 s" in lines[-1]
    letters = line_of(lines, "groups").removeprefix("│ groups").strip(" │")
    assert letters == "M" * letters.count("M") + "C" * letters.count("C") + "W" * letters.count("W")
    assert abs(letters.count("M") - len(letters) / 2) <= 1 and set(letters) == set("MCW")


def test_sampler_and_scorer_are_followed_where_they_differ() -> None:
    same = {"sampler_kl": 3e-14, "correction_masked_share": 0.0, "correction_capped_share": 0.0}
    lines = "\n".join(drawn(course([row(n, **same) for n in range(2)])))
    assert "sampler" not in lines and "masked" not in lines and "capped" not in lines
    apart = same | {"sampler_kl": 2e-4, "correction_masked_share": 0.013}
    found = drawn(course([row(0, **same), row(1, **apart)]))
    assert "2.0e-04 nats KL" in line_of(found, "sampler")
    assert "1.3% of tokens" in line_of(found, "  masked")
    assert not any("capped" in line for line in found)


def test_what_a_method_does_not_measure_has_no_line() -> None:
    plain, none = (
        row(0),
        {"flipped_share": None, "flipped_down_share": None, "flipped_up_share": float("nan")},
    )
    for name in ("gap_rms", "flipped_share", "flipped_down_share", "flipped_up_share"):
        del plain[name]
    text = "\n".join(drawn(course([plain, row(1, gap_rms=None, **none)])))
    assert "gap" not in text and "flips" not in text and "reward" in text


@pytest.mark.parametrize("width", [24, 33, 40, 57, 80, 120, 200])
def test_no_line_is_wider_than_the_terminal(width: int) -> None:
    hostile = Stage("rollout", 10**9, "completions", 0.0, 10**8)
    for rows in ([], [row(0)], [row(n, reward=n / 40) for n in range(40)]):
        lines = drawn(course(rows, stage=hostile), width)
        assert max(map(len, lines)) <= width - 2  # the echo of ^C has room


def test_a_trend_needs_six_steps_and_says_when_it_is_noise() -> None:
    assert not any(
        mark in line_of(drawn(course([row(n) for n in range(5)])), "reward") for mark in "↑↓→"
    )
    rising = [row(n, 0.1 + 0.02 * n) for n in range(20)]
    assert "↑ +0.200 in 10 steps" in line_of(drawn(course(rising)), "reward")
    assert "↓ -0.200 in 10 steps" in line_of(drawn(course(
        [row(n, 0.9 - 0.02 * n) for n in range(20)])), "reward")  # fmt: skip
    noise = [row(n, 0.5 + 0.3 * (-1) ** n) for n in range(18)]
    assert "→" in line_of(drawn(course(noise)), "reward")


def test_time_left_counts_steps_and_evaluations() -> None:
    done = course([row(n, seconds=float(n)) for n in range(20)], pauses=[4.0, 6.0], told=100.0)
    # Thirty steps of 14.5 s, the mean of the last ten, and evaluations after 30, 40 and 50.
    assert done.seconds_left(100.0) == pytest.approx(30 * 14.5 + 3 * 5)
    assert done.seconds_left(110.0) == pytest.approx(30 * 14.5 + 3 * 5 - 10)
    assert done.seconds_left(10_000.0) == 0
    assert course([]).seconds_left(0.0) is None
    assert course([row(49)]).seconds_left(0.0) == 0


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (59.4, "59 s"), (125, "2 min 5 s"), (3600, "1 h 0 min"), (90_000, "25 h 0 min")],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_the_panel_tells_evaluations_from_steps(tmp_path: Path) -> None:
    recipe = small_recipe("cast", "eval.every=1")
    panel = TrainingPanel(create_run(recipe, str(tmp_path / "run"), "test"), Console(quiet=True))
    names = []
    with panel:
        for name in (
            "rollout",
            "verify",
            "rollout",
            "verify",
            "score",
            "shape",
            "rollout",
            "verify",
        ):
            with panel.task(name, 4, "completions") as advance:
                advance(1)
                assert panel.course.stage is not None
                names.append(panel.course.stage.name)
            if name == "shape":
                assert panel.course.stage.name == "train"
        panel.add(row(0, eval_mean=0.5))
    of_evaluation = [name.startswith("evaluation: ") for name in names]
    assert of_evaluation == [True, True, False, False, False, False, True, True]
    assert len(panel.course.pauses) == 2 and panel.course.over


@pytest.mark.parametrize("odd", [float("nan"), None, "text", float("inf")])
def test_odd_rows_are_drawn(odd: Any) -> None:
    """Whatever a row holds in place of a number is left out, and the rest is there."""
    names = [name for name in row(0) if name not in ("step", "length_mean")]
    broken = row(1) | dict.fromkeys(names, odd)
    for rows in ([broken], [row(0), broken], [row(0), {"step": 1, "length_mean": 40.0}]):
        lines = drawn(course(rows, told=0.0))
        assert f"step {rows[-1]['step'] + 1}/50" in lines[0]
        assert "40.0 tokens" in line_of(lines, "length")
    assert "2 s a step" in line_of(lines, "time")


def test_what_cannot_be_drawn_is_said() -> None:
    [said] = drawn(course([row(0)], evaluation={"step": 3}))
    assert "the panel cannot be drawn" in said


def test_a_resumed_run_shows_its_newest_evaluation(tmp_path: Path) -> None:
    run = create_run(small_recipe("cast"), str(tmp_path / "run"), "test")
    run.checkpoint(2).mkdir(parents=True)
    task = run.recipe.eval.task
    for step in (0, 2, 3):
        folder = run.eval_folder(task, step).path
        folder.mkdir(parents=True)
        (folder / "results.json").write_text(json.dumps({"step": step}))
    assert run.checkpoints() == [2]

    def shown() -> Any:
        return TrainingPanel(run, Console(quiet=True)).course.evaluation

    assert shown() == {"step": 2}
    (run.eval_folder(task, 2).path / "results.json").write_text("{")
    assert shown() == {"step": 0}


class Terminal(Command):
    """A command whose output goes to a pseudo terminal of 80 by 40, and all that it wrote there."""

    def __init__(self, commands: Commands, *arguments: str, cwd: Path, term: str = "xterm") -> None:
        self._ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 80, 0, 0))
        super().__init__(commands.socket, ("castctl", *arguments), cwd, {"TERM": term}, theirs)
        os.close(theirs)
        self.text = ""

    def read_until(self, wanted: str | None, seconds: float = 120) -> None:
        """Read until the text holds what the pattern `wanted` finds, or to the end."""
        end = time.monotonic() + seconds
        while wanted is None or not re.search(wanted, self.text):
            assert time.monotonic() < end, self.text[-3000:]
            if not select.select([self._ours], [], [], 1)[0]:
                continue
            try:
                data = os.read(self._ours, 65536)
            except OSError:  # the other side is closed
                data = b""
            if not data:
                assert wanted is None, self.text[-3000:]
                return
            self.text += data.decode(errors="replace")

    def end(self, timeout: float = START_SECONDS) -> int:
        """The exit code, once everything is read."""
        self.read_until(None)
        os.close(self._ours)
        return super().end(timeout)


def settings(*others: str) -> list[str]:
    return [word for line in (*SMALL, *others) for word in ("--set", line)]


def test_a_run_on_a_terminal_its_interruption_and_the_rest(
    commands: Commands, tmp_path: Path
) -> None:
    options = settings("train.steps=40", "optimizer.lr=1e-12", "train.warn_after_zero_rewards=1")
    first = Terminal(
        commands, "train", "--method", "cast", "--run", "watched", *options, cwd=tmp_path
    )
    first.read_until("step [3-9]/40")  # not every step is drawn
    first.send_signal(signal.SIGINT)
    assert first.end() == 130
    text = first.text
    assert "stopped; go on with: castctl train --resume --run runs/watched" in text
    assert "reward" in text and "before training" in text
    # The cursor comes back, below the panel, which stays.
    assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l")
    assert text.index("stopped;") > text.rindex("╰")
    # The teacher's gap stays zero, which is said once, on a line of its own above the panel.
    plain = ESCAPES.sub("", text)
    assert plain.count("the teacher's gap is zero") == 1
    said = next(line for line in re.split(r"[\r\n]+", plain) if "gap is zero" in line)
    assert said.startswith("castctl: warning: step 2")

    second = Terminal(commands, "train", "--resume", "--run", "watched", cwd=tmp_path)
    second.read_until("step [4-9]/40")
    second.send_signal(signal.SIGINT)
    assert second.end() == 130
    sparks = [len(found) for found in re.findall("[▁▂▃▄▅▆▇█]+", second.text)]
    assert max(sparks) >= 3  # the steps before the interruption among them


@pytest.mark.parametrize("how", ["dumb", "quiet"])
def test_no_panel_where_it_cannot_be_drawn_or_is_not_wanted(
    commands: Commands, tmp_path: Path, how: str
) -> None:
    options = settings("train.steps=1")
    quiet = ["--quiet"] if how == "quiet" else []
    term = "dumb" if how == "dumb" else "xterm"
    command = Terminal(commands, "train", *options, *quiet, cwd=tmp_path, term=term)
    assert command.end() == 0
    assert "\x1b[?25l" not in command.text and "╭" not in command.text
    assert ("step    1/1  reward" in command.text) is (how == "dumb")
    assert "difference:" in command.text
