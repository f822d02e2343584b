"""How far from its centre a token's value has full colour: one scale for all of a run.

Colours of two completions compare only under one scale, and what rounding makes of equal log-probs
must not look like a difference.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import pyarrow as pa

from castctl.errors import UserError
from castctl.inspection.target import step_folders
from castctl.ragged import Floats
from castctl.shards.part import Metadata
from castctl.shards.stage import StepFolder

CENTRES = {"weight": 1.0}
"""The value that says nothing, where that is not 0."""

SOURCES = {
    "advantage": ("advantages", "advantages"),
    "weight": ("advantages", "weights"),
    "gap": ("signals", "teacher_logprobs"),
    "entropy": ("signals", "entropies"),
    "importance_perturb": ("signals", "importance_perturb"),
    "importance_grad": ("signals", "importance_grad"),
}
"""The stage and the column of each quantity; the gap is less the policy's log-prob."""

PARTS, TOKENS = 8, 4000
"""Parts that are read of a run, and tokens of each, evenly spread."""

SHARE = 0.99
"""Of the tokens, that full colour leaves inside; outliers do not set the scale."""

ROUNDING = {"float32": 4e-6, "float16": 2.5e-3, "bfloat16": 2e-2}
"""Nats that rounding makes of a log-prob, by the dtype that scored it."""

PALE = 10
"""How many times that has full colour, so that rounding alone stays pale."""

FREE = ("importance_perturb", "importance_grad")
"""Quantities whose size says nothing of rounding."""


def color_scales(steps: Sequence[StepFolder]) -> dict[str, float]:
    """The distance from the centre at full colour for each quantity of the run of these steps; 1
    where all values are at the centre."""
    run = _whole_run(steps)
    found: dict[str, list[Floats]] = {name: [] for name in SOURCES}
    rounding = 0.0
    for stage in ("advantages", "signals"):
        parts = [(folder, part) for folder in run for part in folder.parts(stage)]
        for at in sorted(set(np.linspace(0, len(parts) - 1, PARTS).round().astype(int).tolist())):
            if not parts:
                continue
            folder, part = parts[at]
            try:
                read = folder.read(stage, part)
            except UserError:  # whoever shows the part says so
                continue
            rounding = max(rounding, _rounding(read.metadata))
            for name, (source, column) in SOURCES.items():
                if source == stage:
                    found[name].append(_distances(read.table, name, column))
    return {
        name: _scale(np.concatenate(each), 0.0 if name in FREE else PALE * rounding)
        for name, each in found.items()
        if each
    }


def _whole_run(steps: Sequence[StepFolder]) -> list[StepFolder]:
    """All steps beside these; those given where they were put together for a diagnosis."""
    if not steps or any(step.elsewhere for step in steps):
        return list(steps)
    return step_folders(steps[0].path.absolute().parent)


def _rounding(metadata: Metadata | None) -> float:
    """What rounding makes, by the coarsest dtype that the log-probs were scored in."""
    made = (metadata or {}).get("signals")
    each = made.values() if isinstance(made, dict) else ()
    dtypes = (signal.get("dtype") for signal in each if isinstance(signal, dict))
    known = [ROUNDING[dtype] for dtype in dtypes if isinstance(dtype, str) and dtype in ROUNDING]
    return max(known, default=ROUNDING["float32"])


def _distances(table: pa.Table, name: str, column: str) -> Floats:
    """Distances from the centre of finite values, of tokens spread evenly; none where lists do not
    fit one another."""
    values = table.filter(table[column].is_valid())
    if name == "gap":
        values = values.filter(values["policy_logprobs"].is_valid())
    here = _flat(values, column)
    centre: float | Floats = CENTRES.get(name, 0.0)
    if name == "gap":
        centre = _flat(values, "policy_logprobs")
        if len(centre) != len(here):
            return np.zeros(0)
    sizes = np.abs(here - centre)
    sizes = sizes[np.isfinite(sizes)]
    return sizes[:: max(1, len(sizes) // TOKENS)]


def _flat(table: pa.Table, column: str) -> Floats:
    flat = table[column].combine_chunks().flatten().to_numpy(zero_copy_only=False)
    return np.asarray(flat, np.float64)


def _scale(sizes: Iterable[float], floor: float) -> float:
    """The size that most are within, in two digits, and never less than the floor."""
    known = np.asarray(sizes)
    if not known.any():
        return 1.0
    return max(float(f"{np.quantile(known, SHARE) or known.max():.2g}"), floor)
