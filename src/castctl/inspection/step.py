"""One step on disk: its stages, what made them, and what its groups and tokens say."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from castctl.inspection.spread import Spread, gaps, spread_of
from castctl.shards.part import Metadata, count_rows, read_metadata
from castctl.shards.schema import SCHEMAS
from castctl.shards.stage import StepFolder
from castctl.stages.groups import reward_groups
from castctl.stages.measures import Measures, measure_step

BOOKKEEPING = {"schema", "stage", "step", "total_steps", "part", "inputs", "content"}
"""Metadata that says where a part belongs; the rest says what made it."""

Flat = dict[str, Any]


@dataclass(frozen=True)
class StageView:
    """The parts of one stage. `made` has the settings on which the parts agree, by dotted key;
    `differing` the keys on which they do not; `foreign` the parts made elsewhere."""

    stage: str
    parts: list[int]
    rows: int
    bytes: int
    made: Flat
    differing: list[str]
    foreign: list[int]


@dataclass(frozen=True)
class GroupView:
    """The completions of one prompt: their verdicts and rewards by sample number."""

    prompt_id: str
    kind: str
    problem: str | None
    samples: list[int]
    verdicts: list[str]
    rewards: list[float | None]


@dataclass(frozen=True)
class StepView:
    """A step. `names` has the names of models by their fingerprints, as far as they are known."""

    path: Path
    step: int
    stages: list[StageView]
    measures: Measures
    spreads: dict[str, Spread]
    groups: list[GroupView]
    names: Mapping[str, str]


def view_step(folder: StepFolder, names: Mapping[str, str]) -> StepView:
    """All that a step's files say, beside the `names` of models.

    Raises `UserError` on a broken part.
    """
    stages = [view_stage(folder, stage) for stage in SCHEMAS if folder.parts(stage)]
    return StepView(
        path=folder.path,
        step=folder.step,
        stages=stages,
        measures=measure_step(folder),
        spreads=_spreads(folder),
        groups=_groups(folder),
        names=names,
    )


def view_stage(folder: StepFolder, stage: str) -> StageView:
    """One stage by its files' headers."""
    parts = folder.parts(stage)
    paths = [folder.part_path(stage, part) for part in parts]
    metadata = [read_metadata(path, stage) for path in paths]
    settings = [made_by(one) for one in metadata if one is not None]
    keys = list(dict.fromkeys(key for one in settings for key in one))
    agreed = [k for k in keys if all(k in one and one[k] == settings[0][k] for one in settings)]
    return StageView(
        stage=stage,
        parts=parts,
        rows=sum(map(count_rows, paths)),
        bytes=sum(path.stat().st_size for path in paths),
        made={key: settings[0][key] for key in agreed},
        differing=[key for key in keys if key not in agreed],
        foreign=[part for part, one in zip(parts, metadata, strict=True) if one is None],
    )


def made_by(metadata: Metadata) -> Flat:
    """The settings that made a part, by dotted key."""
    return flatten({key: value for key, value in metadata.items() if key not in BOOKKEEPING})


def flatten(tree: dict[str, Any], prefix: str = "") -> Flat:
    """Nested settings by dotted key; an empty section stays, as an empty one."""
    flat: Flat = {}
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def _spreads(folder: StepFolder) -> dict[str, Spread]:
    values = {}
    if folder.parts("advantages"):
        column = folder.table("advantages")["advantages"].combine_chunks()
        values["advantage"] = column.flatten().to_numpy(zero_copy_only=False)
    if folder.parts("signals"):
        values["gap"] = gaps(folder.table("signals"), str(folder.path / "signals"))
    spreads = {name: spread_of(flat) for name, flat in values.items()}
    return {name: spread for name, spread in spreads.items() if spread is not None}


def _groups(folder: StepFolder) -> list[GroupView]:
    """The groups in the order of the rewards; none without rewards."""
    if not folder.parts("rewards"):
        return []
    rewards = folder.table("rewards")
    known = reward_groups(rewards)
    problems = _problems(folder)
    ids = dict.fromkeys(rewards["prompt_id"].to_pylist())
    groups = [
        GroupView(id, str(kind), problems.get(id), [], [], [])
        for id, kind in zip(ids, known.kind_G, strict=True)
    ]
    columns = (rewards[name].to_pylist() for name in ("sample", "verdict", "reward"))
    for index, sample, verdict, reward in zip(known.of_row, *columns, strict=True):
        groups[index].samples.append(sample)
        groups[index].verdicts.append(verdict)
        groups[index].rewards.append(reward)
    return groups


def _problems(folder: StepFolder) -> dict[str, str]:
    if not folder.parts("rollouts"):
        return {}
    table = folder.table("rollouts")
    return dict(zip(table["prompt_id"].to_pylist(), table["problem"].to_pylist(), strict=True))
