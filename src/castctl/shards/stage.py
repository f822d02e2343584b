"""A step's stages on disk: numbered parts, made once, skipped when there, refused when other."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from castctl.errors import UserError, one_line
from castctl.launcher import rank_of
from castctl.shards.contract import token_counts
from castctl.shards.part import (
    Metadata,
    Part,
    content_hash,
    count_rows,
    read_metadata,
    read_part,
    write_part,
)
from castctl.shards.schema import KEYS, SCHEMAS

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Shard:
    """This process's share of the parts: those whose number leaves `index` modulo `count`."""

    index: int = 0
    count: int = 1

    def owns(self, part: int) -> bool:
        return part % self.count == self.index

    def of(self, parts: int) -> list[int]:
        """Its own of so many parts."""
        return list(range(self.index, parts, self.count))


WHOLE = Shard()
"""Every part: the share of a process alone."""

IN_COMMON = {
    "rollouts": ("model", "engine", "temperature", "sampling", "seed", "templates"),
    "rewards": ("verifier",),
    "advantages": ("whole_step",),
}
"""What the metadata of all parts of a stage must agree on within a step."""


def parse_shard(text: str | None, environment: dict[str, str]) -> Shard:
    """`i/n` with i from 0; without it the rank that a launcher set, else everything.

    Raises `UserError` for both: who started n processes did not mean the same share n times.
    """
    rank = rank_of(environment)
    if text is None:
        return Shard(rank.index, rank.count)
    if rank.several and "RANK" in environment:
        raise UserError(
            f"--shard {text}: torchrun started {rank.count} processes, which share the parts among "
            "themselves; leave --shard out, or start castctl alone"
        )
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if not match or int(match[1]) >= int(match[2]):
        raise UserError(f"--shard {text}: write i/n with i from 0 to n - 1, such as 0/4")
    return Shard(int(match[1]), int(match[2]))


@dataclass(frozen=True)
class StepFolder:
    """The folder of one step: `rollouts/`, `rewards/`, `signals/`, `advantages/`.

    `elsewhere` names other folders for stages that do not lie in `path`.
    """

    path: Path
    step: int = 0
    total_steps: int | None = None
    elsewhere: Mapping[str, Path] = field(default_factory=dict, hash=False)

    def stage_path(self, stage: str) -> Path:
        return self.elsewhere.get(stage, self.path) / stage

    def part_path(self, stage: str, part: int) -> Path:
        return self.stage_path(stage) / f"part-{part:05d}.parquet"

    def parts(self, stage: str) -> list[int]:
        """Numbers of the parts there, ascending."""
        names = (path.name for path in self.stage_path(stage).glob("part-*.parquet"))
        matches = (re.fullmatch(r"part-(\d+)\.parquet", name) for name in names)
        return sorted(int(match[1]) for match in matches if match)

    def require_parts(self, stage: str, remedy: str, shard: Shard = WHOLE) -> list[int]:
        """The parts of an input stage; `UserError` with the remedy where there are none. One shard
        of several may own none, and find none yet."""
        parts = self.parts(stage)
        if not parts and shard.count == 1:
            raise UserError(f"{self.path} has no {stage}; {remedy}")
        return parts

    def read(self, stage: str, part: int) -> Part:
        return read_part(self.part_path(stage, part), stage)

    def table(self, stage: str) -> pa.Table:
        """Every part of a stage, one after the other; `UserError` where there are none."""
        parts = self.require_parts(stage, "run the stage that makes them first")
        return joined([self.read(stage, part) for part in parts])

    def rows(self, stage: str, parts: Iterable[int]) -> int:
        """How many rows these parts hold, by their headers."""
        return sum(count_rows(self.part_path(stage, part)) for part in parts)

    def has(self, stage: str, part: int) -> bool:
        return self.part_path(stage, part).exists()

    def keep_first(self, count: int, shard: Shard, overwrite: bool) -> None:
        """Deal with parts beyond the first `count`, left by a step of more prompts.

        They would be read with the others: `UserError`, or with `overwrite` the shard's own are
        deleted, of every stage.
        """
        for stage in SCHEMAS:
            for part in self.parts(stage):
                if stage == "prompts" or part < count or not shard.owns(part):
                    continue
                if not overwrite:
                    raise UserError(
                        f"{self.part_path(stage, part)} is there from a step of more prompts; "
                        "add --overwrite to delete it and make the others again"
                    )
                self.part_path(stage, part).unlink()

    def refuse_mixed(self, stage: str, made: Metadata | None = None) -> None:
        """Raise `UserError` where parts of a stage, or the parts there and what is about to be
        `made`, differ in what a step must have in common.

        Parts made elsewhere say nothing of it, and are taken as they are.
        """
        known, first = made, ""
        for part in self.parts(stage):
            path = self.part_path(stage, part)
            said = read_metadata(path, stage) or {}
            said = {key: said[key] for key in IN_COMMON[stage] if key in said}
            if known is None:
                known, first = said or None, path.name
                continue
            different = [key for key in said if said[key] != known.get(key, said[key])]
            if different and not first:
                raise _made_otherwise(path, said, known, different)
            if different:
                key, here, there = first_difference(said, known, different)
                raise UserError(
                    f"{path.parent} mixes {stage} that do not belong together: {one_line(key, 60)} "
                    f"is {_shown(here)} in {path.name} and {_shown(there)} in {first}; make them "
                    "again with --overwrite"
                )

    def lacks(
        self,
        stage: str,
        part: int,
        inputs: dict[str, pa.Table],
        provenance: Metadata,
        overwrite: bool = False,
    ) -> bool:
        """Whether a part has still to be made.

        Raises `UserError` where the part there was made otherwise and `overwrite` is off. The total
        of steps is written down alone: what reads it says so in its `provenance`.
        """
        path = self.part_path(stage, part)
        if not path.exists() or overwrite:
            return True
        there = read_metadata(path, stage)
        if there is None:
            log.warning("%s was made elsewhere; kept as it is", path)
            return False
        now = self._metadata(part, inputs, provenance)
        different = [key for key in now if key != "total_steps" and there.get(key) != now[key]]
        if different:
            raise _made_otherwise(path, there, now, different)
        return False

    def make(
        self,
        stage: str,
        part: int,
        inputs: dict[str, pa.Table],
        provenance: Metadata,
        work: Callable[[], pa.Table],
        overwrite: bool = False,
    ) -> bool:
        """Make a part where the step `lacks` it; whether it was made."""
        if not self.lacks(stage, part, inputs, provenance, overwrite):
            return False
        metadata = self._metadata(part, inputs, provenance)
        write_part(self.part_path(stage, part), stage, work(), metadata)
        return True

    def _metadata(self, part: int, inputs: dict[str, pa.Table], provenance: Metadata) -> Metadata:
        return {
            "step": self.step,
            "total_steps": self.total_steps,
            "part": part,
            "inputs": {name: content_hash(table) for name, table in inputs.items()},
            **provenance,
        }


def joined(parts: Sequence[Part]) -> pa.Table:
    """Parts of one stage, one after the other; `UserError` where they are of other rewards."""
    first, *others = parts
    for other in others:
        if not other.table.schema.equals(first.table.schema, check_metadata=True):
            raise UserError(
                f"{other.path} and {first.path.name} are of other rewards or other weights; score "
                "again with --overwrite"
            )
    return pa.concat_tables([part.table for part in parts])


def _made_otherwise(path: Path, there: Metadata, now: Metadata, keys: Iterable[str]) -> UserError:
    return UserError(
        f"{path} is there with {describe_difference(there, now, keys)}; "
        "add --overwrite to make it again"
    )


ABSENT = object()


def describe_difference(old: Metadata, new: Metadata, keys: Iterable[str]) -> str:
    """In words, the first setting in which two parts' metadata differ."""
    key, before, after = first_difference(old, new, keys)
    return f"another {one_line(key, 60)} ({_shown(before)}, now {_shown(after)})"


def _shown(value: Any) -> str:
    """A setting in a line, however long it is."""
    return one_line(repr(value), 100)


def first_difference(old: Metadata, new: Metadata, keys: Iterable[str]) -> tuple[str, Any, Any]:
    """The first setting below `keys` in which two parts' metadata differ, and its two values."""
    key = next(iter(keys))
    before, after = old.get(key), new.get(key)
    while isinstance(before, dict) and isinstance(after, dict):
        inner = next(  # another kind has other settings, which are no news then
            k
            for k in {"kind": None, **before, **after}
            if before.get(k, ABSENT) != after.get(k, ABSENT)
        )
        key, before, after = f"{key}.{inner}", before.get(inner), after.get(inner)
    return key, before, after


def check_aligned(base: Part, others: Iterable[tuple[str, Part]], base_stage: str) -> None:
    """Raise `UserError` unless the other stages' parts hold the rows of `base`, in its order.

    Per-token lists must be as long as those of `base`, and answers lie in its tokens. A part that
    recorded the hash of another `base_stage` was made from other data.
    """
    expected: str | None = None
    keys = KEYS[base_stage]
    base_R = token_counts(base_stage, base.table)
    for stage, other in others:
        if not other.table.select(keys).equals(base.table.select(keys)):
            raise UserError(
                f"{other.path} does not hold the rows of {base.path} in the same order; "
                f"make {stage} again from these {base_stage}"
            )
        other_R = token_counts(stage, other.table)
        if stage == "rewards":
            other_R = other.table["answer_end"].fill_null(-1).to_numpy()
            wrong = (base_R >= 0) & (other_R > base_R)
        else:
            wrong = (base_R >= 0) & (other_R >= 0) & (other_R != base_R)
        if wrong.any():
            row = int(np.argmax(wrong))
            raise UserError(
                f"{other.path}: row {row} has values of {other_R[row]} tokens, but {base.path} "
                f"has {base_R[row]} tokens there; make {stage} again from these {base_stage}"
            )
        recorded = (other.metadata or {}).get("inputs", {}).get(base_stage)
        if recorded is not None:
            expected = expected or content_hash(base.table)
            if recorded != expected:
                raise UserError(
                    f"{other.path} was made from other {base_stage} than {base.path}; "
                    f"make {stage} again with --overwrite"
                )


def mark_foreign(inputs: Mapping[str, Part]) -> Metadata:
    """What the metadata says of inputs made elsewhere; a warning for each such stage."""
    foreign = sorted(stage for stage, part in inputs.items() if part.metadata is None)
    for stage in foreign:
        folder = inputs[stage].path.parent
        log.warning("%s carries no castctl metadata: taken as it is", folder)
    return {"foreign": foreign} if foreign else {}


def agreed(metadata: Iterable[Metadata | None], key: str, default: Any) -> Any:
    """The value that the parts' metadata give for `key`, or `default` where none does."""
    return next((m[key] for m in metadata if m is not None and m.get(key) is not None), default)
