"""The real command line without the wait for imports.

A server process imports what castctl's stages import and forks for every command. The child
gets its own arguments, folder, environment and output files and runs `castctl.cli.main`, or a
Python file, so exit codes, signals and the terminal's bytes are those of a process of its own.
"""

from __future__ import annotations

import importlib
import json
import os
import pkgutil
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path
from typing import IO, Any

START_SECONDS = 300.0
"""Longest time that a busy machine may take to import torch, or to fork."""


def _answer(server: socket.socket, word: str, timeout: float) -> str:
    """The number that follows `word` in the server's next answer; older answers are passed over."""
    server.settimeout(timeout)
    line = b""
    while True:
        byte = server.recv(1)
        assert byte, "the server of commands died"
        if byte != b"\n":
            line += byte
            continue
        said, _, number = line.decode().partition(" ")
        if said == word:
            return number
        line = b""


class Command:
    """A command that runs."""

    def __init__(self, server: socket.socket, arguments: tuple[str, ...], cwd: Path) -> None:
        self.arguments = arguments
        self._server = server
        self._out, self._err = (tempfile.TemporaryFile("w+b") for _ in range(2))  # noqa: SIM115
        self._status: int | None = None
        request = {"argv": arguments, "cwd": str(cwd), "env": dict(os.environ)}
        files = [stream.fileno() for stream in (self._out, self._err)]
        socket.send_fds(server, [json.dumps(request).encode() + b"\n"], files)
        self.pid = int(_answer(server, "pid", START_SECONDS))

    def running(self) -> bool:
        """Whether it has not ended yet."""
        if self._status is None:
            try:
                self._status = int(_answer(self._server, "end", 0.001))
            except TimeoutError:
                return True
        return False

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def wait(self, timeout: float = 240) -> subprocess.CompletedProcess[str]:
        """The ended command; it is killed and the test fails after `timeout` seconds."""
        if self._status is None:
            try:
                self._status = int(_answer(self._server, "end", timeout))
            except TimeoutError:
                self.send_signal(signal.SIGKILL)
                self._status = int(_answer(self._server, "end", START_SECONDS))
                raise AssertionError(f"{self.arguments} took longer than {timeout} s") from None
        code = os.waitstatus_to_exitcode(self._status)
        return subprocess.CompletedProcess(self.arguments, code, _text(self._out), _text(self._err))


def _text(stream: IO[bytes]) -> str:
    stream.seek(0)
    return stream.read().decode()


class Commands:
    """A server of commands; runs one at a time."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        self._socket = ours
        self._process = subprocess.Popen(
            [sys.executable, "-W", "error::FutureWarning", __file__, str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
        )
        theirs.close()
        _answer(ours, "ready", START_SECONDS)

    def start(self, *arguments: str, cwd: Path) -> Command:
        """Start `castctl ARGUMENTS` in a folder."""
        return Command(self._socket, ("castctl", *arguments), cwd)

    def start_file(self, file: Path, *arguments: str, cwd: Path) -> Command:
        """Start `python FILE ARGUMENTS` in a folder."""
        return Command(self._socket, (str(file), *arguments), cwd)

    def close(self) -> None:
        self._socket.close()
        self._process.wait(30)


def _serve(connection: socket.socket) -> None:
    connection.sendall(b"ready 0\n")
    while True:
        message, files, _, _ = socket.recv_fds(connection, 1 << 20, 2)
        if not message:
            return
        while not message.endswith(b"\n"):
            message += connection.recv(1 << 20)
        # Ctrl-C waits until the child is where castctl's own process would begin.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        pid = os.fork()
        if pid == 0:
            connection.close()
            _run(json.loads(message), files)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        for file in files:
            os.close(file)
        connection.sendall(b"pid %d\n" % pid)
        connection.sendall(b"end %d\n" % os.waitpid(pid, 0)[1])


def _run(request: dict[str, Any], files: list[int]) -> None:
    from castctl.cli import main

    code: Any = 1
    try:
        os.setsid()
        os.chdir(request["cwd"])
        os.environ.clear()
        os.environ.update(request["env"])
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(files[0], 1)
        os.dup2(files[1], 2)
        sys.argv = request["argv"]
        # A shell's background jobs ignore Ctrl-C, and their children would too.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        if sys.argv[0] == "castctl":
            main()
        else:
            sys.path[0] = str(Path(sys.argv[0]).parent)  # as the interpreter does
            runpy.run_path(sys.argv[0], run_name="__main__")
        code = 0
    except SystemExit as end:
        code = end.code
    except KeyboardInterrupt:  # before castctl's first line, or after its last
        code = 1
    except BaseException:
        traceback.print_exc()
    finally:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else 0 if code is None else 1)


def _preload() -> None:
    """What commands import late; nothing here computes, so forking is safe."""
    import matplotlib.backends.backend_agg
    import matplotlib.backends.backend_svg
    import matplotlib.figure  # noqa: F401
    import pyarrow.acero  # noqa: F401
    import scipy.stats  # noqa: F401
    import transformers.models.auto.modeling_auto
    import transformers.models.qwen3.modeling_qwen3  # noqa: F401

    import castctl
    from deprecations import refuse_deprecated

    for module in pkgutil.walk_packages(castctl.__path__, "castctl."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    refuse_deprecated()


if __name__ == "__main__":
    _preload()
    _serve(socket.socket(fileno=int(sys.argv[1])))
    os._exit(0)  # to unload all modules takes seconds
