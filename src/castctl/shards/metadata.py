"""What a file of castctl says of its making: JSON whose types are checked once, when it is read."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from castctl.errors import one_line
from castctl.methods.cast import of_former
from castctl.methods.correction import of_cap

METADATA_KEY = b"castctl"
"""The file's key-value entry that holds the JSON object."""

LONGEST, DEEPEST = 1 << 20, 16
"""Bytes of the JSON, and how deep it may nest; castctl's own has some thousand bytes, 5 deep."""

Metadata = dict[str, Any]

Count = Annotated[int, Field(ge=0, lt=2**31)]
Temperature = Annotated[float, Field(ge=0)]


class _Typed(BaseModel):
    """Keys beyond those named are not castctl's business."""

    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False)


class _Sampling(_Typed):
    max_tokens: Annotated[int, Field(ge=1, lt=2**31)] = 1
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    top_k: Count = 0
    min_p: Annotated[float, Field(ge=0, le=1)] = 0.0
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] = 0.0
    repetition_penalty: Annotated[float, Field(gt=0)] = 1.0


class _Verifier(_Typed):
    function: str | None = None


class _Teacher(_Typed):
    kind: str = ""
    every: Annotated[int, Field(ge=1)] = 1


class _Signal(_Typed):
    """What made one signal."""

    model: str = ""
    temperature: Temperature = 1.0
    dtype: str = ""
    teacher: _Teacher = _Teacher()
    context: str = ""
    template: str = ""
    settings: dict[str, Any] = {}
    rewards: str | None = None
    seed: int = 0


class _Engine(_Typed):
    """What sampled."""

    kind: str = ""
    dtype: str = ""
    kv_cache_dtype: str = "auto"
    options: dict[str, Any] = {}


class _Endpoint(_Typed):
    """The server that was asked."""

    url: str = ""
    left_to_server: list[str] = []


class _Made(_Typed):
    """The keys of every stage, none of which must be there."""

    stage: str = ""
    content: str = ""
    step: Count = 0
    total_steps: Count | None = None
    part: Count = 0
    inputs: dict[str, str] = {}
    foreign: list[str] = []
    model: str = ""
    engine: _Engine = _Engine()
    endpoint: _Endpoint = _Endpoint()
    templates: dict[str, Any] = {}
    temperature: Temperature = 1.0
    sampling: _Sampling = _Sampling()
    seed: int = 0
    verifier: _Verifier = _Verifier()
    grader: str = ""
    signals: dict[str, _Signal | Literal["foreign"]] = {}
    settings: dict[str, Any] = {}
    context: str = ""


def parse_metadata(raw: bytes) -> Metadata:
    """The JSON object, whose known keys have the types of `_Made`.

    Raises `ValueError`, which says in a few words what is wrong.
    """
    if len(raw) > LONGEST:
        raise ValueError(f"is {len(raw):,} bytes long, more than {LONGEST:,}")
    try:
        metadata = json.loads(raw)
        json.dumps(metadata, ensure_ascii=False).encode()  # half a surrogate pair is no text
    except (ValueError, RecursionError):
        metadata = None
    if not isinstance(metadata, dict):
        raise ValueError("is no JSON object")
    level, depth = [metadata], 0
    while level := [inner for each in level for inner in _inside(each)]:
        depth += 1
        if depth > DEEPEST:
            raise ValueError(f"nests deeper than {DEEPEST}")
    try:
        _Made.model_validate(metadata)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise ValueError(
            f"has {one_line(place, 60)} = {one_line(repr(first['input']), 60)}: "
            f"{one_line(first['msg'][0].lower() + first['msg'][1:], 80)}"
        ) from None
    return _of_today(metadata)


def _of_today(metadata: Metadata) -> Metadata:
    """The metadata as it is said today, so that an older run goes on."""
    settings = of_former(metadata.get("settings", {}))
    if "importance_cap" in settings and "correction" not in settings:
        settings = dict(settings)
        settings |= {"correction": of_cap(settings.pop("importance_cap"))}
    baseline = settings.get("baseline")
    kinds = ("mean_std", "mean", "leave_one_out", "maxrl")
    if isinstance(baseline, dict) and baseline.get("kind") in kinds:
        added_first = {"multi_objective_aggregation": "sum_then_normalize"}
        settings = settings | {"baseline": added_first | baseline}
    if "correction" in settings and "token_mask" not in settings:  # every token counted
        settings = settings | {"token_mask": {"kind": "none"}}
    if "settings" in metadata:
        metadata = metadata | {"settings": settings}
    if "verifier" in metadata:
        metadata = metadata | {"verifier": {"box_within_last": None, **metadata["verifier"]}}
    if "sampling" in metadata:
        without = {"presence_penalty": 0.0, "repetition_penalty": 1.0}
        metadata = metadata | {"sampling": without | metadata["sampling"]}
    engine = metadata.get("engine", {})
    if engine.get("kind") == "transformers" and "seeds" not in engine:  # there was no other rule
        metadata = metadata | {"engine": engine | {"seeds": "philox-128"}}
    signals = metadata.get("signals", {})
    made = signals.get("teacher_logprobs")
    if isinstance(made, dict) and "teacher" in made:  # every teacher read a chat
        made = made | {"teacher": {"chat": True} | made["teacher"]}
        metadata = metadata | {"signals": signals | {"teacher_logprobs": made}}
    return metadata


def _inside(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return list(value.values())
    return value if isinstance(value, list) else []
