"""Tokens and MB a second of writing, reading and hashing a part."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import measure
import numpy as np
import pyarrow as pa
import synthetic

from castctl.shards.part import content_hash, read_part, write_part

COUNTED = {"rollouts": "completion_token_ids", "signals": "policy_logprobs"}


def main() -> None:
    parser = measure.options(__doc__, repeats=9)
    parser.add_argument("--groups", type=int, default=16, help="in the part")
    parser.add_argument("-n", type=int, default=8, help="completions of a group")
    parser.add_argument("--tokens", type=int, default=1024, help="of a completion, on average")
    parser.add_argument("--folder", type=Path, help="where to write; a temporary one if left out")
    options = measure.parse(parser)
    if options.quick:
        options.groups, options.tokens = 2, 64

    tables = synthetic.random_part(
        np.random.default_rng(0), options.groups, options.n, options.tokens
    )
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        parts = {
            stage: measure_part(Path(folder), stage, tables[stage], options.repeats)
            for stage in COUNTED
        }
    measure.report("shards", options.repeats, groups=options.groups, n=options.n, **parts)


def measure_part(folder: Path, stage: str, table: pa.Table, repeats: int) -> dict[str, Any]:
    """Rates of one stage's part; a MB is a million bytes in memory."""
    path = folder / stage / "part-00000.parquet"
    works = {
        "write": measure.timed(lambda: write_part(path, stage, table, {"step": 0})),
        "read": measure.timed(lambda: read_part(path, stage)),
        "hash": measure.timed(lambda: content_hash(table)),
    }
    seconds = {
        name: measure.median(all_) for name, all_ in measure.interleaved(works, repeats).items()
    }
    tokens = synthetic.tokens_of(table, COUNTED[stage])
    return {
        "tokens": tokens,
        "memory_mb": table.nbytes / 1e6,
        "file_mb": path.stat().st_size / 1e6,
        "seconds": seconds,
        "tokens_per_second": {name: tokens / spent for name, spent in seconds.items()},
        "mb_per_second": {name: table.nbytes / 1e6 / spent for name, spent in seconds.items()},
    }


if __name__ == "__main__":
    main()
