"""Commands that run at one time, each in a process of its own: ranks, and shards on two nodes.

The server of commands forks them, so they share its imports.
"""

from __future__ import annotations

import json
import os
import socket
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from commands import Command, Commands


@dataclass
class Together:
    """Commands that were started at one time, and what they print."""

    command: Command
    files: list[Path]

    def ended(self, seconds: float = 120) -> tuple[list[int], list[str]]:
        """Exit codes, and what each has printed to both streams; -N where signal N killed it."""
        done = self.command.wait(seconds)
        codes = json.loads(done.stdout) if done.stdout else []
        return codes, [file.read_text() for file in self.files]


def together(
    commands: Commands,
    cwd: Path,
    each: Sequence[Sequence[str]],
    told: Sequence[dict[str, str]] = (),
    broken: str = "",
) -> Together:
    """Run a command line of castctl in each of several processes, whose environments say what they
    are `told`; `broken` is Python that each runs first."""
    number = len(list(cwd.glob("*.printed")))
    files = [cwd / f"{number + n}.printed" for n in range(len(each))]
    for file in files:
        file.touch()
    asked = [
        {"argv": list(argv), "file": str(file), "env": told[n] if told else {}, "broken": broken}
        for n, (argv, file) in enumerate(zip(each, files, strict=True))
    ]
    return Together(commands.start_file(Path(__file__), json.dumps(asked), cwd=cwd), files)


def ranks(
    commands: Commands, cwd: Path, argv: Sequence[str], count: int = 2, broken: str = ""
) -> Together:
    """The command as so many ranks, as torchrun tells them."""
    told = [
        {"RANK": str(n), "LOCAL_RANK": str(n), "WORLD_SIZE": str(count),
         "LOCAL_WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1"}
        for n in range(count)
    ]  # fmt: skip
    port = str(free_port())
    return together(commands, cwd, [argv] * count, [{**t, "MASTER_PORT": port} for t in told],
                    broken)  # fmt: skip


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def _begin(asked: dict[str, Any]) -> int:
    """Fork the process of one command; its number."""
    if pid := os.fork():
        return pid
    from castctl.cli import main

    code: Any = 1
    try:
        file = os.open(asked["file"], os.O_WRONLY | os.O_APPEND)
        os.dup2(file, 1)
        os.dup2(file, 2)
        os.environ.update(asked["env"])
        sys.argv = ["castctl", *asked["argv"]]
        exec(asked["broken"], {})
        main()
        code = 0
    except SystemExit as end:
        code = end.code
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else 1)


def main(text: str) -> None:
    """Run the commands and print their exit codes; Ctrl-C to their group is theirs alone."""
    import signal

    pids = [_begin(asked) for asked in json.loads(text)]
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
    print(json.dumps(codes))


if __name__ == "__main__":
    main(sys.argv[1])
