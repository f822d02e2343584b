"""The child's side: calls one function with a pipe to the parent, and nothing else touches that.

What it and its libraries print goes to the log that is its stdout and stderr.
"""

from __future__ import annotations

import faulthandler
import importlib
import sys
import traceback
from io import TextIOWrapper
from multiprocessing.connection import Connection


def main(handle: str, entry: str) -> None:
    """Call `entry`, as `module:function`, with the open `handle` of a pipe as a `Connection`.

    It ends with exit code 1 and a traceback in the log where the function raises.
    """
    faulthandler.enable()
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)  # last words before a kill are in the log
    with Connection(int(handle)) as connection:
        try:
            module, _, function = entry.partition(":")
            getattr(importlib.import_module(module), function)(connection)
        except Exception:
            traceback.print_exc()  # before the pipe closes: the parent reads the log then
            sys.exit(1)
