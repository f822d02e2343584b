"""Numbers of a diagnosis as words and as cells of a table."""

from __future__ import annotations

from typing import Any

from castctl.report.marks import line, number, percent, step_name

Told = dict[str, Any]
"""An estimate as a diagnosis holds it: `mean`, `low` and `high`, each a number or None."""

FEW_PROMPTS = 30
"""Below so many prompts an interval over them is too narrow to lean on."""

AROUND = 40
"""Characters of context shown before a token."""


def share(told: Told | None) -> str:
    """A share in per cent with its interval, in running text."""
    if told is None or told["mean"] is None:
        return "an unknown share"
    return f"{percent(told['mean'])}{_bounds(told, percent)}"


def value(told: Told | None, unit: str = "") -> str:
    """A value with its interval, in running text."""
    if told is None or told["mean"] is None:
        return "an unknown value"
    return f"{number(told['mean'])}{unit}{_bounds(told, number)}"


def _bounds(told: Told, text: Any) -> str:
    if told["low"] is None or told["high"] is None:
        return ""
    return f" (95 % interval {text(told['low'])} to {text(told['high'])})"


def cell(told: Told | None, digits: int = 3) -> str:
    """A value and, in brackets, its interval; nothing where there is none."""
    return _cell(told, lambda n: number(n, digits))


def share_cell(told: Told | None, unit: str = "") -> str:
    """A share in per cent and, in brackets, its interval; nothing where there is none."""
    return _cell(told, lambda share: percent(share, ""), unit)


def _cell(told: Told | None, text: Any, unit: str = "") -> str:
    if told is None or told["mean"] is None:
        return ""
    if told["low"] is None or told["high"] is None:
        return f"{text(told['mean'])}{unit}"
    return f"{text(told['mean'])}{unit} [{text(told['low'])}, {text(told['high'])}]"


def side_of(told: Told | None, null: float = 0.0) -> int:
    """1 where the whole interval lies above `null`, -1 where below, 0 where neither is shown."""
    if told is None or told["low"] is None or told["high"] is None:
        return 0
    return int(told["low"] > null) - int(told["high"] < null)


def slope(told: Told | None, what: str, unit: str = " points", scale: float = 100.0) -> list[str]:
    """How something changes from step to step; nothing where there are too few steps."""
    if told is None or told["low"] is None:
        return []
    side, size = side_of(told), number(scale * abs(told["mean"]), 2)
    bounds = (
        f"95 % interval {number(scale * told['low'], 2)} to {number(scale * told['high'], 2)}, a "
        "straight line through the steps"
    )
    if not side:
        return [f"No change of {what} from step to step is shown ({bounds} includes 0)."]
    verb = "rises" if side > 0 else "falls"
    return [f"{what[0].upper()}{what[1:]} {verb} by {size}{unit} a step ({bounds})."]


def answer(first: str, second: str, prompts: int) -> tuple[str, str]:
    """The two lines that say what was found, with a word on prompts too few to lean on."""
    if 0 < prompts < FEW_PROMPTS:
        second += f" {prompts} prompts are few to lean on."
    return first, second


def few(prompts: int) -> list[str]:
    """A warning where there are too few prompts for the intervals."""
    if prompts >= FEW_PROMPTS:
        return []
    return [
        f"With {prompts} prompts the intervals, which are over prompts, are too narrow to lean on; "
        "read more steps or larger ones."
    ]


def spelled(token: dict[str, Any], limit: int = 40) -> str:
    """A token of the vocabulary for a table: its text in quotes, else its id."""
    if token.get("text") is None:
        return f"id {token['id']}"
    return line(repr(token["text"]), limit)


def around(context: dict[str, Any]) -> str:
    """A token in «» and what stands about it, on one line."""
    token = f"id {context['id']}" if context["token"] is None else context["token"]
    before = context["before"]
    cut = "…" if len(before) > AROUND else ""
    return line(f"{cut}{before[-AROUND:]}«{token}»{context['after'][:AROUND]}")


def place(context: dict[str, Any]) -> str:
    """Where a token stands: its step's folder, prompt, sample and its number in the completion."""
    return (
        f"{step_name(context['step'])}, {line(context['prompt_id'][:8])}/{context['sample']}, "
        f"token {context['position']}"
    )
