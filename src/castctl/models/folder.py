"""A model's folder before anything in it is loaded: files that end, and a shape that a machine can
hold."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from castctl.errors import UserError
from castctl.files import regular_files
from castctl.shards.part import read_json

MOST = {r"layers?$": 1000, r"experts$": 10_000}
"""How many of a kind a configuration may ask for, by its keys' endings: transformers makes them one
by one, before it reads a weight. The deepest models have some 130 layers."""


def check_model_folder(folder: Path) -> None:
    """Raise `UserError` for a folder that would be read, or a model that would be made, without
    end."""
    regular_files(folder)
    file = folder / "config.json"
    for key, value in _numbers(read_json(file, "take another copy of the model")):
        for ending, most in MOST.items():
            if re.search(ending, key) and value > most:
                raise UserError(
                    f"{file} says {key}={value:.4g}, and castctl loads models of at most {most:,}"
                )


def _numbers(config: dict[str, Any]) -> Iterator[tuple[str, int]]:
    """Every whole number of a configuration and of those within it."""
    inside = [config]
    while inside:
        for key, value in inside.pop().items():
            if isinstance(value, dict):
                inside.append(value)
            elif isinstance(value, int):
                yield key, value
