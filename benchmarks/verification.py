"""Checks a second through the killable workers: one and two of them, with and without repeats."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import measure
import numpy as np

from castctl.recipe.verifier import VerifierSettings
from castctl.verify.grader import grade
from castctl.verify.judge import Row, judge
from castctl.verify.pool import CheckPool

N = 8
REPEATED = (0, 0, 0, 0, 1, 1, 1, 2)
"""Which answer each completion of a prompt gives: half are right, most of the others agree."""
DISTINCT = tuple(range(N))


def main() -> None:
    parser = measure.options(__doc__, repeats=5)
    parser.add_argument("--problems", type=Path, help="JSONL with `answer`; else numbers are made")
    parser.add_argument("--prompts", type=int, default=100, help="each has 8 completions")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    options = measure.parse(parser)
    if options.quick:
        options.prompts = 8

    rng = np.random.default_rng(0)
    answers = read_answers(options.problems) if options.problems else make_answers(rng)
    rows = {
        "distinct": make_rows(rng, answers, options.prompts, DISTINCT),
        "repeated": make_rows(rng, answers, options.prompts, REPEATED),
    }
    seconds = measure.interleaved(
        {
            f"{name}_{workers}_workers": checker(given, workers)
            for workers in options.workers
            for name, given in rows.items()
        },
        options.repeats,
    )
    few, many = (f"_{count}_workers" for count in (options.workers[0], options.workers[-1]))
    measure.report(
        "verification",
        options.repeats,
        problems=options.problems.name if options.problems else "numbers",
        checks=options.prompts * N,
        checks_per_second={
            name: options.prompts * N / measure.median(spent) for name, spent in seconds.items()
        },
        workers_speedup=measure.ratio(seconds["distinct" + few], seconds["distinct" + many]),
        repeats_speedup=measure.ratio(seconds["distinct" + few], seconds["repeated" + few]),
    )


def read_answers(file: Path) -> list[str]:
    """The distinct answers of a file."""
    lines = file.read_text(encoding="utf-8").splitlines()
    return list(dict.fromkeys(str(json.loads(line)["answer"]) for line in lines))


def make_answers(rng: np.random.Generator) -> list[str]:
    """Decimals and fractions, half and half; whole numbers would need no worker."""
    decimals = [f"{i}.5" for i in rng.permutation(10_000)[:250]]
    fractions = [rf"\frac{{{a}}}{{{b}}}" for a, b in rng.integers(2, 1000, (250, 2))]
    return list(dict.fromkeys(decimals + fractions))


def make_rows(
    rng: np.random.Generator, answers: list[str], prompts: int, pattern: tuple[int, ...]
) -> list[Row]:
    """Completions of `prompts` problems; the first of a prompt's answers is the right one."""
    rows = []
    for number in range(prompts):
        right = answers[number % len(answers)]
        others = [answer for answer in rng.permutation(answers)[:N] if answer != right]
        given = [right, *others]
        rows += [Row("", rf"So it is \boxed{{{given[i]}}}.", right, "stop") for i in pattern]
    return rows


def checker(rows: list[Row], workers: int) -> Callable[[], float]:
    """Judges all rows in workers that remember nothing; their start is not timed."""
    settings = VerifierSettings(workers=workers)

    def run() -> float:
        with CheckPool(settings) as pool:
            pool.run([(grade, ("1", str(2 + worker))) for worker in range(workers)])
            began = time.perf_counter()
            judge(pool, settings, rows)
            return time.perf_counter() - began

    return run


if __name__ == "__main__":
    main()
