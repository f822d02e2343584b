"""How often the advantage has the sign of the gap: a table and words."""

from __future__ import annotations

from typing import Any

from castctl.report.diagnostics.words import share, share_cell
from castctl.report.document import Sheet

Agreement = dict[str, dict[str, Any]]

FOLLOWS = (
    "Every advantage has the sign of its gap, in correct and in wrong completions: the verdict no "
    "longer decides a direction."
)


def gap_decides(found: Agreement) -> bool:
    """Whether sign(A) = sign(g) at every token, of correct and of wrong completions alike."""
    shares = [side["share"] for side in found.values()]
    return all(told is not None and told["mean"] == 1 for told in shares)


def agreement_sheet(found: Agreement) -> Sheet:
    """Tokens with a gap and an advantage, and the share with one sign, by verdict."""
    rows = [
        [side, f"{told['tokens']:,}", share_cell(told["share"])] for side, told in found.items()
    ]
    note = (
        "Of the tokens whose gap and advantage are both other than 0. Where all agree, right or "
        "wrong, the verdict decides no direction. Brackets: 95 % intervals over prompts."
    )
    headings = ("completions", "tokens", "sign(A) = sign(g), %")
    return Sheet("Sign of the advantage and of the gap", headings, rows, note)


def agreement_words(found: Agreement) -> list[str]:
    """What the table shows; nothing where no token has both signs."""
    if not any(told["tokens"] for told in found.values()):
        return []
    if gap_decides(found):
        return [
            f"{FOLLOWS} It decides how large a step is, and the update follows the teacher's sign, "
            "whoever was right."
        ]
    sides = " and ".join(
        f"at {share(told['share'])} of the tokens of {side} completions"
        for side, told in found.items()
        if told["tokens"]
    )
    return [f"The advantage has the sign of the gap {sides}."]
