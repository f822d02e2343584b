"""A child process answers, fails in words, and leaves nothing behind."""

from __future__ import annotations

import gc
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Pipe, wait
from pathlib import Path

import numpy as np
import psutil
import pytest

import castctl
from castctl import lifeline
from castctl.engines import child as child_module
from castctl.engines.child import Child, ChildFailed
from castctl.engines.wire import Message

PATIENCE = 60.0
"""Longest time that a busy machine may take to start a child."""

PATH = [str(Path(__file__).parent), str(Path(castctl.__file__).parents[1])]

Start = Callable[..., Child]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start a child of an entry in `child_entries`."""
    children = []

    def begin(entry: str, log: Path = tmp_path / "logs" / "child.log", **environment: str) -> Child:
        children.append(Child(f"child_entries:{entry}", log, environment))
        return children[-1]

    yield begin
    for child in children:
        child.kill()
        assert not members(child.pid)


def members(group: int) -> list[int]:
    """The living processes of a group."""
    return [pid for pid in psutil.pids() if lives(pid) and _group(pid) == group]


def _group(pid: int) -> int | None:
    try:
        return os.getpgid(pid)
    except ProcessLookupError:
        return None


def lives(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def await_end(pids: list[int], seconds: float = 10) -> None:
    end = time.monotonic() + seconds
    while left := [pid for pid in pids if lives(pid)]:
        assert time.monotonic() < end, [psutil.Process(pid).cmdline() for pid in left]
        time.sleep(0.01)


def failure(child: Child, seconds: float = PATIENCE) -> str:
    """How the child fails, and goes on to."""
    with pytest.raises(ChildFailed) as failed:
        child.receive(seconds)
    assert not members(child.pid)
    for again in (lambda: child.receive(1), lambda: child.send(Message("more"))):
        with pytest.raises(ChildFailed) as later:
            again()
        assert str(later.value) == str(failed.value)
    return str(failed.value)


def test_arrays_go_there_and_back(start: Start) -> None:
    child = start("echo")
    array = np.random.default_rng(0).integers(0, 2**31, 25_000_000, dtype=np.int32)
    child.send(Message("small", {"a": [1, None]}))
    child.send(Message("large", arrays={"a": array, "none": array[:0]}))
    assert child.receive(PATIENCE) == ("small", {"a": [1, None]}, {})
    kind, facts, arrays = child.receive(PATIENCE)
    assert (kind, facts) == ("large", {})
    assert np.array_equal(arrays["a"], array) and arrays["none"].shape == (0,)
    child.close(PATIENCE)
    child.close()
    child.kill()
    assert "the parent has hung up" in child.log.read_text()
    with pytest.raises(ChildFailed, match="was ended"):
        child.send(Message("more"))


def test_a_child_has_a_session_of_its_own_and_finds_what_its_parent_finds(start: Start) -> None:
    child = start("tell", CASTCTL_TOLD="yes")
    facts = child.receive(PATIENCE).facts
    assert facts["session"] == facts["group"] == child.pid
    assert facts["stdin"] == os.devnull and facts["variable"] == "yes"
    assert facts["path"] == sys.path
    assert len(facts["open"]) == 6  # standard files, the pipe, its life; the folder that is listed
    assert facts["inherited"] == []


def test_several_children_are_waited_for(start: Start, tmp_path: Path) -> None:
    children = {c.connection: c for c in (start("echo"), start("echo", log=tmp_path / "b.log"))}
    first, second = children.values()
    second.send(Message("second"))
    assert [children[ready] for ready in wait(children, PATIENCE)] == [second]
    second.kill()
    first.send(Message("first"))
    assert first.receive(PATIENCE).kind == "first"


def test_a_child_outlives_the_thread_that_made_it(start: Start) -> None:
    made: list[Child] = []
    thread = threading.Thread(target=lambda: made.append(start("echo")))
    thread.start()
    thread.join()
    for kind in "ab":
        made[0].send(Message(kind))
        assert made[0].receive(PATIENCE).kind == kind


def test_death_in_mid_answer(start: Start) -> None:
    child = start("die")
    assert failure(child) == f"died of signal 9; log: {child.log}"


def test_an_exit_in_words(start: Start) -> None:
    assert failure(start("leave")).startswith("ended with exit code 3; log: ")


def test_a_crash_leaves_its_trace_in_the_log(start: Start) -> None:
    child = start("crash")
    assert failure(child).startswith("died of signal 11; last error in ")
    assert "Fatal Python error: Segmentation fault" in child.log.read_text()
    assert "in crash" in child.log.read_text()


def test_an_exception_is_in_the_log_and_its_last_line_in_the_failure(start: Start) -> None:
    child = start("fail")
    said = failure(child)
    assert said.startswith(
        f"ended with exit code 1; last error in {child.log}: ValueError: no \\x07luck aaa"
    )
    assert said.isprintable() and len(said) < 360 + len(str(child.log))
    log = child.log.read_text()
    assert "an error before\nTraceback" in log and log.count("Traceback") == 1
    later = start("leave")
    assert "ValueError" not in failure(later)  # it is another's
    headers = [line for line in child.log.read_text().splitlines() if line.startswith("--- ")]
    assert [f"process {one.pid}: child_entries:" in header for one, header in zip(
        (child, later), headers, strict=True
    )] == [True, True]  # fmt: skip


def test_an_entry_that_is_not_there(start: Start) -> None:
    assert failure(start("nothing")).endswith("has no attribute 'nothing'")


@pytest.mark.parametrize("entry", ["sleep", "stop", "compute", "refuse", "break_off"])
def test_a_wedged_child_is_killed_at_the_deadline(start: Start, entry: str) -> None:
    child = start(entry)
    assert child.receive(PATIENCE).kind == "ready"
    began = time.monotonic()
    assert failure(child, 0.3).startswith("gave no sign of life for 0.3 s; log: ")
    assert time.monotonic() - began < 10


def test_a_process_that_escapes_the_group_holds_up_nothing(start: Start) -> None:
    child = start("let_escape")
    escaped = child.receive(PATIENCE).facts["pid"]
    try:
        began = time.monotonic()
        assert failure(child, 0.3).startswith("gave no sign of life for 0.3 s; log: ")
        assert time.monotonic() - began < 10 and lives(escaped)
    finally:
        os.kill(escaped, signal.SIGKILL)


def test_a_message_that_nobody_reads_is_given_up(start: Start) -> None:
    child = start("sleep")
    began = time.monotonic()
    with pytest.raises(ChildFailed, match="read nothing for 0 s; log: "):
        child.send(Message("large", arrays={"a": np.zeros(10**7)}), 0)
    assert time.monotonic() - began < 10 and not members(child.pid)


def test_a_message_to_a_dead_child(start: Start) -> None:
    child = start("sleep")
    os.kill(child.pid, signal.SIGKILL)
    with pytest.raises(ChildFailed, match="died of signal 9"):
        child.send(Message("large", arrays={"a": np.zeros(10**7)}))


def test_garbage_on_the_pipe(start: Start) -> None:
    assert failure(start("babble")).startswith("sent what is no message; log: ")


@pytest.mark.parametrize("entry", ["hang_up", "linger"])
def test_a_child_that_hangs_up_and_stays(
    start: Start, entry: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(child_module, "GRACE_SECONDS", 0.3)
    assert failure(start(entry)).startswith("closed its pipe; log: ")


def test_what_a_child_prints_goes_to_the_log(
    start: Start, capfd: pytest.CaptureFixture[str]
) -> None:
    child = start("print_much")
    assert child.receive(PATIENCE).kind == "done"
    child.kill()
    assert capfd.readouterr() == ("", "")
    lines = child.log.read_text().splitlines()
    assert lines.count("x" * 1023) == 4000
    assert lines[-2:] == ["from a program", "from Python"]


def test_an_interrupted_answer_ends_the_child(start: Start) -> None:
    """What follows would begin in the middle of a message."""
    child = start("break_off")
    assert child.receive(PATIENCE).kind == "ready"
    old = signal.signal(signal.SIGALRM, signal.default_int_handler)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.3)
        with pytest.raises(KeyboardInterrupt):
            child.receive(PATIENCE)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)
    assert not members(child.pid)
    with pytest.raises(ChildFailed, match="was ended"):
        child.receive(1)


def test_a_child_that_is_dropped_ends(tmp_path: Path) -> None:
    child = Child("child_entries:start_others", tmp_path / "log")
    pids = [child.pid, *child.receive(PATIENCE).facts["pids"]]
    del child
    gc.collect()
    await_end(pids)


@pytest.mark.parametrize("ending", ["kill", "close", "death", "stopped"])
def test_whatever_a_child_started_ends_with_it(start: Start, ending: str) -> None:
    child = start("start_others")
    pids = child.receive(PATIENCE).facts["pids"]
    assert len(pids) == 3 and all(map(lives, pids))
    if ending == "kill":
        child.kill()
    elif ending == "close":
        child.close(0.1)
    else:
        if ending == "stopped":
            os.killpg(child.pid, signal.SIGSTOP)
        os.kill(child.pid, signal.SIGKILL)
        failure(child, 1)
    assert not any(map(lives, pids))


@pytest.mark.parametrize("ending", ["kill", "close", "death", "silence"])
def test_shared_memory_of_a_killed_child_is_removed(start: Start, ending: str) -> None:
    child = start("share")
    memory = Path("/dev/shm", child.receive(PATIENCE).facts["name"])
    assert memory.exists()
    if ending == "kill":
        child.kill()
    elif ending == "close":
        child.close(0)
    else:
        if ending == "death":
            os.kill(child.pid, signal.SIGKILL)
        failure(child, 0.5)
    assert not memory.exists()


def test_a_process_that_inherits_orphans_is_left_with_none(tmp_path: Path) -> None:
    """As a container's first process does."""
    script = f"""
import ctypes, sys
from pathlib import Path
sys.path[:0] = {PATH!r}
import psutil
from castctl.engines.child import Child

assert ctypes.CDLL(None).prctl(36, 1, 0, 0, 0) == 0  # PR_SET_CHILD_SUBREAPER
child = Child("child_entries:start_others", Path("log"))
assert len(child.receive({PATIENCE}).facts["pids"]) == 3
child.kill()
assert not psutil.Process().children(recursive=True)
"""
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, check=True, timeout=PATIENCE)


def test_a_life_that_ends_early_ends_what_has_not_begun() -> None:
    for group in (False, True):
        ours, theirs = Pipe()
        process, life = lifeline.start("child_entries:sleep", theirs.fileno(), group=group)
        life.close()
        with ours, theirs:
            assert process.wait(PATIENCE) in (0, -signal.SIGKILL)
        await_end(members(process.pid))


PARENT = """
import json, os, sys, time
from pathlib import Path
sys.path[:0] = {path!r}
import psutil
from castctl.engines.child import Child
from castctl.verify.process import Bounds, WorkerProcess

first = Child("child_entries:start_others", Path("first.log"))
worker = WorkerProcess(Bounds("verifier", 100, 4, "4 GB"))
second = Child("child_entries:refuse", Path("second.log"))
told = first.receive(60).facts["pids"]
second.receive(60)
worker.connection.recv()
fork = os.fork()
if fork == 0:
    time.sleep(100)
descendants = [p.pid for p in psutil.Process().children(recursive=True) if p.pid != fork]
assert set(told) < set(descendants) and len(descendants) == 9, descendants
children = [first.pid, second.pid]
print(json.dumps([fork, children, descendants]), flush=True)
{ending}
"""

Parent = Callable[[str], tuple[subprocess.Popen[str], list[int], list[int]]]


@pytest.fixture
def parent(tmp_path: Path) -> Iterator[Parent]:
    """A process with two children, a verifier's worker, and a fork that outlives it.

    With it come the children's numbers, and those of all its descendants but the fork.
    """
    left: list[int] = []

    def begin(ending: str) -> tuple[subprocess.Popen[str], list[int], list[int]]:
        script = PARENT.format(path=PATH, ending=ending)
        process = subprocess.Popen(
            [sys.executable, "-c", script],
            stdout=subprocess.PIPE,
            text=True,
            cwd=tmp_path,
            start_new_session=True,
        )
        left.append(process.pid)
        assert process.stdout
        fork, children, descendants = json.loads(process.stdout.readline())
        left.append(fork)
        left.extend(descendants)
        assert lives(fork) and all(map(lives, descendants))
        return process, children, descendants

    yield begin
    for pid in filter(lives, left):
        os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_nothing_outlives_a_parent_that_a_signal_ends(parent: Parent, number: int) -> None:
    """Ctrl-C reaches the parent's process group alone."""
    process, _, descendants = parent("time.sleep(100)")
    os.killpg(process.pid, number) if number == signal.SIGINT else process.send_signal(number)
    await_end(descendants)
    assert process.wait(10) != 0


def test_nothing_outlives_a_parent_that_ends_by_itself(parent: Parent) -> None:
    process, _, descendants = parent("")
    assert process.wait(PATIENCE) == 0
    await_end(descendants)


def test_nothing_outlives_parent_and_child_that_are_killed_at_once(parent: Parent) -> None:
    process, children, descendants = parent("time.sleep(100)")
    for pid in (*children, process.pid):
        os.kill(pid, signal.SIGKILL)
    await_end(descendants)


def test_nothing_outlives_a_parent_where_all_have_been_stopped(parent: Parent) -> None:
    process, _, descendants = parent("time.sleep(100)")
    for pid in descendants:
        os.kill(pid, signal.SIGSTOP)
    process.kill()
    await_end(descendants)
