"""Problems of several sources, each with a weight: read as one data set, drawn by their shares."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from castctl.data.files import SUFFIXES, split_name
from castctl.data.prompts import DROPPED, Prompts, load_prompts
from castctl.errors import UserError
from castctl.recipe.data import DataSettings


def source_names(data: DataSettings) -> list[str]:
    """What each source of a mixture is called, in the column `source`: a file's name or a hub id,
    and as much more as tells it from the others. `UserError` for one that stands there twice."""
    paths = [source.path for source in data.mix]
    short = [Path(p).name if split_name(Path(p))[1] in SUFFIXES else p for p in paths]
    whole = [" ".join(filter(None, (s.path, s.config, s.split, s.revision))) for s in data.mix]
    if twice := [path for path, name in zip(paths, whole, strict=True) if whole.count(name) > 1]:
        raise UserError(f"data.mix names {twice[0]} twice; name it once, with one weight")
    for longer in (paths, whole):
        counts = Counter(short)
        short = [long if counts[name] > 1 else name
                 for name, long in zip(short, longer, strict=True)]  # fmt: skip
    return short


def load_mixture(data: DataSettings) -> Prompts:
    """The prompts of all sources, one after the other; one that several have is the first one's.

    Rows are counted through the sources. Raises `UserError` as `load_prompts` does, and for a
    source that adds no prompt.
    """
    tables, rows, dropped, notes, revisions = [], [], [], [], []
    seen: set[str] = set()
    start = 0
    for source, name in zip(data.mix, source_names(data), strict=True):
        own = source.model_dump(exclude={"weight"})
        read = load_prompts(data.model_copy(update={**own, "mix": ()}))
        ids = read.table["prompt_id"].to_pylist()
        new = pa.array([key not in seen for key in ids])
        seen |= set(ids)
        if repeated := len(ids) - new.true_count:
            notes.append(f"{name}: {repeated} prompts are those of a source before it, left out")
        if repeated == len(ids):
            raise UserError(
                f"every prompt of {name} is one of a source before it; leave it out of data.mix"
            )
        table = read.table.filter(new)
        place = table.schema.get_field_index("source")
        tables.append(table.set_column(place, "source", pa.array([name] * len(table))))
        rows.append(pc.add(read.rows.filter(new), start))
        lost = read.dropped
        dropped.append(lost.set_column(0, DROPPED.field("row"), pc.add(lost["row"], start)))
        notes += [f"{name}: {note}" for note in read.notes]
        revisions += [f"{name}@{read.revision}"] if read.revision else []
        start += max([*read.rows.to_pylist(), *lost["row"].to_pylist()]) + 1
    first = tables[0].schema
    return replace(
        read,
        table=pa.concat_tables([table.cast(first) for table in tables]),
        rows=pa.concat_arrays([pa.array(each, pa.int64()) for each in rows]),
        dropped=pa.concat_tables(dropped),
        notes=notes,
        revision=" ".join(revisions) or None,
    )


def shares(data: DataSettings) -> NDArray[np.float64]:
    """The share of the prompts that each source has (S): its weight over the sum of all."""
    weights = np.array([source.weight for source in data.mix])
    return weights / weights.sum()


def sources_of(prompts: pa.Table, data: DataSettings) -> NDArray[np.int64]:
    """Which source of the mixture each prompt (P) comes from, counted from 0; `UserError` where it
    comes from none."""
    names = pa.array(source_names(data), pa.string())
    found = pc.index_in(prompts["source"], names)
    if found.null_count:
        raise UserError(
            f"{found.null_count} prompts come from no source of data.mix; start another run"
        )
    return found.to_numpy().astype(np.int64)


def require_enough(prompts: pa.Table, data: DataSettings, per_step: int) -> None:
    """Raise `UserError` where a source has fewer prompts than its share of a step of `per_step`:
    a step takes none twice."""
    having = np.bincount(sources_of(prompts, data), minlength=len(data.mix))
    most = np.ceil(np.round(shares(data) * per_step, 9)).astype(int)
    for name, has, takes in zip(source_names(data), having, most, strict=True):
        if takes > has:
            raise UserError(
                f"{name} has {has} prompts to train on, and its share of a step of {per_step} is "
                f"{takes}; lower its weight in data.mix, or train.prompts_per_step"
            )
