"""Whatever a part holds, a command does its work or ends in one line: 200 damaged files.

`python tests/fuzz_parts.py` does so with thousands, and with the commands that load a model.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from fuzz_parts import QUICK, make_base, one_mutant

MUTANTS, CHUNKS = 200, 4


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one step of 12 completions, and a copy of it."""
    folder = tmp_path_factory.mktemp("base")
    make_base(folder, trained=False)
    return folder


@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_no_damaged_file_ends_in_a_traceback(
    base: Path, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CASTCTL_RUNS", "runs")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    failures = [
        f"mutant {failure.number}, {failure.damage}: {' '.join(failure.command)}\n{failure.said}"
        for number in range(chunk, MUTANTS, CHUNKS)
        for failure in one_mutant(base, number, 0, QUICK, 1)
    ]
    assert not failures, "\n".join(failures)
