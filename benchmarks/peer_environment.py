"""Environments of another tool's own, made once in the cache."""

from __future__ import annotations

import os
import subprocess
import sys
import venv
from pathlib import Path

TRL = "trl==1.16.0"
LM_EVAL = "lm-eval[math]==0.4.13"


def python_with(requirement: str, *more: str) -> Path:
    """The Python of an environment with one tool and what it needs, made where it is not there
    yet; `more` is what the tool needs and does not say."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    name = requirement.partition("[")[0].partition("==")[0]
    folder = cache / "castctl-benchmarks" / f"{name}-{requirement.partition('==')[2]}"
    python, whole = folder / "bin" / "python", folder / "whole"
    if not whole.exists():
        venv.create(folder, with_pip=True, clear=True)
        command = [python, "-m", "pip", "install", "--quiet", requirement, *more]
        subprocess.run(command, check=True, stdout=sys.stderr)
        whole.touch()
    return python
