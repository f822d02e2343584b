r"""Plain notation of formulas, as a computer algebra system prints it, written as LaTeX.

`2*pi*r`, `exp(-2*x)`, `abs(x)`, `2**10` and `sqrt(3)/2` are so brought into what math-verify reads
as they are meant; it takes `pi` for p times i. Takes time linear in the text.
"""

from __future__ import annotations

import re

_LETTERS = (
    "alpha", "beta", "gamma", "delta", "epsilon", "theta", "lambda", "mu", "pi", "rho", "sigma",
    "tau", "phi", "psi", "omega",
)  # fmt: skip
_FUNCTIONS = (
    "sin", "cos", "tan", "cot", "sec", "csc", "sinh", "cosh", "tanh", "arcsin", "arccos", "arctan",
    "ln", "log",
)  # fmt: skip
_CALLS = {
    **{name: (rf"\{name}(", ")") for name in _FUNCTIONS},
    **{name: (rf"\arc{name[1:]}(", ")") for name in ("asin", "acos", "atan")},
    "floor": (r"\lfloor ", r"\rfloor "),
    "ceil": (r"\lceil ", r"\rceil "),
    **{name: (rf"\{name}(", ")") for name in ("max", "min", "gcd")},
    "log2": (r"\log_{2}(", ")"),
    "log10": (r"\log_{10}(", ")"),
    "sqrt": (r"\sqrt{", "}"),
    "exp": ("e^{", "}"),
    "abs": (r"\left|", r"\right|"),
    r"\sqrt": (r"\sqrt{", "}"),
    r"\exp": ("e^{", "}"),
    "**": ("^{", "}"),
    "^": ("^{", "}"),
}
_WORD = re.compile(
    r"\\(?:operatorname|mathrm|text)\{(?P<upright>[a-z]+)\}(?=\()"
    r"|(?P<word>\\sqrt|\\exp|(?<![\\A-Za-z])[a-z]{2,8}(?:2|10)?|\*\*|\^)(?=\()"
    r"|(?<![\\A-Za-z])(?P<name>[a-z]{2,8})(?![A-Za-z(])|[()]"
)
_NAMES = {
    **{name: rf"\{name} " for name in _LETTERS},
    **dict.fromkeys(("infinity", "inf", "oo"), r"\infty "),
}
NAMES = {
    *_FUNCTIONS,
    *_CALLS,
    *_NAMES,
    "and",
    "or",
    "to",
    "max",
    "min",
    "gcd",
    "lcm",
    "mod",
    "is",
    "not",
}
"""Words that say something in a formula, so that no unit is called so."""
_BARE_CALL = re.compile(
    rf"\\(?:mathrm|operatorname|text)\{{({'|'.join(_FUNCTIONS)})\}}(?!\()"
    rf"|(?<![\\A-Za-z])(sqrt|{'|'.join(_FUNCTIONS)})(?= ?[0-9{{|])(?!(?:2|10)\()"
)
_POWER = re.compile(r"(?:\*\*|\^) ?(-?[0-9]{2,6}|-[0-9A-Za-z])(?![0-9.])")
_PLAIN = re.compile(r"[^\\{}]*")


def latex(text: str) -> str:
    """The text with its plain notation written as LaTeX, and all else as it is.

    A name counts only as a whole word, a function only where a bracket follows it.
    """
    text = _BARE_CALL.sub(r"\\\1\2 ", text)
    if _PLAIN.fullmatch(text):
        text = _POWER.sub(r"^{\1}", text)
    pieces: list[str] = []
    closing: list[str] = []  # of each bracket that is open, what it becomes
    at = 0
    for match in _WORD.finditer(text):
        start, found = match.start(), match[0]
        if start < at:
            continue
        pieces.append(text[at:start])
        at = match.end()
        if found == "(":
            closing.append(")")
        elif found == ")":
            found = closing.pop() if closing else found
        elif match["name"]:
            found = _NAMES.get(found, found)
        elif call := _CALLS.get(match["upright"] or match["word"]):
            found, close = call
            closing.append(close)
            at += 1
        pieces.append(found)
    if any(close != ")" for close in closing):  # a call that never ends
        return text
    return "".join([*pieces, text[at:]]).replace("**", "^")
