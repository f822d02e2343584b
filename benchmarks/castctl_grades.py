"""Verdicts of castctl on the completions in a folder, when asked.

    python benchmarks/castctl_grades.py FOLDER

One worker, whose start is not counted and which remembers nothing.
"""

from __future__ import annotations

import json
import sys
from importlib.metadata import version
from pathlib import Path

from turns import Turns

from castctl.recipe.verifier import VerifierSettings
from castctl.verify.grader import grade
from castctl.verify.judge import Row, judge
from castctl.verify.pool import CheckPool


def main(folder: Path) -> None:
    told = [json.loads(line) for line in (folder / "rows.jsonl").open()]
    rows = [Row("", row["completion"], row["answer"], "stop") for row in told]
    turns, settings = Turns(), VerifierSettings(workers=1)
    while True:
        with CheckPool(settings) as pool:
            pool.run([(grade, ("1", "2"))])
            turns.wait()
            judged = judge(pool, settings, rows)
            verdicts = {"verdict": [each.verdict == "correct" for each in judged]}
            turns.tell(**turns.taken(), verdicts=verdicts, version=version("castctl"))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
