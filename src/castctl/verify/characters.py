"""Characters that LaTeX has a command for, or another character."""

# ruff: noqa: RUF001

from __future__ import annotations

import re

_FULL_WIDTH = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)} | {0xFFE1: "£", 0xFFE5: "¥"}
_FRACTIONS = {
    "½": "12", "⅓": "13", "⅔": "23", "¼": "14", "¾": "34", "⅕": "15",
    "⅖": "25", "⅗": "35", "⅘": "45", "⅙": "16", "⅚": "56", "⅛": "18", "⅜": "38", "⅝": "58",
    "⅞": "78",
}  # fmt: skip
_SYMBOLS = (
    str.maketrans(
        {"°": r"^\circ ", "∞": r"\infty ", "∅": r"\emptyset ", "。": ".", "、": ",", "\u3000": " "}
        | {
            "–": "-",
            "—": "-",
            "·": r"\cdot ",
            "∶": ":",
            "℃": r"^\circ ",
            "⩽": r"\le ",
            "≦": r"\le ",
        }
        | {"⩾": r"\ge ", "≧": r"\ge ", "∈": r"\in ", "∪": r"\cup ", "∩": r"\cap "}
        | {char: rf"\frac{{{pair[0]}}}{{{pair[1]}}}" for char, pair in _FRACTIONS.items()}
    )
    | _FULL_WIDTH
)
_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻", "0123456789-")
_SUPERSCRIPT = re.compile("[⁰¹²³⁴⁵⁶⁷⁸⁹⁻]{1,30}")
_SUBSCRIPTS = str.maketrans("₀₁₂₃₄₅₆₇₈₉", "0123456789")
_SUBSCRIPT = re.compile("[₀₁₂₃₄₅₆₇₈₉]{1,30}")


def in_latex(text: str) -> str:
    """The text with ½, x², ∞ and full-width digits as LaTeX writes them."""
    text = text.translate(_SYMBOLS)
    text = _SUPERSCRIPT.sub(lambda match: f"^{{{match[0].translate(_SUPERSCRIPTS)}}}", text)
    return _SUBSCRIPT.sub(lambda match: f"_{{{match[0].translate(_SUBSCRIPTS)}}}", text)
