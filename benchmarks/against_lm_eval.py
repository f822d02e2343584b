"""Completions graded a CPU second by castctl and lm-evaluation-harness in turn, and the verdicts.

    python benchmarks/against_lm_eval.py FOLDER

reads the golds of the benchmarks in FOLDER. A completion says an answer as both tools look for it,
in a box and after `Final Answer:`. Told are the shares judged right of three kinds: the gold
itself, the gold written otherwise, and the gold of another problem.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import measure
import numpy as np
from peer_environment import LM_EVAL, python_with
from rewritings import REWRITINGS, as_it_is, read_golds
from sides import turns

KINDS = ("right", "written otherwise", "wrong")
QUICK = (r"\frac{1}{2}", "3", r"2\sqrt{3}", "(1,2)")


def main() -> None:
    parser = measure.options(__doc__, repeats=3)
    parser.add_argument("folder", type=Path, nargs="?", help="of the benchmarks")
    parser.add_argument("--python", type=Path, help="of an environment with lm-eval[math]")
    parser.add_argument("--problems", type=int, default=200, help="golds, drawn at random")
    parser.add_argument("--alone", action="store_true", help="castctl alone")
    options = measure.parse(parser)
    if options.folder is None and not options.quick:
        parser.error("name the folder of the benchmarks")
    golds = list(QUICK) if options.quick else list(dict.fromkeys(read_golds(options.folder)))
    drawn = np.random.default_rng(0).permutation(len(golds))[: options.problems]
    sides = {"castctl": (Path(sys.executable), "castctl_grades.py")}
    if not options.alone:
        sides["lm_eval"] = (options.python or python_with(LM_EVAL), "lm_eval_grades.py")
    rows = rows_of([golds[each] for each in drawn])
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        rounds = graded(Path(folder), sides, options.repeats)
    seconds = {side: [each["cpu_seconds"] for each in told] for side, told in rounds.items()}
    report: dict[str, Any] = {
        side: {
            "version": told[0]["version"],
            "graded_per_cpu_second": len(rows) / measure.median(seconds[side]),
            "judged_right": {
                by: {kind: share(rows, verdicts, kind) for kind in KINDS}
                for by, verdicts in told[0]["verdicts"].items()
            },
        }
        for side, told in rounds.items()
    }
    if "lm_eval" in sides:
        report |= measure.ratio(seconds["lm_eval"], seconds["castctl"])
    measure.report("against_lm_eval", options.repeats, completions=len(rows), **report)


def rows_of(golds: list[str]) -> list[dict[str, str]]:
    """Of each gold a completion that gives it, one that writes it otherwise where that can be, and
    one that gives the next."""
    rewrites = [rewrite for rewrite in REWRITINGS.values() if rewrite is not as_it_is]
    rows = []
    for at, gold in enumerate(golds):
        said = {"right": gold, "wrong": golds[(at + 1) % len(golds)]}
        others = [text for rewrite in rewrites for text in rewrite(gold) if text != gold]
        if others:
            said["written otherwise"] = others[at % len(others)]
        for kind, answer in said.items():
            completion = (
                rf"So it is $\boxed{{{answer}}}$."
                f"\nFinal Answer: The final answer is ${answer}$. I hope it is correct."
            )
            rows.append({"kind": kind, "answer": gold, "completion": completion})
    return rows


def graded(
    folder: Path, sides: dict[str, tuple[Path, str]], repeats: int
) -> dict[str, list[dict[str, Any]]]:
    """What each side tells of each round, after one that does not count."""
    rounds: dict[str, list[dict[str, Any]]] = {side: [] for side in sides}
    with turns(folder, sides) as children:
        for number in range(repeats + 1):
            for side, child in children.items():
                told = child.step()
                if number:
                    rounds[side].append(told)
    return rounds


def share(rows: list[dict[str, str]], verdicts: list[bool], kind: str) -> float:
    """The share judged right of the completions of a kind."""
    return float(np.mean([v for row, v in zip(rows, verdicts, strict=True) if row["kind"] == kind]))


if __name__ == "__main__":
    main()
