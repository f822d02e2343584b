"""What tests share: one embedded model a machine, runs in an empty folder."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from castctl import embedded
from commands import Commands
from deprecations import refuse_deprecated

# A busy machine may take its time over any example.
settings.register_profile("castctl", deadline=None)
settings.load_profile("castctl")

# As the command line sets them, before torch loads; one thread, since tests run side by side.
os.environ |= {
    "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "0",
    "THP_MEM_ALLOC_ENABLE": "1",
}  # fmt: skip

os.environ.pop("COLUMNS", None)  # the width of a terminal that a test has not

refuse_deprecated()

Cli = Callable[..., subprocess.CompletedProcess[str]]


_making: list[subprocess.Popen[bytes]] = []


def pytest_configure(config: pytest.Config) -> None:
    """Make the embedded model, where there is none yet, beside the tests that need none."""
    if not hasattr(config, "workerinput") and not embedded.is_made():
        code = "from castctl.embedded import ensure; ensure(lambda *told: None)"
        _making.append(subprocess.Popen([sys.executable, "-c", code]))


def pytest_unconfigure() -> None:
    for process in _making:
        process.kill()  # what is half made is made anew
        process.wait()


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """Nothing that is imported is garbage: to look through it takes a third of the time."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Each process gets an equal share of each kind of test, one kind after the other."""
    processes = getattr(config, "workerinput", {}).get("workercount", 1)
    shares: list[list[pytest.Item]] = [[] for _ in range(processes)]
    for kind in range(3):
        alike = [item for item in items if _kind(item) == kind]
        for number, share in enumerate(shares):
            start, end = (len(alike) * n // processes for n in (number, number + 1))
            share += alike[start:end]
    items[:] = [item for share in shares for item in share]


def _kind(item: pytest.Item) -> int:
    """0 for what needs no embedded model, 1 for what is slow, 2 for the rest: short tests, which a
    process that is done takes over from another, so that all end at one time."""
    if item.get_closest_marker("slow"):
        return 1
    makers = {"embedded", "small_recipe", "train_small", "Cli", "Commands"}
    return 2 if makers & vars(item.getparent(pytest.Module).obj).keys() else 0


@pytest.fixture(scope="session")
def commands() -> Iterator[Commands]:
    """A server of commands for tests that watch, signal or kill them."""
    server = Commands()
    yield server
    server.close()


@pytest.fixture
def castctl(commands: Commands, tmp_path: Path) -> Cli:
    """Run the command line in an empty folder and check its exit code."""

    def run(
        *arguments: str, code: int = 0, timeout: float = 240
    ) -> subprocess.CompletedProcess[str]:
        done = commands.start(*arguments, cwd=tmp_path).wait(timeout)
        assert done.returncode == code, (
            f"{arguments}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        )
        if code == 2:
            assert "Traceback" not in done.stderr
        return done

    return run


@pytest.fixture(scope="session")
def benchmarks() -> Path:
    """The folder of real benchmark problems, where the machine has one."""
    folder = os.environ.get("CASTCTL_BENCHMARKS")
    if not folder or not Path(folder).is_dir():
        pytest.skip("CASTCTL_BENCHMARKS names no folder")
    return Path(folder)
