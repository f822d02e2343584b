"""Steps as tests of diagnostics read them: small random shards of every stage, on disk."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from scipy import stats

from castctl.diagnosis.data import StepData, read_step
from castctl.methods import MethodSettings
from castctl.progress import Silent
from castctl.ragged import offsets_of
from castctl.shards.columns import list_column
from castctl.shards.part import write_part
from castctl.shards.stage import StepFolder
from castctl.stages.shape import shape_step

GROUPS = ("mixed", "all_correct", "all_wrong", "mixed", "single", "unknown")
"""The kinds of groups that are drawn in turn: `single` has one completion, `unknown` no reward."""

VOCABULARY = 20
LONGEST = 12
STAGES = ("rollouts", "rewards", "signals", "advantages")


def write_step(
    path: Path,
    rng: np.random.Generator,
    *,
    step: int = 0,
    prompts: int = 12,
    samples: int = 4,
    parts: int = 2,
    longest: int = LONGEST,
    kinds: Sequence[str] = GROUPS,
    method: dict[str, Any] | None = None,
    gap: float = 0.5,
    drift: float = 0.3,
    noise: float = 0.05,
    sampler: bool = True,
    scored: bool = True,
    names: str = "prompt",
    signals_metadata: dict[str, Any] | None = None,
) -> StepFolder:
    """Rollouts, rewards, signals and (by `shape_step`) advantages of a step.

    `gap`, `drift` and `noise` are the deviations in nats of teacher, reference and sampler from the
    policy. Completions have 0 to `longest` tokens, some one; some rewards are null, some influences
    null or NaN. `scored` off leaves the influences out, `sampler` off the sampler's log-probs.
    `method` are the slots that shape, CAST's unless named.
    """
    folder = StepFolder(path, step, 10)
    for part in range(parts):
        own = [p for p in range(prompts) if p * parts // prompts == part]
        rows = [row for p in own for row in _group(rng, f"{names}{p}", kinds[p % len(kinds)],
                                                   samples, longest)]  # fmt: skip
        _write(folder, part, rows, rng, gap, drift, noise, sampler, scored, signals_metadata or {})
    shaping = MethodSettings.model_validate(method or {"name": "cast"})
    shape_step(folder, shaping, longest=longest, progress=Silent())
    return folder


def random_step(path: Path, seed: int = 0, **options: Any) -> StepData:
    """A step written by `write_step` and read back whole."""
    folder = write_step(path, np.random.default_rng(seed), **options)
    return read_step(folder, STAGES, folder.parts("rollouts"))


Told = dict[str, float | None] | None


def plain_ratio(rows: Sequence[tuple[str, float, float]], share: bool = False) -> Told:
    """The sum of seconds over the sum of thirds of (prompt, above, below), with the interval over
    prompts of the linearised ratio, by the plain reading."""
    above: dict[str, float] = {}
    below: dict[str, float] = {}
    for prompt, a, b in rows:
        above[prompt] = above.get(prompt, 0.0) + a
        below[prompt] = below.get(prompt, 0.0) + b
    prompts = [p for p in below if below[p] > 0]
    if not prompts:
        return None
    total = math.fsum(below[p] for p in prompts)
    ratio = math.fsum(above[p] for p in prompts) / total
    residuals = [(above[p] - ratio * below[p]) * len(prompts) / total for p in prompts]
    even = share and len({below[p] for p in prompts}) == 1  # each prompt counts alike
    if not even and max(map(abs, residuals)) < 1e-12 * max(abs(ratio), 1e-300):
        return {"mean": ratio, "low": None, "high": None}
    if len(prompts) < 2:
        return {"mean": ratio, "low": None, "high": None}
    variance = math.fsum(e * e for e in residuals) / (len(prompts) - 1)
    half = stats.t.ppf(0.975, len(prompts) - 1) * math.sqrt(variance / len(prompts))
    low, high = ratio - half, ratio + half
    one_or_none = all(above[p] in (0, below[p]) for p in prompts)
    if even and (one_or_none or variance == 0 or low <= 0 or high >= 1):
        return {"mean": ratio, **_wilson(ratio, len(prompts))}
    return {"mean": ratio, "low": max(low, 0.0) if share else low,
            "high": min(high, 1.0) if share else high}  # fmt: skip


def _wilson(share: float, count: int) -> dict[str, float]:
    z2 = stats.norm.ppf(0.975) ** 2
    centre = (share + z2 / (2 * count)) / (1 + z2 / count)
    half = math.sqrt(z2 * (share * (1 - share) / count + z2 / (4 * count**2))) / (1 + z2 / count)
    return {"low": centre - half, "high": centre + half}


def assert_told(actual: Any, expected: Told) -> None:
    """An estimate is the expected one, its interval too."""
    assert (actual is None) == (expected is None), (actual, expected)
    if actual is not None and expected is not None:
        for key in ("mean", "low", "high"):
            wanted = expected[key]
            close = wanted if wanted is None else pytest.approx(wanted, rel=1e-6, abs=1e-12)
            assert actual[key] == close, key


def _group(
    rng: np.random.Generator, prompt: str, kind: str, samples: int, longest: int
) -> list[dict[str, Any]]:
    count = 1 if kind == "single" else samples
    rewards = {
        "mixed": [1.0, 0.0, *rng.integers(0, 2, max(count - 2, 0)).astype(float)],
        "all_correct": [1.0] * count,
        "all_wrong": [0.0] * count,
        "single": [float(rng.integers(0, 2))],
        "unknown": [math.nan] * count,
    }[kind]
    if (
        kind != "unknown" and count > 3 and rng.random() < 0.5
    ):  # a group of three or more keeps its kind
        rewards[int(rng.integers(2, count))] = math.nan
    return [
        {
            "prompt_id": prompt,
            "sample": sample,
            "reward": reward,
            "verdict": _verdict(rng, reward),
            "length": int(rng.choice([0, 1, *rng.integers(2, longest + 1, 4)])),
        }
        for sample, reward in enumerate(rewards)
    ]


def _verdict(rng: np.random.Generator, reward: float) -> str:
    if math.isnan(reward):
        return "error"
    return "correct" if reward else str(rng.choice(["wrong", "no_answer", "truncated"]))


def _write(
    folder: StepFolder, part: int, rows: list[dict[str, Any]], rng: np.random.Generator,
    gap: float, drift: float, noise: float, sampler: bool, scored: bool, said: dict[str, Any],
) -> None:  # fmt: skip
    offsets = offsets_of([row["length"] for row in rows])
    count, texts = int(offsets[-1]), [""] * len(rows)
    key = {name: [row[name] for row in rows] for name in ("prompt_id", "sample")}
    policy = -rng.exponential(0.5, count)
    influence = rng.exponential(0.3, (2, count)).round(2)  # some tie
    influence[:, rng.random(count) < 0.2] = math.nan
    mute = np.array([row["verdict"] in ("no_answer", "truncated", "error") for row in rows])

    def floats(values: np.ndarray | None, absent: np.ndarray | None = None) -> pa.Array:
        return list_column(values, offsets, pa.float32(), absent)

    rollouts = {
        **key,
        "problem": key["prompt_id"],
        "answer": texts,
        "solution": texts,
        "prompt_token_ids": [[1, 2]] * len(rows),
        "completion_token_ids": list_column(
            rng.integers(0, VOCABULARY, count), offsets, pa.int32()
        ),
        "completion": texts,
        "sampler_logprobs": floats(policy + rng.normal(0, noise, count) if sampler else None),
        "finish_reason": ["stop"] * len(rows),
        "earlier": pa.nulls(len(rows)),
    }
    rewards = {
        **key,
        "reward": [None if math.isnan(row["reward"]) else row["reward"] for row in rows],
        "verdict": [row["verdict"] for row in rows],
        "extracted": pa.nulls(len(rows), pa.string()),
        "answer_start": pa.nulls(len(rows), pa.int32()),
        "answer_end": pa.nulls(len(rows), pa.int32()),
        "seconds": [0.0] * len(rows),
    }
    signals = {
        **key,
        "policy_logprobs": floats(policy),
        "teacher_logprobs": floats(policy + rng.standard_t(2, count) * gap),
        "ref_logprobs": floats(policy + rng.normal(0, 1, count) * drift),
        "bilateral_logprobs": floats(None),
        "entropies": floats(rng.exponential(0.4, count)),
        "importance_perturb": floats(influence[0] if scored else None, mute),
        "importance_grad": floats(influence[1] if scored else None, mute),
        "teacher_prompt_token_ids": list_column(None, offsets, pa.int32()),
        "bilateral_prompt_token_ids": list_column(None, offsets, pa.int32()),
    }
    made = {"step": folder.step, "total_steps": folder.total_steps, "part": part}
    stages = {"rollouts": rollouts, "rewards": rewards, "signals": signals}
    for stage, columns in stages.items():
        extra = said if stage == "signals" else {}
        write_part(folder.part_path(stage, part), stage, pa.table(columns), made | extra)
