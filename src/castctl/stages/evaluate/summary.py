"""What an evaluation found, from its judged samples alone."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import asdict

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from castctl.errors import UserError
from castctl.stages.evaluate.results import Result
from castctl.stages.evaluate.statistics import Estimate, majority, pass_at_k, problem_share
from castctl.stages.groups import group_numbers
from castctl.verify.judge import equivalent
from castctl.verify.plain import same_plainly
from castctl.verify.pool import CheckPool

Answers = Sequence[str | None]
Pair = tuple[str, str]


def summarise(
    rewards: pa.Table,
    lengths_R: NDArray[np.int64] | None,
    truncated_R: NDArray[np.bool_] | None,
    k: int,
    pool: CheckPool,
    task: str,
) -> Result:
    """avg@k, unbiased pass@1..k and maj@k with intervals over problems, truncation and length.

    `rewards` holds `prompt_id`, `reward` (null: not judged), `extracted` (null: no answer) and
    `verdict` of R = P * k samples; a problem's samples stand together. `lengths_R` are completion
    lengths in tokens and `truncated_R` says which were cut; what is not known comes back as None.
    A sample is right where its verdict is `correct`, and avg@k the mean reward. Every interval is
    over problems: more samples of the same ones tell nothing of others.

    Raises `UserError` where a problem has more or fewer than `k` samples or one is not judged.
    """
    problems = group_numbers(rewards["prompt_id"])
    samples = np.bincount(problems)
    scores = rewards["reward"].to_numpy(zero_copy_only=False).astype(np.float64)
    if not len(samples) or (samples != k).any() or np.isnan(scores).any():
        raise UserError(
            f"{task}: a problem has {samples.min(initial=k)} to {samples.max(initial=0)} samples "
            f"and {int(np.isnan(scores).sum())} were not judged, so there is no avg@{k}; "
            "run it again with --overwrite"
        )
    assert (np.diff(problems) >= 0).all(), "a problem's samples stand together"
    means_P = scores.reshape(-1, k).mean(1)
    right_PK = correct(rewards).reshape(-1, k)
    correct_P = right_PK.sum(1)
    prompt_ids = rewards["prompt_id"].to_pylist()[::k]
    answers = rewards["extracted"].to_pylist()
    answers_P = [answers[start : start + k] for start in range(0, len(answers), k)]
    verdicts = zip(answers, rewards["verdict"].to_pylist(), strict=True)
    hanging = {answer for answer, verdict in verdicts if verdict in ("timeout", "error")}
    return {
        "problems": len(samples),
        "k": k,
        "avg": asdict(problem_share(means_P)),
        "pass": {
            str(m): asdict(problem_share(pass_at_k(correct_P, k, m))) for m in range(1, k + 1)
        },
        "maj": asdict(_majority_accuracy(answers_P, right_PK, hanging, pool)),
        "truncated_share": None if truncated_R is None else float(truncated_R.mean()),
        "length_mean": None if lengths_R is None else float(lengths_R.mean()),
        "by_problem": dict(zip(prompt_ids, means_P.tolist(), strict=True)),
    }


def correct(rewards: pa.Table) -> NDArray[np.bool_]:
    """Which samples have the verdict `correct`."""
    return np.asarray(rewards["verdict"].to_numpy(zero_copy_only=False) == "correct", bool)


def _majority_accuracy(
    answers_P: list[Answers],
    right_PK: NDArray[np.bool_],
    hanging: Collection[str | None],
    pool: CheckPool,
) -> Estimate:
    """Share of problems whose majority is right.

    Right answers all equal the gold, so only wrong ones are compared with one another. The
    `hanging` ones, whose check ended in no value, would end so again: they equal none but their
    own text.
    """
    alike_P: list[list[Pair]] = []
    open_P: list[list[Pair]] = []
    for answers, right in zip(answers_P, right_PK, strict=True):
        given = [(a, ok) for a, ok in zip(answers, right, strict=True) if a is not None]
        golds = dict.fromkeys(answer for answer, ok in given if ok)
        wrong = dict.fromkeys(a for a, _ in given if a not in golds and a not in hanging)
        alike_P.append(list(itertools.pairwise(golds)))
        open_P.append(list(_undecided(wrong)))
    pairs = list(dict.fromkeys(itertools.chain.from_iterable(open_P)))
    equal = dict(zip(pairs, equivalent(pool, pairs), strict=True))
    hits = []
    for answers, right, alike, unsure in zip(answers_P, right_PK, alike_P, open_P, strict=True):
        winners = majority(answers, [*alike, *(pair for pair in unsure if equal[pair])])
        hits.append(float(right[winners].any()))
    return problem_share(np.array(hits))


def _undecided(texts: Iterable[str]) -> Iterator[Pair]:
    """The pairs that need a grader: two whole numbers do not."""
    for pair in itertools.combinations(texts, 2):
        if same_plainly(*pair) is not False:
            yield pair
