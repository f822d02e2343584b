"""The entry point: what holds for every command, and how errors reach people."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import traceback
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

import castctl
from castctl.cli import (
    compare,
    diagnose,
    evaluate,
    explain,
    export,
    init,
    inspect,
    methods,
    push,
    recipes,
    report,
    rollout,
    runs,
    score,
    shape,
    train,
)
from castctl.cli.ending import Ending
from castctl.cli.spelling import SpelledApp
from castctl.cli.voices import speak
from castctl.errors import UserError, one_line
from castctl.report.console import printable, send_warnings_to_terminal

if TYPE_CHECKING:
    from castctl.ranks import Ranks

SIGNALLED = 128
INTERRUPTED = SIGNALLED + signal.SIGINT
READER_GONE = SIGNALLED + signal.SIGPIPE
"""As a shell counts: 128 and the number of the signal."""

app = SpelledApp(
    name="castctl",
    help="Run, take apart and compare RLVR methods for language models.",
    epilog="Stages: rollout, score, shape, train. Start with: castctl train --method cast",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for command in (
    init, rollout, score, shape, train, evaluate, compare, diagnose, report, explain, inspect, runs,
    export, push, methods, recipes,
):  # fmt: skip
    command.register(app)


@app.command("help", hidden=True)
def _help(
    name: Annotated[str | None, typer.Argument(metavar="[COMMAND]", help="A command.")] = None,
) -> None:
    """Show what castctl, or a command of it, can do: as --help does."""
    app([*([] if name is None else [name]), "--help"], standalone_mode=False)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"castctl {castctl.__version__}")
        raise typer.Exit


@app.callback()
def _castctl(
    version: Annotated[
        bool,
        typer.Option("--version", "-V", callback=_print_version, is_eager=True, help="Version."),
    ] = False,
) -> None:
    pass


def main() -> None:
    """Run the command line.

    Exits with 0, 1 (a bug), 2 (a mistake to mend), 130 (Ctrl-C), 143 (SIGTERM), 129 (SIGHUP) or 141
    (nobody reads the output).
    """
    ending = Ending()
    send_warnings_to_terminal()
    try:
        castctl.before_torch()
        _refuse_broken_text(sys.argv[1:])
        code = app(standalone_mode=False) or 0
        if code == INTERRUPTED:  # typer has caught it
            raise KeyboardInterrupt
        sys.stdout.flush()
        sys.exit(code)
    except UserError as error:
        _end(2, str(error))
    except KeyboardInterrupt:
        _end_interrupted(ending)
    except BrokenPipeError:
        _end_unread()
    except SystemExit as end:
        if isinstance(end.__context__, BrokenPipeError):  # rich or typer has caught it
            _end_unread()
        raise
    except Exception as error:
        message = getattr(error, "format_message", None)  # typer's own errors of usage
        if message is None:
            if _interrupted(error):
                _end_interrupted(ending)
            _end(
                1,
                f"this is a bug in castctl {castctl.__version__}, not a mistake of yours; please "
                "report the lines above and your command in castctl's issue tracker",
                traceback.format_exc(),
            )
        if not message():  # the help has been printed in its place
            sys.exit(2)
        _end(2, f"{one_line(message(), 1000)}; see castctl --help")


def _refuse_broken_text(arguments: list[str]) -> None:
    for argument in arguments:
        try:
            argument.encode()
        except UnicodeEncodeError:
            raise UserError(f"{argument} on the command line is not UTF-8; rename it") from None


def _interrupted(error: BaseException | None) -> bool:
    """Whether a signal is behind an error: a library that it finds importing may wrap it."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    return error is not None


def _end_interrupted(ending: Ending) -> NoReturn:
    ranks = _ranks()
    if ranks and ranks.lost and not ranks.explained:  # whose launcher then ends the others
        _end(2, ranks.describe_lost())
    _end(
        SIGNALLED + ending.number,
        f"{ending}. Whole parts are kept; the same command goes on from them",
    )


def _end_unread() -> NoReturn:
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what is still to flush
    sys.exit(READER_GONE)


def _end(code: int, line: str, trace: str = "") -> NoReturn:
    if logging.getLogger("castctl").isEnabledFor(logging.DEBUG):
        trace = traceback.format_exc()
    ranks = _ranks()
    heard = ranks is None or ranks.told_first(line)
    for each in (*trace.splitlines(), f"castctl: {line}"):
        speak(printable(each), heard)
    if ranks:
        with contextlib.suppress(KeyboardInterrupt):
            ranks.linger()
    sys.exit(code)


def _ranks() -> Ranks | None:
    """The ranks that train with this process; None where the command has none."""
    with contextlib.suppress(KeyError, UserError):  # variables that name no rank
        ranks: Ranks = sys.modules["castctl.ranks"].here()
        return ranks
    return None
