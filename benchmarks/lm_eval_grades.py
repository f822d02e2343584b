"""Verdicts of lm-evaluation-harness alone on the completions in a folder, when asked.

    python benchmarks/lm_eval_grades.py FOLDER

It runs in an environment of that tool's own. `exact_match` is its comparison by sympy, after the
Minerva paper's normalisation; `math_verify` its other one.
"""

from __future__ import annotations

import json
import sys
from importlib.metadata import version
from pathlib import Path

from lm_eval.tasks.minerva_math import utils
from turns import Turns


def main(folder: Path) -> None:
    rows = [json.loads(line) for line in (folder / "rows.jsonl").open()]
    turns = Turns()
    while True:
        turns.wait()
        verdicts = [
            utils.process_results(
                {
                    "answer": utils.normalize_final_answer(row["answer"]),
                    "solution": rf"\boxed{{{row['answer']}}}",
                },
                [row["completion"]],
            )
            for row in rows
        ]
        told = {name: [bool(each[name]) for each in verdicts] for name in verdicts[0]}
        turns.tell(**turns.taken(), verdicts=told, version=version("lm-eval"))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
