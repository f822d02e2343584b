"""Seconds until `castctl --help` has answered, against importing typer and rich alone."""

from __future__ import annotations

import subprocess
import sys

import measure


def main() -> None:
    options = measure.parse(measure.options(__doc__, repeats=15))
    seconds = measure.interleaved(
        {
            "help": measure.timed(lambda: run("-m", "castctl", "--help")),
            "imports": measure.timed(lambda: run("-c", "import typer, rich")),
        },
        options.repeats,
    )
    measure.report(
        "startup",
        options.repeats,
        help_seconds=measure.median(seconds["help"]),
        imports_seconds=measure.median(seconds["imports"]),
        **measure.ratio(seconds["help"], seconds["imports"]),
    )


def run(*arguments: str) -> None:
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)


if __name__ == "__main__":
    main()
