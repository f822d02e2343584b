"""The columns of every stage. Names and types are the contract with other tools."""

from __future__ import annotations

import math

import pyarrow as pa

VERSION = 1

_floats = pa.list_(pa.float32())
_ids = pa.list_(pa.int32())
_messages = pa.list_(
    pa.struct(
        [
            pa.field("role", pa.string(), nullable=False),
            pa.field("content", pa.string(), nullable=False),
        ]
    )
)


def _field(name: str, kind: pa.DataType) -> pa.Field:
    return pa.field(name, kind, nullable=False)


_KEY = [_field("prompt_id", pa.string()), _field("sample", pa.int32())]

PROMPTS = pa.schema(
    [
        _field("prompt_id", pa.string()),
        _field("problem", pa.string()),
        pa.field("answer", pa.string()),
        pa.field("solution", pa.string()),
        pa.field("source", pa.string()),
        pa.field("earlier", _messages),
    ]
)

ROLLOUTS = pa.schema(
    [
        *_KEY,
        _field("problem", pa.string()),
        pa.field("answer", pa.string()),
        pa.field("solution", pa.string()),
        _field("prompt_token_ids", _ids),
        _field("completion_token_ids", _ids),
        _field("completion", pa.string()),
        pa.field("sampler_logprobs", _floats),
        _field("finish_reason", pa.string()),
        pa.field("earlier", _messages),
        pa.field("token_count", pa.int32()),
    ]
)

REWARDS = pa.schema(
    [
        *_KEY,
        pa.field("reward", pa.float32()),
        _field("verdict", pa.string()),
        pa.field("extracted", pa.string()),
        pa.field("answer_start", pa.int32()),
        pa.field("answer_end", pa.int32()),
        _field("seconds", pa.float32()),
    ]
)

REWARD = "reward_"
"""Begins the columns of several rewards, which `reward` is the weighted sum of."""
_WEIGHT = b"weight"

TOKEN_SIGNALS = (
    "policy_logprobs",
    "teacher_logprobs",
    "ref_logprobs",
    "bilateral_logprobs",
    "entropies",
    "importance_perturb",
    "importance_grad",
)
PROMPT_SIGNALS = ("teacher_prompt_token_ids", "bilateral_prompt_token_ids")
PEER = "teacher_peer"
"""The sample of the completion that a teacher was told."""

SIGNALS = pa.schema(
    [
        *_KEY,
        *(pa.field(name, _floats) for name in TOKEN_SIGNALS),
        *(pa.field(name, _ids) for name in PROMPT_SIGNALS),
        pa.field(PEER, pa.int32()),
    ]
)

ADVANTAGES = pa.schema(
    [
        *_KEY,
        _field("group_kind", pa.string()),
        _field("kept", pa.bool_()),
        _field("base", pa.float32()),
        _field("advantages", _floats),
        pa.field("weights", _floats),
        pa.field("flipped", pa.list_(pa.bool_())),
        pa.field("distill_weights", _floats),
        pa.field("loss_weights", _floats),
    ]
)

SCHEMAS = {
    "prompts": PROMPTS,
    "rollouts": ROLLOUTS,
    "rewards": REWARDS,
    "signals": SIGNALS,
    "advantages": ADVANTAGES,
}

TOKEN_LISTS = {
    "rollouts": ("completion_token_ids", "sampler_logprobs"),
    "signals": TOKEN_SIGNALS,
    "advantages": ("advantages", "weights", "flipped", "distill_weights", "loss_weights"),
}
"""Columns with one value a completion token."""

KEYS = {
    stage: ["prompt_id"] if stage == "prompts" else ["prompt_id", "sample"] for stage in SCHEMAS
}


def reward_field(name: str, weight: float) -> pa.Field:
    """The column of one reward of several; its metadata say its weight."""
    return pa.field(REWARD + name, pa.float32(), metadata={_WEIGHT: repr(weight).encode()})


def reward_weights(schema: pa.Schema) -> dict[str, float]:
    """The weight of each of several rewards, by its name; nothing where there is but one.

    Raises `ValueError` for a weight that is no finite number.
    """
    weights = {}
    for field in schema:
        raw = (field.metadata or {}).get(_WEIGHT)
        if raw is None or not field.name.startswith(REWARD):
            continue
        weight = float(raw)
        if not math.isfinite(weight):
            raise ValueError(f"the weight of {field.name} is {weight}")
        weights[field.name.removeprefix(REWARD)] = weight
    return weights


def schema_of(stage: str, found: pa.Schema) -> pa.Schema:
    """The columns of a stage's part; of rewards each of several too, as `found` in a file. Raises
    `ValueError` as `reward_weights` does."""
    schema = SCHEMAS[stage]
    if stage == "rewards":
        for name, weight in reward_weights(found).items():
            schema = schema.append(reward_field(name, weight))
    return schema
