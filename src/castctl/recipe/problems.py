"""What does not fit in a recipe, in one line: every wrong key and value, with what to write."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from castctl.errors import UserError, one_line
from castctl.methods.method import kinds_of
from castctl.recipe.names import GONE, known_keys, meanings, sections_in

T = TypeVar("T", bound=BaseModel)

MOST_PROBLEMS = 8
"""How many problems a line names."""
MOST_KEYS = 4
"""How many keys it offers for a wrong one."""
MOST_SHOWN = 100
"""How many characters of a wrong value."""


def fitted(section: type[T], tree: Any, origin: str) -> T:
    """`tree` as settings of type `section`; `UserError` in one line where it does not fit."""
    try:
        return section.model_validate(tree)
    except ValidationError as error:
        raise UserError(f"{origin}: {problems(section, error)}") from None


def problems(section: type[BaseModel], error: ValidationError) -> str:
    """Everything that is wrong with what should have been settings of type `section`."""
    told = list(dict.fromkeys(p for each in error.errors() for p in _problems(section, each)))
    more = [f"and {len(told) - MOST_PROBLEMS} more"] if len(told) > MOST_PROBLEMS else []
    return "; ".join(told[:MOST_PROBLEMS] + more)


def _problems(section: type[BaseModel], problem: ErrorDetails) -> list[str]:
    place = _place(section, problem["loc"])
    keys = ".".join(map(str, place))
    named = [part for part in place if isinstance(part, str)]  # a place in a list has no key
    if problem["type"] == "extra_forbidden":
        return _unknown(section, ".".join(named), problem["input"])
    if problem["type"] in ("union_tag_invalid", "union_tag_not_found"):
        field = _field_at(section, named)
        inner = sections_in(field) if field else []
        here = [kind for each in inner for kind in kinds_of(each)]
        return [f"{keys}.kind must say which: {', '.join(here)}"]
    if problem["type"] in ("model_type", "model_attributes_type"):
        field = _field_at(section, named)
        inner = sections_in(field) if field else []
        first = next((key for each in inner for key in each.model_fields), "KEY")
        mapping = f"{{{first}: {_shown(problem['input'])}}}"
        return [f"{keys}: write its settings as a mapping, such as {mapping}"]
    message = problem["msg"].removeprefix("Value error, ")
    if keys and problem["type"] != "value_error":
        shown = _shown(problem["input"]) if not isinstance(problem["input"], dict) else ""
        got = f", got {shown}" if shown else ""
        return [f"{keys}: {message[0].lower() + message[1:]}{got}"]
    return [f"{keys + ': ' if keys else ''}{message}"]


def _shown(value: Any) -> str:
    try:
        return one_line(repr(value), MOST_SHOWN)
    except ValueError:  # Python writes no number of more than 4,300 digits
        return "a number that is too long to show"


def _unknown(section: type[BaseModel], keys: str, value: Any) -> list[str]:
    """What to write for an unknown key. Of a section that is not known, each key says where it
    belongs."""
    known = known_keys(section)
    if keys in known:
        slot, _, name = keys.rpartition(".")
        field = _field_at(section, slot.split("."))
        having = [each for each in sections_in(field) if name in each.model_fields] if field else []
        kinds = [kind for each in having for kind in kinds_of(each)]
        return [
            f"key {keys} does not belong to the kind chosen beside it; leave it out, or set "
            f"{slot}.kind to {choice(kinds)}"
        ]
    if keys in GONE:
        return [f"key {keys} is no more: {GONE[keys]}"]
    if meant := meanings(section, keys):
        return [f"unknown key {keys}; write {choice(meant)}"]
    begun = [key for key in known if key.startswith(keys)]
    near = begun or difflib.get_close_matches(keys, known, n=1, cutoff=0.6)
    if near:
        return [f"unknown key {keys}; the nearest one is {near[0]}"]
    if isinstance(value, dict) and value:
        return [
            p for key, inner in value.items() for p in _unknown(section, f"{keys}.{key}", inner)
        ]
    return [f"unknown key {keys}; the sections are {', '.join(section.model_fields)}"]


def choice(meant: Sequence[str]) -> str:
    """What can be written for a name, as a choice in words."""
    shown = [*meant[:MOST_KEYS], *(["another of that name"] if len(meant) > MOST_KEYS else [])]
    return " or ".join([", ".join(shown[:-1]), shown[-1]] if len(shown) > 1 else shown)


def _place(section: type[BaseModel], location: Sequence[str | int]) -> list[str | int]:
    """The keys of a location, and places in lists. There the kind that was chosen follows its slot
    or its place, and is no key of the recipe."""
    place: list[str | int] = []
    kind_follows = False
    for part in location:
        if isinstance(part, int):
            place.append(part)
        elif kind_follows:
            kind_follows = False
        else:
            place.append(part)
            field = _field_at(section, [key for key in place if isinstance(key, str)])
            kind_follows = field is not None and len(sections_in(field)) > 1
    return place


def _field_at(section: type[BaseModel], keys: Sequence[str]) -> FieldInfo | None:
    """The field that dotted keys lead to; None where they lead nowhere."""
    field = section.model_fields.get(keys[0])
    if field is None or len(keys) == 1:
        return field
    found = (_field_at(inner, keys[1:]) for inner in sections_in(field))
    return next((each for each in found if each is not None), None)
