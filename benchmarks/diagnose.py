"""Seconds and memory of each diagnostic on many long completions, plots and page apart."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import measure
import report

from castctl.diagnosis.catalog import DIAGNOSTICS
from castctl.diagnosis.diagnosis import Diagnosis
from castctl.diagnosis.runner import diagnose, output_folder
from castctl.diagnosis.subject import Subject
from castctl.progress import Silent
from castctl.report.diagnostics import section_of, write_pictures
from castctl.shards.stage import StepFolder

NAMES = ("opsd-gaps", "self-gaps", "groups", "flips", "engine")
"""Those that synthetic shards have the signals for."""


def main() -> None:
    parser = measure.options(__doc__, repeats=1)
    parser.add_argument("--completions", type=int, default=10_000)
    parser.add_argument("-n", type=int, default=8, help="completions of a group")
    parser.add_argument("--tokens", type=int, default=1000, help="of a completion, on average")
    parser.add_argument("--part", type=int, default=16, help="groups of a part")
    options = measure.parse(parser)
    if options.quick:
        options.completions, options.tokens = 64, 100
    names = NAMES[:1] if options.quick else NAMES
    with tempfile.TemporaryDirectory() as folder:
        step = report.shaped_step(Path(folder) / "run" / "step-00000", options)
        figures = {
            name: {
                "extra_gb": measure.peak_extra_gb(diagnosed, step, name),
                "seconds": measure.median(
                    measure.interleaved({name: measure.timed(diagnosed(step, name))},
                                        options.repeats)[name]
                ),
                "plots_seconds": measure.timed(drawn(step, name))(),
            }
            for name in names
        }  # fmt: skip
        measure.report(
            "diagnose", options.repeats, completions=options.completions, n=options.n,
            tokens=report.total_tokens(step), diagnostics=figures,
        )  # fmt: skip


def diagnosed(step: StepFolder, name: str) -> Callable[[], Diagnosis]:
    """What reads the shards and writes the numbers."""
    subject = Subject(step.path, [step], None)

    def run() -> Diagnosis:
        return diagnose(DIAGNOSTICS[name], subject, asked=[], progress=Silent())[0]

    return run


def drawn(step: StepFolder, name: str) -> Callable[[], object]:
    """What draws the plots."""
    diagnosis = diagnosed(step, name)()
    out = output_folder(Subject(step.path, [step], None), DIAGNOSTICS[name])
    return lambda: write_pictures(section_of(diagnosis), out)


if __name__ == "__main__":
    main()
