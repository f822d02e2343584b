"""What stands around an answer and changes nothing: spaces, delimiters, fonts."""

from __future__ import annotations

import re

FONT = r"\\(?:text|textbf|textrm|textit|mathrm|mathbf|mathit|mbox|bf|rm)"
SPACE = r"(?:\s|~|\\[ ,;:!])"
SPACES = SPACE + "{0,5}"
_LEADING = re.compile(SPACE + "*")
_GNILIART = re.compile(r"(?:[ ,;:!]\\(?!\\)|\s|~)*")  # trailing ones, of the text turned round

_DELIMITERS = (
    (r"\(", r"\)"), (r"\[", r"\]"), ("$$", "$$"), ("$", "$"),
    ("**", "**"), ("__", "__"), ("*", "*"),
)  # fmt: skip
_WRAPPER = re.compile(
    r"(?:\\(?:mathbf|textbf|boldsymbol|bm|pmb|mathit|textit|underline|emph)\s*\{|\{\s*\\(?:bf|it|rm)\s)"
    r"|(?P<text>\\(?:text|textrm|mathrm|mbox)\s*\{)"
)
# Mathematics in \text{}: 3 and 4, x = 5, $\frac{1}{2}$.
_FORMULA = re.compile(
    r"\s*(?:\$[^$]*\$|(?=.*[0-9])(?:[^A-Za-z\u4e00-\u9fff{}\\:]|(?<![A-Za-z])(?:[A-Za-z]|and|or)(?![A-Za-z]))*)"
    r"\s*",
    re.S,
)

_FONTS = re.compile(rf"{FONT}\s*\{{([^{{}}]*)\}}")
_LOOSE_SPACE = re.compile(rf"(?<![A-Za-z0-9,]){SPACE}+|{SPACE}++(?![A-Za-z0-9])")
_BRACES = re.compile(r"\\.|[{}]", re.S)


def unwrapped(text: str) -> str:
    """Without delimiters and fonts around all of it."""
    for _ in range(5):
        text = undelimited(stripped(text))
        match = _WRAPPER.match(text)
        if match is None or not text.endswith("}") or not _closes_last(text[match.end() : -1]):
            break
        inner = text[match.end() : -1]
        if match["text"] and not _FORMULA.fullmatch(inner):
            break
        text = inner
    return text


def _closes_last(inner: str) -> bool:
    """Whether the braces of a group's content balance, so that the group ends behind it."""
    depth = 0
    for brace in _BRACES.findall(inner):
        depth += {"{": 1, "}": -1}.get(brace, 0)
        if depth < 0:
            return False
    return depth == 0


def undelimited(text: str) -> str:
    r"""Without the `\(...\)`, `$...$` or `**...**` around all of it."""
    for opening, closing in _DELIMITERS:
        inner = text[len(opening) : -len(closing)]
        if (
            len(text) > len(opening) + len(closing)
            and text.startswith(opening)
            and text.endswith(closing)
            and opening not in inner
            and not inner.endswith("\\")
        ):
            return stripped(inner)
    return text


def bare(text: str) -> str:
    """A spelling without fonts and spaces, where spaces part no numbers or words."""
    return _LOOSE_SPACE.sub("", _FONTS.sub(r"\1", text))


def stripped(text: str) -> str:
    """Without the spaces around it, LaTeX's among them."""
    text = _LEADING.sub("", text, count=1)
    return _GNILIART.sub("", text[::-1], count=1)[::-1]
