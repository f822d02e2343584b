"""An environment of TRL's own, made once in the cache."""

from __future__ import annotations

import os
import subprocess
import sys
import venv
from pathlib import Path

TRL = "1.16.0"


def trl_python() -> Path:
    """The Python of an environment with TRL alone, made where it is not there yet."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = cache / "castctl-benchmarks" / f"trl-{TRL}"
    python, whole = folder / "bin" / "python", folder / "whole"
    if not whole.exists():
        venv.create(folder, with_pip=True, clear=True)
        command = [python, "-m", "pip", "install", "--quiet", f"trl=={TRL}"]
        subprocess.run(command, check=True, stdout=sys.stderr)
        whole.touch()
    return python
