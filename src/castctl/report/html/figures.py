"""Plots as inline SVG that follows the page: its colours, its fonts, no styles of its own."""

from __future__ import annotations

import io
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING
from xml.etree import ElementTree

from castctl.report.axes import drawn
from castctl.report.console import printable
from castctl.report.document import Picture
from castctl.report.lettering import plain_text
from castctl.report.marks import block

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SVG = "http://www.w3.org/2000/svg"
HREF = "{http://www.w3.org/1999/xlink}href"
REFERENCE = re.compile(r"url\(#([^)]+)\)")
FONT = re.compile(r"([\d.]+)px")

LONGEST_DESCRIPTION = 4000

CHROME = {"#000000": "ink", "#ffffff": "paper"}
"""Matplotlib's black and white are the page's ink and paper, which change places in the dark."""

KEPT = {
    "fill", "fill-opacity", "fill-rule", "stroke", "stroke-width", "stroke-opacity", "opacity",
    "stroke-dasharray", "stroke-dashoffset", "stroke-linecap", "stroke-linejoin", "text-anchor",
    "clip-path", "font-weight", "font-style",
}  # fmt: skip


@dataclass(frozen=True)
class Plot:
    """An `<svg>` element, and the width that it was drawn for, in points."""

    svg: str
    width: float


def plot_of(picture: Picture) -> Plot:
    """The picture as an `<svg>` element with its description; ids begin with its name.

    Styles become attributes, so that a page may forbid styles in its elements.
    """
    with plain_text(svg_fonttype="none", svg_hashsalt=picture.name):
        root = ElementTree.fromstring(_svg(drawn(picture)))
    for parent in root.iter():
        for child in list(parent):
            if child.tag in (f"{{{SVG}}}metadata", f"{{{SVG}}}style"):
                parent.remove(child)
    prefix = re.sub(r"[^A-Za-z0-9_-]", "-", picture.name)
    for element in root.iter():
        _restyle(element)
        _rename(element, prefix)
    _drop_unused_ids(root)
    root.set("role", "img")
    root.set("aria-label", block(picture.description, LONGEST_DESCRIPTION))
    root.set("class", "plot")
    root.set("stroke-linejoin", "round")
    ElementTree.register_namespace("", SVG)
    ElementTree.register_namespace("xlink", "http://www.w3.org/1999/xlink")
    width = float(root.get("width", "0pt").removesuffix("pt"))
    return Plot(ElementTree.tostring(root, encoding="unicode"), width)


def _svg(figure: Figure) -> str:
    """The figure's SVG; control characters in its texts, which XML cannot hold, as escapes."""
    stream = io.StringIO()
    figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None})
    lines = stream.getvalue().split("\n")
    return "\n".join(line if line.isprintable() else printable(line) for line in lines)


def _restyle(element: ElementTree.Element) -> None:
    """Declarations of `style` as attributes; black and white as classes."""
    declarations = [each.partition(":") for each in element.attrib.pop("style", "").split(";")]
    for name, _, value in declarations:
        name, value = name.strip(), value.strip()
        if name == "font":  # style, weight, size and family in one
            if size := FONT.search(value):
                element.set("font-size", size[1])
            if "bold" in value or "700" in value:
                element.set("font-weight", "bold")
        elif name == "font-size":
            element.set(name, value.removesuffix("px"))
        elif name in KEPT:
            element.set(name, value)
    classes = []
    for name in ("fill", "stroke"):
        if (role := CHROME.get(element.get(name, ""))) is not None:
            del element.attrib[name]
            classes.append(f"{name}-{role}")
    if classes:
        element.set("class", " ".join(classes))


def _rename(element: ElementTree.Element, prefix: str) -> None:
    """Ids, and what refers to them, with a prefix: a page has many figures."""
    for name, value in element.attrib.items():
        if name == "id":
            element.set(name, f"{prefix}-{value}")
        elif name in (HREF, "href") and value.startswith("#"):
            element.set(name, f"#{prefix}-{value[1:]}")
        elif "url(#" in value:
            element.set(name, REFERENCE.sub(rf"url(#{prefix}-\1)", value))


def _drop_unused_ids(root: ElementTree.Element) -> None:
    used = set()
    for element in root.iter():
        for name, value in element.attrib.items():
            if name in (HREF, "href"):
                used.add(value[1:])
            used.update(REFERENCE.findall(value))
    for element in root.iter():
        if element.get("id") not in used:
            element.attrib.pop("id", None)
