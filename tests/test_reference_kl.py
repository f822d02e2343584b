"""How far the policy has moved, at a sample of a step's tokens and at all of them."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from castctl.explain.estimate import estimate_memory
from castctl.progress import Silent
from castctl.runs.run import Run
from castctl.shards.stage import Shard, StepFolder
from castctl.stages.draws import token_draws
from castctl.stages.one_step import score_stage
from castctl.stages.policies import policy_at, reference_of
from castctl.stages.train.reference_kl import measure_reference
from runs import small_recipe, train_small

FEW = ("train.steps=2", "eval.limit=2", "eval.k=1")


@pytest.fixture(scope="module")
def moved(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Two steps of GRPO, whose metrics read fifty tokens of each with the initial policy."""
    recipe = small_recipe("grpo", *FEW, "train.reference_kl_tokens=50", "seed=5")
    return train_small(tmp_path_factory.mktemp("moved") / "run", recipe)[0]


def terms_by_key(run: Run, folder: StepFolder) -> dict[tuple[str, int], list[float]]:
    """exp(d) - 1 - d, d = l_ref - l_old, at each token of a step, from the score stage's passes."""
    score_stage(run, folder.step, policy_at(run, folder.step), {"ref_logprobs"}, progress=Silent())
    found = {}
    for row in folder.table("signals").to_pylist():
        pairs = zip(row["ref_logprobs"], row["policy_logprobs"], strict=True)
        found[row["prompt_id"], row["sample"]] = [math.expm1(r - p) - (r - p) for r, p in pairs]
    return found


def test_a_sample_of_the_step_and_all_of_it(moved: Run) -> None:
    rows, folder = moved.metrics().to_pylist(), moved.step(1)
    assert rows[0]["kl_reference"] == pytest.approx(0, abs=1e-6), "it begins as the reference"
    terms = terms_by_key(moved, folder)
    draws = {
        key: int(token_draws([key[0]], [key[1]], np.ones(1, int), 5, 1, "reference_kl")[0])
        for key in terms
    }
    drawn: list[float] = []
    for key in sorted(terms, key=lambda key: draws[key]):
        if len(drawn) < 50:
            drawn += terms[key]
    everything = [term for values in terms.values() for term in values]
    assert 50 <= len(drawn) < len(everything) / 2
    assert rows[1]["kl_reference"] == pytest.approx(np.mean(drawn), rel=1e-4)
    assert np.mean(everything) > 1e-6

    source = policy_at(moved, 1)
    reference = reference_of(moved, source.load(moved.recipe.model))
    for tokens in (50, 10**6):
        settings = moved.recipe.train.model_copy(update={"reference_kl_tokens": tokens})
        recipe = moved.recipe.model_copy(update={"train": settings})
        read = drawn if tokens == 50 else everything
        for count in (1, 2):
            sums: list[np.ndarray] = []

            def add(own: list[np.ndarray], sums: list[np.ndarray] = sums) -> list[np.ndarray]:
                sums.append(own[0])
                return [np.sum(sums, axis=0)]

            for index in range(count):
                told = measure_reference(
                    folder, recipe, reference, Shard(index, count), add, Silent()
                )
            assert told["kl_reference"] == pytest.approx(np.mean(read), rel=1e-4), (tokens, count)
            assert np.sum(sums, axis=0)[1] == len(read), "each is read once"


def test_a_method_that_reads_the_reference_tells_it_of_every_token(tmp_path: Path) -> None:
    recipe = small_recipe("grpo", *FEW, "method.anchor.kind=k3", "train.reference_kl_tokens=50")
    assert recipe.reads_reference and not recipe.samples_reference
    run, _ = train_small(tmp_path / "run", recipe)
    terms = terms_by_key(run, run.step(1))
    everything = np.mean([term for values in terms.values() for term in values])
    row = run.metrics().to_pylist()[1]
    assert row["trained_kl_reference"] == pytest.approx(everything, rel=1e-4)


def test_it_is_off_by_default_and_its_memory_is_counted() -> None:
    plain, sampled = (small_recipe("grpo", f"train.reference_kl_tokens={n}") for n in (0, 50))
    assert not plain.reads_reference and sampled.samples_reference
    held = [estimate_memory(recipe).held["reference"] for recipe in (plain, sampled)]
    assert held[0] == 0 < held[1]
