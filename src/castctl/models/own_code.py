"""Python code that comes in a model's folder: it runs only where a person says so now."""

from __future__ import annotations

import json
from pathlib import Path

from castctl.errors import UserError, one_line
from castctl.files import read_text
from castctl.recipe.model import ModelSettings
from castctl.recipe.trust import FLAGS, REMOTE_CODE

CONFIGURATIONS = ("config.json", "tokenizer_config.json")
"""The files of a model's folder that can refer to code."""


def runs_own_code(folder: Path, settings: ModelSettings, *files: str) -> bool:
    """Whether Transformers may run the code that `files` in a model's folder refer to.

    Raises `UserError` where the recipe has it run and only a file says so: without it another
    class might load in its place, and give other numbers without a word.
    """
    from transformers import dynamic_module_utils

    # A folder can lead Transformers to ask on the terminal, for 15 seconds; an answer is no flag.
    dynamic_module_utils.TIME_OUT_REMOTE_CODE = 0
    if not settings.trust_remote_code:
        return False
    if not settings.trusted and (code := own_code(folder, *files)):
        raise UserError(_needs_trust(folder, code))
    return settings.trusted


def own_code(folder: Path, *files: str) -> list[str]:
    """The files of Python code that the `auto_map` of the configurations `files` refer to; those of
    another repository as OWNER/NAME--FILE."""
    found: set[str] = set()
    for file in files:
        try:
            classes = json.loads(read_text(folder / file))["auto_map"]
        except (OSError, ValueError, RecursionError, KeyError, TypeError):
            continue  # whoever loads it says what is wrong
        values = classes.values() if isinstance(classes, dict) else [classes]
        for value in values:
            names = value if isinstance(value, list) else [value]
            found |= {f"{name.rpartition('.')[0]}.py" for name in names if isinstance(name, str)}
    return sorted(found)


def refused(folder: Path, error: Exception, otherwise: str) -> UserError:
    """What to say of a folder that Transformers does not load: that it needs code of its own, which
    nobody has said to run, or `otherwise` and its reason."""
    if "trust_remote_code" in str(error):
        return UserError(_needs_trust(folder, own_code(folder, *CONFIGURATIONS)))
    return UserError(f"{otherwise}: {one_line(error)}")


def _needs_trust(folder: Path, code: list[str]) -> str:
    return (
        f"{folder} comes with code of its own ({', '.join(code)}); read it, then add "
        f"{FLAGS[REMOTE_CODE]}"
    )
