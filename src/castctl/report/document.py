"""What a report is made of, whether it is read on a terminal or in a browser."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Sheet:
    """A table of finished texts. Cells are plain text and untrusted: whoever shows them escapes
    them. Columns after the first hold numbers unless `right` is off. A row whose first cell begins
    with two spaces tells details of one above it. `first` names the columns that a person reads
    first; a table without any is for whoever wants all."""

    title: str
    headings: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""
    right: bool = True
    first: Sequence[str] = ()

    def short(self) -> Sheet:
        """Its first columns, without rows of details and without its note."""
        places = [self.headings.index(heading) for heading in self.first]
        rows = [[row[n] for n in places] for row in self.rows if not row[0].startswith("  ")]
        return replace(self, headings=self.first, rows=rows, note="")


@dataclass(frozen=True)
class Picture:
    """A plot: `name` is that of its file, `description` says in words what it shows."""

    name: str
    title: str
    description: str
    draw: Callable[[], Figure]


@dataclass(frozen=True)
class Section:
    """A part of a report: what was found, if it is an answer to a question; what must be known of
    its making; and then paragraphs of plain text, tables and plots, in order."""

    id: str
    title: str
    blocks: list[str | Sheet | Picture] = field(default_factory=list)
    answer: Sequence[str] = ()
    notes: Sequence[str] = ()
