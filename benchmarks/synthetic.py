"""Random shards of a step's size, for what reads files and no model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa

from castctl.ragged import offsets_of
from castctl.shards.columns import list_column
from castctl.shards.part import write_part
from castctl.shards.schema import SCHEMAS
from castctl.shards.stage import StepFolder

VOCABULARY = 151_936
CHARACTERS_PER_TOKEN = 4
PROMPT_TOKENS = 128

Tables = dict[str, pa.Table]


def random_part(rng: np.random.Generator, groups: int, n: int, tokens: int) -> Tables:
    """Rollouts, rewards and signals of `groups` x `n` completions, `tokens` long on average."""
    rows = groups * n
    lengths = rng.integers(tokens // 2, tokens + tokens // 2 + 1, rows)
    offsets = offsets_of(lengths)
    total = int(offsets[-1])
    prompt_ids = np.repeat([rng.bytes(8).hex() for _ in range(groups)], n)
    key = {
        "prompt_id": pa.array(prompt_ids),
        "sample": pa.array(np.tile(np.arange(n), groups), pa.int32()),
    }
    prompts = rng.integers(0, VOCABULARY, (groups, PROMPT_TOKENS)).repeat(n, axis=0)
    policy = rng.normal(-0.5, 0.3, total)
    lines = [_text(rng, int(length) * CHARACTERS_PER_TOKEN) for length in lengths]
    problems = [_text(rng, PROMPT_TOKENS * CHARACTERS_PER_TOKEN) for _ in range(groups)]
    right = rng.random(rows) < rng.choice([0.0, 0.3, 0.7, 1.0], groups).repeat(n)
    columns = {
        "rollouts": {
            "problem": pa.array(np.repeat(problems, n)),
            "answer": pa.array(["42"] * rows),
            "prompt_token_ids": list_column(
                prompts.ravel(), offsets_of([PROMPT_TOKENS] * rows), pa.int32()
            ),
            "completion_token_ids": list_column(
                rng.integers(0, VOCABULARY, total), offsets, pa.int32()
            ),
            "completion": pa.array(lines),
            "sampler_logprobs": list_column(
                policy + rng.normal(0, 1e-6, total), offsets, pa.float32()
            ),
            "finish_reason": pa.array(["stop"] * rows),
        },
        "rewards": {
            "reward": pa.array(right.astype(np.float32)),
            "verdict": pa.array(np.where(right, "correct", "wrong")),
            "extracted": pa.array(np.where(right, "42", "41")),
            "seconds": pa.array(np.zeros(rows, np.float32)),
        },
        "signals": {
            "policy_logprobs": list_column(policy, offsets, pa.float32()),
            "teacher_logprobs": list_column(
                policy + rng.standard_t(3, total) * 0.05, offsets, pa.float32()
            ),
            "entropies": list_column(rng.random(total), offsets, pa.float32()),
        },
    }
    return {stage: _table(stage, {**key, **given}) for stage, given in columns.items()}


def random_step(path: Path, groups: int, n: int, tokens: int, part_size: int) -> StepFolder:
    """A scored step on disk, in parts of `part_size` groups."""
    folder = StepFolder(path)
    rng = np.random.default_rng(0)
    for part in range(-(-groups // part_size)):
        size = min(part_size, groups - part * part_size)
        for stage, table in random_part(rng, size, n, tokens).items():
            write_part(folder.part_path(stage, part), stage, table, {"step": 0})
    return folder


def tokens_of(table: pa.Table, name: str) -> int:
    """How many values a list column holds."""
    return len(table[name].combine_chunks().flatten())


def _table(stage: str, columns: dict[str, pa.Array]) -> pa.Table:
    """The columns in the order of the stage's schema, null where none is given."""
    schema = SCHEMAS[stage]
    rows = len(columns["prompt_id"])
    filled = [columns.get(field.name, pa.nulls(rows, field.type)) for field in schema]
    return pa.table(filled, names=schema.names).cast(schema)


def _text(rng: np.random.Generator, length: int) -> str:
    """Words of random letters: compresses about as badly as a worked solution."""
    letters = np.frombuffer(b"eeeeetttaaooiinnsshhrrdlucmfwyp0123456789+-=      \n", np.uint8)
    return rng.choice(letters, length).tobytes().decode()
