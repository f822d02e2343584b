"""One HTML file that opens from the disk and asks the network for nothing."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

from castctl.report.colors import FULL, NEGATIVE, POSITIVE
from castctl.report.document import Section
from castctl.report.html.markup import facts_html, navigation_html, section_html, text_of
from castctl.report.html.payload import Completions
from castctl.shards.part import atomic_file
from castctl.versions import VERSION

BROWSER = "completions"
"""The id of the section in which completions are read."""


def write_page(
    path: Path,
    title: str,
    facts: Mapping[str, str],
    sections: Sequence[Section],
    completions: Completions | None = None,
) -> None:
    """Write a page of `sections`, and behind them a browser of `completions`, atomically.

    Its own script and style are the only ones that its policy lets run; nothing may be fetched.
    Raises `UserError` where the file cannot be written.
    """
    with atomic_file(path) as stream:
        for piece in _pieces(title, facts, sections, completions):
            stream.write(piece.encode())


def _pieces(
    title: str,
    facts: Mapping[str, str],
    sections: Sequence[Section],
    completions: Completions | None,
) -> Iterator[str]:
    """The file from its head to its end; blocks come last, and are encoded one at a time."""
    browsed = completions is not None and completions.shown > 0
    style = Template(_resource("page.css")).substitute(
        positive=POSITIVE, negative=NEGATIVE, full=f"{FULL:.0%}"
    )
    scripts = [_resource("page.js"), *([_resource("browser.js")] if browsed else [])]
    links = [*sections, *([Section(BROWSER, "Completions")] if browsed else [])]
    body = "\n".join(map(section_html, sections))
    data = ""
    if completions is not None and browsed:
        body += Template(_resource("browser.html")).substitute(id=BROWSER, said=_said(completions))
        data = _json_script("index", completions.index)
    yield Template(_resource("page.html")).substitute(
        policy=_policy(style, scripts),
        title=text_of(title),
        made=text_of(f"castctl {VERSION}"),
        facts=facts_html(facts),
        navigation=navigation_html(links),
        body=body,
        style=style,
        data=data,
        scripts="\n".join(f"<script>{script}</script>" for script in scripts),
    )
    for number, packed in enumerate(completions.blocks if completions is not None else []):
        encoded = base64.b64encode(packed).decode()
        yield f'<script type="application/octet-stream" id="block-{number}">{encoded}</script>\n'
    yield "</body>\n</html>\n"


def _policy(style: str, scripts: Sequence[str]) -> str:
    """What the page may do: run its own scripts, wear its own style, and nothing else."""
    allowed = " ".join(map(_digest, scripts))
    return (
        f"default-src 'none'; style-src {_digest(style)}; script-src {allowed}; "
        "base-uri 'none'; form-action 'none'"
    )


def _digest(content: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"


def _json_script(id: str, value: Any) -> str:
    """A value as JSON that no text in it can end: it is ASCII and has no `<`."""
    said = json.dumps(value, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    return f'<script type="application/json" id="{id}">{said}</script>'


def _said(completions: Completions) -> str:
    """What is shown of how much, and what was left out."""
    shown, total = completions.shown, completions.total
    whole = (
        f"All {total:,} completions" if shown == total else f"{shown:,} of {total:,} completions"
    )
    steps = len(set(completions.index["step"]))
    words = [f"{whole}: {_tokens(completions)} tokens of {steps:,} step{'s' * (steps != 1)}."]
    if shown < total:
        words.append("Whole groups were taken, spread evenly; --completions takes more.")
    if not completions.index["exact"]:
        words.append("Values are shown to three digits.")
    if completions.index["texts"] is None:
        words.append("No tokenizer was found: token ids stand in place of texts.")
    notes = "".join(f'\n<p class="note">{text_of(note)}</p>' for note in completions.notes)
    return f"<p>{text_of(' '.join(words))}</p>{notes}"


def _tokens(completions: Completions) -> str:
    return f"{sum(completions.index['length']):,}"


def _resource(name: str) -> str:
    return files(__package__).joinpath(name).read_text(encoding="utf-8")
