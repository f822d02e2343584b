"""What the stages of a step say of chosen completions and of their tokens."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from castctl.errors import UserError
from castctl.ragged import Floats
from castctl.report.html.choice import STAGES, Chosen
from castctl.shards.columns import nullable_floats
from castctl.shards.part import Part
from castctl.shards.stage import check_aligned

QUANTITIES = {
    "advantage": ("advantage", 0.0),
    "gap": ("gap, teacher \N{MINUS SIGN} policy (nats)", 0.0),
    "weight": ("weight", 1.0),
    "importance_perturb": ("importance, by replacing the token", None),
    "importance_grad": ("importance, by gradient", None),
    "entropy": ("entropy (nats)", None),
}
"""What a token may be coloured by: its label, and the value that says nothing. None: a size that
counts from zero."""


def read_chosen(chosen: Chosen, notes: list[str]) -> dict[str, pa.Table]:
    """The chosen rows of every stage that has this part and fits the rollouts.

    Later stages were not made from one that lies elsewhere, computed for a diagnosis.
    """
    folder = chosen.folder
    parts: dict[str, Part] = {}
    for stage in STAGES:
        if not folder.has(stage, chosen.part):
            continue
        try:
            part = folder.read(stage, chosen.part)
            for base, there in parts.items():
                if base not in folder.elsewhere:
                    check_aligned(there, [(stage, part)], base)
            parts[stage] = part
        except UserError as error:
            notes.append(str(error))
    if "rollouts" not in parts:
        return {}
    whole = len(chosen.rows_R) == parts["rollouts"].table.num_rows
    if whole and (np.diff(chosen.rows_R) == 1).all():
        return {stage: part.table for stage, part in parts.items()}
    rows = pa.array(chosen.rows_R)
    return {stage: part.table.take(rows) for stage, part in parts.items()}


def token_values(
    tables: dict[str, pa.Table], offsets: NDArray[np.int64], chosen: Chosen, notes: list[str]
) -> tuple[dict[str, Floats], Floats | None]:
    """The values (N) of each quantity that is there, NaN for none, and whether tokens were
    flipped (1 or 0)."""
    named = {
        "advantage": ("advantages", "advantages"), "weight": ("advantages", "weights"),
        "flipped": ("advantages", "flipped"), "policy": ("signals", "policy_logprobs"),
        "teacher": ("signals", "teacher_logprobs"), "entropy": ("signals", "entropies"),
        "importance_perturb": ("signals", "importance_perturb"),
        "importance_grad": ("signals", "importance_grad"),
    }  # fmt: skip
    found: dict[str, Floats] = {}
    for name, (stage, column) in named.items():
        if stage not in tables:
            continue
        try:
            values_N = nullable_floats(tables[stage], column, offsets)
        except ValueError as error:
            notes.append(f"{chosen.folder.part_path(stage, chosen.part)}: {error}")
            continue
        if values_N is not None:
            found[name] = values_N
    if "policy" in found and "teacher" in found:
        found["gap"] = found["teacher"] - found["policy"]
    return {name: found[name] for name in QUANTITIES if name in found}, found.get("flipped")
