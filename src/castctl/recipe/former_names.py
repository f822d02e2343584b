"""What recipes are called on the embedded default, and what today where a name is a former one."""

from __future__ import annotations

import re
from collections.abc import Iterable

RENAMED = {
    "bicc-qwen3-4b": "bicc+rcc-qwen3-4b:bicc",
    "cast+rcc-qwen3-1.7b": "cast-qwen3-1.7b:rcc",
    "qwen3-dapo": "grpo-qwen3-1.7b",
    "rcc-qwen3-4b": "bicc+rcc-qwen3-4b:rcc",
    "sdpg-ufkl-qwen3-4b": "sdpg-qwen3-4b:ufkl",
    "sdpg-urkl-qwen3-4b": "sdpg-qwen3-4b",
}
"""Former names that do not follow from today's."""


def twin_name(name: str) -> str:
    """A recipe's name on the embedded default: without the model, which it does not have there."""
    return f"tiny-{re.sub(r'-qwen3-[0-9.]+b', '', name)}"


def new_name(old: str, names: Iterable[str]) -> str | None:
    """How one spells today what was called `old`, None where nothing was.

    `names` are today's, with variants. A variant was a file NAME-VARIANT, and each file had a twin
    on the embedded default.
    """
    now = {name.replace(":", "-"): name for name in names} | RENAMED
    twins = {
        twin_name(former): f"{name} --tiny"
        for former, name in reversed(now.items())  # the smallest model wins
    }
    found = (twins | now).get(old)
    return None if found == old else found
