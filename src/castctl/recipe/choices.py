"""Whose choice a setting's value is: the paper's, that of public scripts, ours, or the user's."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from castctl.methods import PRESETS
from castctl.methods.presets import OURS, PAPER, SCRIPTS
from castctl.settings import Setting

_CHOICES = "|".join((PAPER, OURS, SCRIPTS))
_CHOICE = re.compile(rf"\(({_CHOICES})\b")


@dataclass(frozen=True)
class ExplainedSetting:
    """A setting, where it comes from, and whose choice its value is: `paper`, `ours`,
    `public scripts, attribution inferred`, or None.

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
    meaning = re.sub(rf" \(({_CHOICES})\)", "", setting.meaning)  # `choice` says it
    choice = choice_of(setting, origin)
    return ExplainedSetting(setting.key, setting.value, setting.default, origin, choice, meaning)


def choice_of(setting: Setting, origin: str | None) -> str | None:
    """Whose choice a value is.

    A default's docstring says it in parentheses that begin with it. A preset's values are its
    paper's, or those of the scripts that it follows, but for what it says these leave open. All
    else is the user's.
    """
    if origin is None:
        found = _CHOICE.search(setting.meaning)
        return found[1] if found else None
    if not origin.startswith("preset "):
        return None
    within = setting.key.removeprefix("method.")
    method = PRESETS[origin.removeprefix("preset ")]
    left_open = any(f"{within}.".startswith(f"{each}.") for each in method.open)
    return OURS if left_open else method.whose
