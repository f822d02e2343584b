"""The tutorial: its commands, one after the other, in an empty folder, on fewer problems."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path

import pytest

from conftest import Cli

FEWER = ("--set", "train.prompts_per_step=8", "--set", "eval.limit=32")
"""What `castctl train` is told beside the page's words."""

PAGE = Path(__file__).parents[1] / "docs" / "tutorial.md"


def commands_of(page: str) -> list[str]:
    """The commands in a page's blocks of bash, one that goes over several lines as one."""
    blocks = re.findall(r"^```bash\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
    return [
        command.strip()
        for block in blocks
        for command in re.split(r"(?<!\\)\n", block)
        if command.strip()
    ]


@pytest.mark.slow
def test_every_command_works_as_it_stands(castctl: Cli, tmp_path: Path) -> None:
    told: dict[str, str] = {}
    for command in commands_of(PAGE.read_text(encoding="utf-8")):
        if command.startswith("castctl "):
            words = shlex.split(command)[1:]
            told[command] = castctl(*words, *(FEWER if words[0] == "train" else ())).stdout
        else:
            subprocess.run(["bash", "-ec", command], cwd=tmp_path, check=True, timeout=60)
    assert len(told) >= 9
    first = tmp_path / "runs" / "first"
    assert (first / "report.html").stat().st_size > 100_000
    for name in ("self-gaps", "flips", "groups", "opsd-gaps"):
        assert (first / "diagnose" / name / f"{name}.json").is_file()
    rescored = next(out for command, out in told.items() if "--rescore" in command)
    assert "2 problems, 3 completions" in rescored and "1 of 3 completions" in rescored
    compared = next(out for command, out in told.items() if "compare" in command)
    assert "detectable" in compared


def test_every_picture_is_there() -> None:
    pictures = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", PAGE.read_text(encoding="utf-8"))
    assert pictures
    for picture in pictures:
        assert (PAGE.parent / picture).read_bytes().startswith(b"\x89PNG")
