"""What every group of settings has in common."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

# Bounds far above any use: what lies beyond them is a slip or a trap, and would hang the machine
# or fill its memory.
Count = Annotated[int, Field(ge=1, le=10**7)]
"""Steps, tokens, prompts, rows: at least one."""
Amount = Annotated[int, Field(ge=0, le=10**7)]
"""The same, where none is a choice."""
Steps = Annotated[int, Field(ge=1, le=10**6)]
"""Steps of a loop, which a plan lists one by one."""
Samples = Annotated[int, Field(ge=1, le=10**5)]
"""Completions of one prompt."""
Processes = Annotated[int, Field(ge=1, le=1024)]
"""Processes of one machine."""
Seed = Annotated[int, Field(ge=0, lt=2**63)]
"""What numpy, torch and Parquet take for a seed."""

PresencePenalty = Annotated[float, Field(ge=-2, le=2)]
RepetitionPenalty = Annotated[float, Field(gt=0)]
"""Penalties as vLLM takes them."""


class Section(BaseModel):
    """A group of settings: unknown keys are refused, values stay as they were read."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True
    )

    @model_validator(mode="before")
    @classmethod
    def _text_is_whole(cls, values: Any) -> Any:
        if isinstance(values, dict):
            for key, value in values.items():
                try:
                    json.dumps([key, value], default=str, ensure_ascii=False).encode()
                except UnicodeEncodeError:
                    raise ValueError(
                        f"{key} holds half a surrogate pair, which is no text"
                    ) from None
                except ValueError:  # Python writes no whole number of more than 4,300 digits
                    raise ValueError(f"{key} holds a number that is far too large") from None
                except TypeError as error:  # YAML takes dates and bytes for keys
                    raise ValueError(f"{key}: {error}; put the key into quotes") from None
        return values


@dataclass(frozen=True)
class Setting:
    """One setting by its dotted key, with its default and what its docstring says."""

    key: str
    value: Any
    default: Any
    meaning: str

    @property
    def changed(self) -> bool:
        return self.value != self.default


def settings_in(section: Section, default: Section | None, prefix: str = "") -> Iterator[Setting]:
    """Every setting below a section, in the order of its fields.

    Where a section is of another kind than the default's, its settings have the defaults of
    their own kind, and only the kind itself differs. Where the default is no section at all, every
    setting differs.
    """
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        alike = name == "kind" or type(section) is type(default)
        usual = getattr(default, name) if alike else field.default
        if default is None:  # the whole section is a choice
            usual = None
        if isinstance(value, Section):
            yield from settings_in(value, usual, f"{prefix}{name}.")
        else:
            meaning = " ".join((field.description or "").split())
            yield Setting(prefix + name, _written(value), _written(usual), meaning)


def _written(value: Any) -> Any:
    """A list of sections as it is written in a recipe; any other value as it is."""
    if isinstance(value, tuple) and any(isinstance(each, Section) for each in value):
        return [each.model_dump(mode="json") for each in value]
    return value
