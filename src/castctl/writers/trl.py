"""Rollouts as TRL's `log_completions` writes them (`GRPOTrainer.log` of version 1.16).

`completions/completions_00001.parquet` has a row a completion: `step`, `prompt`, `completion`, a
column a reward function by its name, those that a reward function logs, and `advantage`.
"""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from castctl.runs.run import Run
from castctl.writers.rollouts import prompt_texts, step_tables


def write(run: Run, step: int | None, folder: Path) -> None:
    """Write a file a step. The first is 1 there, and 0 here.

    `accuracy_reward` is the reward (float64; null where nothing judged the completion), `solution`
    the reference answer, which TRL's reward of that name logs, and `advantage` the completion's
    own (float64), before a method shapes its tokens. The prompt is the text with its special
    tokens, as in a data set that is no conversation.
    """
    (folder / "completions").mkdir()
    for at, rows in step_tables(run, step, ("rewards", "advantages")):
        number = at.step + 1
        table = pa.table(
            {
                "step": pa.array([number] * rows.num_rows, pa.int64()),
                "prompt": pa.array(prompt_texts(run, at, rows, special=True), pa.string()),
                "completion": rows["completion"],
                "accuracy_reward": rows["reward"].cast(pa.float64()),
                "solution": rows["answer"],
                "advantage": rows["base"].cast(pa.float64()),
            }
        )
        pq.write_table(table, folder / "completions" / f"completions_{number:05d}.parquet")
