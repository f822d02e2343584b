"""Sections as HTML. Every text is untrusted and escaped here, and nowhere else."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from itertools import groupby

from castctl.report.document import Picture, Section, Sheet
from castctl.report.html.figures import plot_of
from castctl.report.marks import block

LONGEST_CELL = 4000
"""Characters of a cell or a paragraph that are shown."""

FOLDED_ROWS = 24
"""Rows from which on a table is folded."""

BROAD = 500
"""Points of width from which on a plot has a row of its own."""


def text_of(text: object, limit: int = LONGEST_CELL) -> str:
    """Text of whatever origin, fit for an element's content and for an attribute in quotes."""
    return html.escape(block(str(text), limit))


def section_html(section: Section) -> str:
    """A section with its heading; neighbouring pictures stand in one grid."""
    id, pieces = text_of(section.id), [_paragraphs(section.answer, "found")]
    pieces.append(_paragraphs(section.notes, "note"))
    for drawn, blocks in groupby(section.blocks, lambda block: isinstance(block, Picture)):
        inner = "\n".join(map(_block, blocks))
        pieces.append(f'<div class="plots">\n{inner}\n</div>' if drawn else inner)
    body = "\n".join(filter(None, pieces))
    return (
        f'<section id="{id}" aria-labelledby="{id}-title">\n'
        f'<h2 id="{id}-title">{text_of(section.title)}</h2>\n{body}\n</section>\n'
    )


def _paragraphs(texts: Sequence[str], look: str) -> str:
    return "\n".join(f'<p class="{look}">{text_of(words)}</p>' for words in texts)


def _block(block: str | Sheet | Picture) -> str:
    if isinstance(block, Sheet):
        return sheet_html(block)
    if isinstance(block, Picture):
        caption = f"<figcaption>{text_of(block.title)}</figcaption>"
        plot = plot_of(block)
        look = ' class="broad"' if plot.width > BROAD else ""
        return f"<figure{look}>{caption}\n{plot.svg}</figure>"
    return f"<p>{text_of(block)}</p>"


def sheet_html(sheet: Sheet) -> str:
    """A table with its caption; a long one is folded."""
    kind = ' class="numbers"' if sheet.right else ""
    heads = "".join(f'<th scope="col">{text_of(heading)}</th>' for heading in sheet.headings)
    rows = "\n".join(map(_row, sheet.rows))
    title = text_of(sheet.title)
    table = (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{title}">'
        f"<table{kind}>\n<caption>{title}</caption>\n"
        f"<thead><tr>{heads}</tr></thead>\n<tbody>\n{rows}\n</tbody></table></div>"
    )
    if sheet.note:
        table += f'\n<p class="note">{text_of(sheet.note)}</p>'
    if len(sheet.rows) < FOLDED_ROWS:
        return table
    count = f"{len(sheet.rows):,} rows"
    return f"<details><summary>{title} <small>{count}</small></summary>\n{table}\n</details>"


def _row(cells: Sequence[str]) -> str:
    first, *others = (text_of(cell) for cell in cells)
    rest = "".join(f"<td>{cell}</td>" for cell in others)
    return f'<tr><th scope="row">{first}</th>{rest}</tr>'


def facts_html(facts: Mapping[str, str]) -> str:
    """Names, and beside each what is so."""
    pairs = "\n".join(
        f"<div><dt>{text_of(name)}</dt><dd>{text_of(text)}</dd></div>"
        for name, text in facts.items()
    )
    return f'<dl class="facts">\n{pairs}\n</dl>'


def navigation_html(sections: Sequence[Section]) -> str:
    """A link to each section."""
    links = "\n".join(f'<li><a href="#{text_of(s.id)}">{text_of(s.title)}</a></li>'
                      for s in sections)  # fmt: skip
    return f"<ul>\n{links}\n</ul>"
