"""What diagnoses found, as sections of a report: made from their numbers alone."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from castctl.diagnosis.diagnosis import Diagnosis, read_diagnosis
from castctl.errors import UserError, one_line
from castctl.report.axes import drawn
from castctl.report.diagnostics import confidence, credit, engine, flips, gaps, groups
from castctl.report.document import Picture, Section
from castctl.report.lettering import plain_text
from castctl.shards.part import atomic_file

log = logging.getLogger(__name__)

SECTIONS: dict[str, Callable[[Diagnosis], Section]] = {
    "opsd-gaps": gaps.section,
    "self-gaps": gaps.section,
    "groups": groups.section,
    "flips": flips.section,
    "credit": credit.section,
    "confidence": confidence.section,
    "engine": engine.section,
}


def section_of(diagnosis: Diagnosis) -> Section:
    """What a diagnosis found, and what must be known of its making."""
    return replace(SECTIONS[diagnosis.name](diagnosis), notes=diagnosis.notes)


def diagnosis_sections(folder: Path) -> list[Section]:
    """A section for every diagnosis below a run's `diagnose/`; one that cannot be read is left out
    with a warning."""
    sections = []
    for name in SECTIONS:
        file = folder / "diagnose" / name / f"{name}.json"
        if not file.is_file():
            continue
        try:
            sections.append(section_of(read_diagnosis(file)))
        except Exception as error:  # a file of another version, or made elsewhere
            said = one_line(error, named=not isinstance(error, UserError))
            log.warning("%s is left out of the report (%s); diagnose again", file, said)
    return sections


def write_pictures(section: Section, folder: Path) -> list[Path]:
    """Draw the section's plots as PNG files in a folder, in place of those that are there; their
    paths."""
    for old in folder.glob("*.png"):
        old.unlink()
    paths = []
    for picture in (block for block in section.blocks if isinstance(block, Picture)):
        path = folder / f"{picture.name}.png"
        with plain_text():
            figure = drawn(picture)
            with atomic_file(path) as stream:
                figure.savefig(stream, format="png")
        paths.append(path)
    return paths
