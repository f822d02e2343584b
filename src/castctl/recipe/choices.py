"""Whose choice a setting's value is: the paper's, ours, or the user's."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from castctl.methods import PRESETS
from castctl.settings import Setting

PAPER, OURS = "paper", "ours"
_CHOICE = re.compile(rf"\(({PAPER}|{OURS})\b")


@dataclass(frozen=True)
class ExplainedSetting:
    """A setting, where it comes from, and whose choice its value is: `paper`, `ours`, or None.

    `origin` is None for a default; `choice` is None for what the user set, and where there was
    nothing to choose.
    """

    key: str
    value: Any
    default: Any
    origin: str | None
    choice: str | None
    meaning: str


def explained(setting: Setting, origin: str | None) -> ExplainedSetting:
    """A setting with where it comes from, None for a default."""
    meaning = re.sub(rf" \(({PAPER}|{OURS})\)", "", setting.meaning)  # `choice` says it
    choice = choice_of(setting, origin)
    return ExplainedSetting(setting.key, setting.value, setting.default, origin, choice, meaning)


def choice_of(setting: Setting, origin: str | None) -> str | None:
    """Whose choice a value is.

    A default's docstring says it in parentheses that begin with `paper` or `ours`. A preset's
    values are its paper's, but for what it says the paper leaves open. All else is the user's.
    """
    if origin is None:
        found = _CHOICE.search(setting.meaning)
        return found[1] if found else None
    if not origin.startswith("preset "):
        return None
    within = setting.key.removeprefix("method.")
    left_open = PRESETS[origin.removeprefix("preset ")].open
    return OURS if any(f"{within}.".startswith(f"{each}.") for each in left_open) else PAPER
