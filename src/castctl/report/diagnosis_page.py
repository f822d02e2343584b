"""The HTML page of one diagnosis: its tables and plots, and the completions it was read from."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from castctl.diagnosis.diagnosis import Diagnosis
from castctl.inspection.tokens import run_tokenizer
from castctl.progress import Progress
from castctl.report.document import Section
from castctl.report.html.page import write_page
from castctl.report.html.payload import collect_completions
from castctl.runs.run import Run
from castctl.shards.stage import StepFolder


def write_diagnosis_page(
    path: Path,
    diagnosis: Diagnosis,
    section: Section,
    run: Run | None,
    steps: Sequence[StepFolder],
    progress: Progress,
) -> None:
    """Write the page. Raises `UserError` where the file cannot be written."""
    completions = collect_completions(steps, run_tokenizer(run), progress=progress)
    facts = {
        "Question": diagnosis.question,
        **{name.capitalize(): str(value) for name, value in diagnosis.subject.items()},
        "Steps": ", ".join(str(step["step"]) for step in diagnosis.steps),
        "Seed": str(diagnosis.seed),
        "castctl": diagnosis.castctl,
    }
    write_page(path, f"{diagnosis.name}: {path.parent.parent.parent.name}", facts, [section],
               completions)  # fmt: skip
