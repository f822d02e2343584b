"""What tests share: one embedded model a machine, runs in an empty folder."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import settings

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
