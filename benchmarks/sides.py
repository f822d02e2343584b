"""Scripts in several environments that take turns; what they are to the script is in turns.py."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent


class Child:
    """One side, a script in an environment of its own, which takes a step when it is asked to."""

    def __init__(self, python: Path, script: str, folder: Path) -> None:
        environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        if script.startswith("castctl"):
            environment = dict(os.environ)
        self.process = subprocess.Popen(
            [python, HERE / script, folder], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE if os.environ.get("QUIET") else None, text=True,
            env=environment,
        )  # fmt: skip
        self._expect("ready")
        self.ready = True

    def step(self) -> dict[str, Any]:
        if not self.ready:
            self._expect("ready")
        self._say()
        self.ready = False
        told: dict[str, Any] = json.loads(self._line())
        return told

    def _say(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("go\n")
        self.process.stdin.flush()

    def _line(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            sys.exit(f"{self.process.args} ended: what it said stands above")
        return line.strip()

    def _expect(self, word: str) -> None:
        if (found := self._line()) != word:
            sys.exit(f"{self.process.args} said {found!r}, not {word!r}")

    def end(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.terminate()
        self.process.wait()


@contextmanager
def turns(folder: Path, sides: dict[str, tuple[Path, str]]) -> Iterator[dict[str, Child]]:
    """A child a side, of each its Python and its script in this folder; they end with the block."""
    children: dict[str, Child] = {}
    try:
        for side, (python, script) in sides.items():
            children[side] = Child(python, script, folder)
        yield children
    finally:
        for child in children.values():
            child.end()
