"""How often the 95 % interval of an evaluation holds the mean over the population of problems.

Problems have Beta difficulty and 8 samples each; the truth is the Beta's mean.
"""

from __future__ import annotations

import measure
import numpy as np

from castctl.stages.evaluate.statistics import problem_share

SAMPLES = 8
DIFFICULTIES = {"a third solved": (1.0, 2.0), "two modes": (0.3, 0.7), "a tenth solved": (0.2, 1.8)}


def main() -> None:
    parser = measure.options(__doc__, repeats=1)
    parser.add_argument("--draws", type=int, default=10_000)
    options = measure.parse(parser)
    draws = 200 if options.quick else options.draws
    shares = {
        f"{problems} problems": {
            name: coverage(problems, difficulty, draws) for name, difficulty in DIFFICULTIES.items()
        }
        for problems in (200, 30)
    }
    measure.report("coverage", options.repeats, draws=draws, samples=SAMPLES, share=shares)


def coverage(problems: int, difficulty: tuple[float, float], draws: int) -> float:
    """Share of the intervals that hold the truth."""
    rng = np.random.default_rng(0)
    truth = difficulty[0] / sum(difficulty)
    hits = 0
    for _ in range(draws):
        estimate = problem_share(rng.binomial(SAMPLES, rng.beta(*difficulty, problems)) / SAMPLES)
        assert estimate.low is not None and estimate.high is not None
        hits += estimate.low <= truth <= estimate.high
    return hits / draws


if __name__ == "__main__":
    main()
