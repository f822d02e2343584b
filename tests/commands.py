"""The real command line without the wait for imports.

A server process imports what castctl's stages import and forks for every command. The child
gets its own arguments, folder, environment and output files and runs `castctl.cli.main`, or a
Python file, so exit codes, signals and the terminal's bytes are those of a process of its own.
Several may run at a time.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import pkgutil
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

START_SECONDS = 300.0
"""Longest time that a busy machine may take to import torch, or to fork."""


def _answer(channel: socket.socket, word: str, timeout: float) -> int:
    """The number that follows `word` in the server's next line of a channel."""
    channel.settimeout(timeout)
    line = b""
    while not line.endswith(b"\n"):
        byte = channel.recv(1)
        assert byte, "the server of commands died"
        line += byte
    said, number = line.decode().split()
    assert said == word, line
    return int(number)


class Command:
    """A command that runs."""

    def __init__(
        self,
        server: socket.socket,
        arguments: Sequence[str],
        cwd: Path,
        environment: Mapping[str, str],
        terminal: int | None = None,
    ) -> None:
        """Its output goes to files, or to the handle of a terminal."""
        self.arguments = arguments
        self._status: int | None = None
        self._out, self._err = (tempfile.TemporaryFile("w+b") for _ in range(2))  # noqa: SIM115
        outputs = [self._out.fileno(), self._err.fileno()] if terminal is None else [terminal] * 2
        self._channel, theirs = socket.socketpair()
        request = {"argv": arguments, "cwd": str(cwd), "env": {**os.environ, **environment}}
        with theirs:
            handles = [*outputs, theirs.fileno()]
            socket.send_fds(server, [json.dumps(request).encode() + b"\n"], handles)
        self.pid = _answer(self._channel, "pid", START_SECONDS)

    def running(self) -> bool:
        """Whether it has not ended yet."""
        try:
            self.end(0.001)
        except TimeoutError:
            return True
        return False

    def end(self, timeout: float = START_SECONDS) -> int:
        """The exit code, negative for a signal; raises `TimeoutError` where it runs on."""
        if self._status is None:
            self._status = _answer(self._channel, "end", timeout)
            self._channel.close()
        return os.waitstatus_to_exitcode(self._status)

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def wait(self, timeout: float = 240) -> subprocess.CompletedProcess[str]:
        """The ended command; it is killed and the test fails after `timeout` seconds."""
        try:
            code = self.end(timeout)
        except TimeoutError:
            self.send_signal(signal.SIGKILL)
            self.end()
            raise AssertionError(f"{self.arguments} took longer than {timeout} s") from None
        return subprocess.CompletedProcess(self.arguments, code, _text(self._out), _text(self._err))


def _text(stream: IO[bytes]) -> str:
    stream.seek(0)
    return stream.read().decode()


class Commands:
    """A server of commands."""

    def __init__(self) -> None:
        self.socket, theirs = socket.socketpair()
        self._process = subprocess.Popen(
            [sys.executable, "-W", "error::FutureWarning", __file__, str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
        )
        theirs.close()
        _answer(self.socket, "ready", START_SECONDS)

    def start(self, *arguments: str, cwd: Path, **environment: str) -> Command:
        """Start `castctl ARGUMENTS` in a folder, with variables beside those of this process."""
        return Command(self.socket, ("castctl", *arguments), cwd, environment)

    def start_file(self, file: Path, *arguments: str, cwd: Path, **environment: str) -> Command:
        """Start `python FILE ARGUMENTS` in a folder."""
        return Command(self.socket, (str(file), *arguments), cwd, environment)

    def close(self) -> None:
        self.socket.close()
        self._process.wait(30)


def _serve(connection: socket.socket) -> None:
    channels: dict[int, socket.socket] = {}  # by the process of each command that runs
    woken, wake = socket.socketpair()
    wake.setblocking(False)
    signal.set_wakeup_fd(wake.fileno())
    signal.signal(signal.SIGCHLD, lambda *_: None)
    connection.sendall(b"ready 0\n")
    while True:
        ready, _, _ = select.select([connection, woken], [], [])
        if woken in ready:
            woken.recv(4096)
            for pid in list(channels):
                ended, status = os.waitpid(pid, os.WNOHANG)
                if ended:
                    with channels.pop(pid) as channel, contextlib.suppress(BrokenPipeError):
                        channel.sendall(b"end %d\n" % status)
        if connection not in ready:
            continue
        message, files, _, _ = socket.recv_fds(connection, 1 << 20, 3)
        if not message:
            return
        while not message.endswith(b"\n"):
            message += connection.recv(1 << 20)
        channel = socket.socket(fileno=files.pop())
        # Ctrl-C waits until the child is where castctl's own process would begin.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        pid = os.fork()
        if pid == 0:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            for inherited in (connection, woken, wake, channel, *channels.values()):
                inherited.close()
            _run(json.loads(message), files)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        for file in files:
            os.close(file)
        channels[pid] = channel
        channel.sendall(b"pid %d\n" % pid)


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
    import transformers.models.auto.modeling_auto
    import transformers.models.qwen3.modeling_qwen3
    import transformers.optimization  # noqa: F401

    import castctl
    from deprecations import refuse_deprecated

    for module in pkgutil.walk_packages(castctl.__path__, "castctl."):
        if not module.name.endswith(("__main__", "verify.tasks")):  # which needs an extra
            importlib.import_module(module.name)
    refuse_deprecated()


if __name__ == "__main__":
    gc.disable()  # what is imported is no garbage, here and in the commands
    _preload()
    gc.freeze()
    gc.enable()
    _serve(socket.socket(fileno=int(sys.argv[1])))
    os._exit(0)  # to unload all modules takes seconds
