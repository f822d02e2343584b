"""Rollouts as verl's `trainer.rollout_data_dir` has them (`RayPPOTrainer._write_generations` of
version 0.9): `1.jsonl` of the first step, an object a completion."""

from __future__ import annotations

import json
from pathlib import Path

from castctl.runs.run import Run
from castctl.writers.rollouts import prompt_texts, step_tables


def write(run: Run, step: int | None, folder: Path) -> None:
    """Write a file a step. The first is 1 there, and 0 here.

    `input` is the prompt without its special tokens, `gts` the reference answer, `score` the reward
    (null where nothing judged the completion); `acc` says whether it counts as right, and `pred`
    what was read as its answer, as verl's reward of mathematics logs them. Text is ASCII with
    escapes, so that nothing in a completion ends a line for any reader.
    """
    for at, rows in step_tables(run, step, ("rewards",)):
        columns = {
            "input": prompt_texts(run, at, rows, special=False),
            "output": rows["completion"].to_pylist(),
            "gts": rows["answer"].to_pylist(),
            "score": rows["reward"].to_pylist(),
            "step": [at.step + 1] * rows.num_rows,
            "acc": [verdict == "correct" for verdict in rows["verdict"].to_pylist()],
            "pred": rows["extracted"].to_pylist(),
        }
        with (folder / f"{at.step + 1}.jsonl").open("w", encoding="ascii") as stream:
            for values in zip(*columns.values(), strict=True):
                line = dict(zip(columns, values, strict=True))
                stream.write(json.dumps(line, allow_nan=False) + "\n")
