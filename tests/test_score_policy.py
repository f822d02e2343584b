"""Old log-probs that the update's own pass gives: what may not change by it, what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from safetensors.numpy import load_file

from castctl import diagnose
from castctl.cli.train import step_line
from castctl.errors import UserError
from castctl.progress import Silent
from castctl.recipe.recipe import Recipe
from castctl.runs.run import Run, create_run
from castctl.shards.part import read_metadata, write_part
from castctl.shards.stage import Shard
from castctl.stages.one_step import rollout_stage, score_stage
from castctl.stages.policies import policy_at
from castctl.stages.shape import shape_step
from castctl.stages.train.batch import TrainBatch, read_batch
from castctl.stages.train.metrics import value_of
from castctl.stages.train.state import new_state
from castctl.stages.train.update import UpdateStats, update
from runs import small_recipe, stage_tables, train_small

ALWAYS = "train.score_policy=always"
FEW = ("train.steps=2", "eval.k=1", "eval.limit=2", "seed=3")
LEVELS = ("token", "sequence", "geometric")


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    """A run whose policy is not scored, and the same with the scoring pass."""
    place = tmp_path_factory.mktemp("both")
    recipes = {"auto": small_recipe("grpo", *FEW), "always": small_recipe("grpo", *FEW, ALWAYS)}
    return {name: train_small(place / name, recipe)[0] for name, recipe in recipes.items()}


def test_who_needs_the_pass() -> None:
    def scores(method: str, *overrides: str) -> bool:
        return small_recipe(method, *overrides).scores_policy

    assert not any(scores(name) for name in ("grpo", "dapo", "gspo", "opsd", "sdpg", "oar-g"))
    assert all(scores(name) for name in ("cast", "rlsd", "rlrt", "rcc", "bicc", "clip-cov"))
    assert all(scores(name) for name in ("rl-zvp", "high-entropy"))
    for setting in (ALWAYS, "train.epochs=2", "train.minibatches=2", "train.reference_kl_tokens=9"):
        assert scores("grpo", setting)


def test_a_run_without_the_pass_learns_the_same(both: dict[str, Run]) -> None:
    weights = [load_file(run.checkpoint(2) / "model.safetensors") for run in both.values()]
    moved = load_file(both["auto"].checkpoint(1) / "model.safetensors")
    for name, tensor in weights[0].items():
        np.testing.assert_allclose(tensor, weights[1][name], rtol=0, atol=3e-5)
    assert max(np.abs(weights[0][name] - moved[name]).max() for name in moved) > 1e-3
    stages = ("rollouts", "rewards", "advantages")
    one, two = (stage_tables(run.step(0), stages) for run in both.values())
    for stage, table in one.items():  # a correction of rounding stands there in one of them
        kept = [name for name in table.column_names if name != "loss_weights"]
        assert table.select(kept).equals(two[stage].select(kept)), stage


def test_signals_are_there_and_say_nothing(both: dict[str, Run]) -> None:
    table = both["auto"].step(0).table("signals")
    assert table.num_rows == both["auto"].step(0).table("rollouts").num_rows
    assert all(table[name].null_count == len(table) for name in table.column_names[2:])
    assert both["always"].step(0).table("signals")["policy_logprobs"].null_count == 0


def test_the_metrics_tell_of_what_trained(both: dict[str, Run]) -> None:
    """Against the scoring pass: of the completions whose advantage is not 0."""
    row, scored = (run.metrics().to_pylist()[0] for run in both.values())
    assert "entropy_mean" not in row and "seconds_pass_policy" not in row
    assert "trained_entropy_mean" not in scored and scored["seconds_pass_policy"] > 0
    folder = both["always"].step(0)
    moved = [bool(np.any(a)) for a in folder.table("advantages")["advantages"].to_pylist()]
    entropies = folder.table("signals")["entropies"].to_pylist()
    expected = np.concatenate([e for e, m in zip(entropies, moved, strict=True) if m])
    assert 0 < len(expected) == row["trained_tokens"]
    assert row["trained_entropy_mean"] == pytest.approx(np.mean(expected), rel=1e-5)
    assert row["trained_sampler_kl"] < 1e-9 and row["trained_correction_effective_share"] > 0.999
    assert value_of(row, "entropy_mean") == row["trained_entropy_mean"]
    assert f"entropy {row['trained_entropy_mean']:.3f}" in step_line(row, 2)


def test_a_diagnosis_computes_what_was_left_out(both: dict[str, Run]) -> None:
    found = diagnose("engine", both["auto"], steps=[0], quiet=True)
    told = diagnose("engine", both["always"], steps=[0], quiet=True)
    assert found.numbers["tokens"] == told.numbers["tokens"] > 0
    assert found.numbers["largest"] == pytest.approx(told.numbers["largest"], abs=1e-5)


# The correction between sampler and scorer, inside the update


def sampled_apart(path: Path, recipe: Recipe) -> Run:
    """A step whose sampler said something else of every token, within what rounding explains."""
    run = create_run(recipe, str(path), "test")
    rollout_stage(run, 0, policy_at(run, 0), progress=Silent())
    folder, rng = run.step(0), np.random.default_rng(0)
    for number in folder.parts("rollouts"):
        table = folder.read("rollouts", number).table
        place = table.column_names.index("sampler_logprobs")
        told = [
            np.array(row) + rng.uniform(-0.2, 0.2) + rng.uniform(-0.1, 0.1, len(row))
            for row in table["sampler_logprobs"].to_pylist()
        ]
        told = pa.array([row.tolist() for row in told], pa.list_(pa.float32()))
        made = read_metadata(folder.part_path("rollouts", number), "rollouts") or {}
        write_part(
            folder.part_path("rollouts", number), "rollouts",
            table.set_column(place, "sampler_logprobs", told),
            {**made, "engine": {**made["engine"], "dtype": "bfloat16"}},
        )  # fmt: skip
    score_stage(run, 0, policy_at(run, 0), None, progress=Silent())
    shape_step(folder, recipe.method, longest=recipe.sampling.max_tokens, progress=Silent())
    return run


def gradient(run: Run, batch: TrainBatch | None = None) -> tuple[torch.Tensor, UpdateStats]:
    source = policy_at(run, 0)
    policy = source.load(run.recipe.model)
    state = new_state(run, policy, 0)
    batch = batch or read_batch(run.step(0), run.recipe.method, source.fingerprint)
    stats = update(policy, policy.model, state.optimizer, batch, run.recipe, 0)
    grads = [p.grad.flatten() for p in policy.model.model.parameters() if p.grad is not None]
    return torch.cat(grads), stats


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("kind", ["truncate", "mask"])
def test_the_update_corrects_as_shaping_does(tmp_path: Path, kind: str, level: str) -> None:
    low, high = {"token": (0.95, 1.1), "sequence": (0.01, 20), "geometric": (0.9, 1.1)}[level]
    bounds = [f"high={high}", *([f"low={low}"] if kind == "mask" else [])]
    settings = [f"method.correction.{each}" for each in (f"kind={kind}", f"level={level}", *bounds)]
    made = {
        name: sampled_apart(tmp_path / name, small_recipe("grpo", *FEW, *settings, *more))
        for name, more in {"auto": (), "always": (ALWAYS,)}.items()
    }
    (own, stats), (expected, _) = (gradient(run) for run in made.values())
    assert expected.abs().max() > 1e-4
    torch.testing.assert_close(own, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))
    none = small_recipe("grpo", *FEW, "method.correction.kind=none")
    plain, _ = gradient(sampled_apart(tmp_path / "none", none))
    assert (plain - expected).abs().max() > 1e-3 * expected.abs().max(), "it has an effect"

    # What it did to the tokens that trained, against the weights that shaping wrote of them.
    assert stats.reading is not None
    told = stats.reading.measures(batch_of(made["auto"]), made["auto"].recipe.method.correction)
    shaped = made["always"].step(0).table("advantages").to_pylist()
    weights = np.concatenate([r["loss_weights"] for r in shaped if np.any(r["advantages"])])
    touched = np.isclose(weights, high) if kind == "truncate" else weights == 0
    which = "capped" if kind == "truncate" else "masked"
    assert told[f"trained_correction_{which}_share"] == pytest.approx(touched.mean())
    assert 0 < touched.mean() < 1


def test_micro_batches_change_nothing(tmp_path: Path) -> None:
    settings = (*FEW, "method.correction.level=sequence")
    both = [small_recipe("grpo", *settings, f"train.microbatch_tokens={n}") for n in (64, 100_000)]
    run = sampled_apart(tmp_path / "run", both[0])
    (one, few), (other, many) = (gradient(Run(run.path, recipe)) for recipe in both)
    torch.testing.assert_close(one, other, rtol=0, atol=1e-6 * float(one.abs().max()))
    for found, expected in zip(
        vars(few.reading).values(), vars(many.reading).values(), strict=True
    ):
        np.testing.assert_allclose(found, expected, atol=1e-5)


# What is refused


@pytest.fixture(scope="module")
def apart(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return sampled_apart(tmp_path_factory.mktemp("apart") / "run", small_recipe("grpo", *FEW))


def batch_of(run: Run, **changed: Any) -> TrainBatch:
    batch = read_batch(run.step(0), run.recipe.method, policy_at(run, 0).fingerprint)
    assert batch.old_logprobs is None and batch.on_policy
    return replace(batch, **changed)


def untouched(run: Run, batch: TrainBatch, match: str, *overrides: str) -> None:
    """The update is refused, and no weight has moved."""
    recipe = small_recipe("grpo", *FEW, *overrides)
    policy = policy_at(run, 0).load(recipe.model)
    before = [p.detach().clone() for p in policy.model.model.parameters()]
    state = new_state(Run(run.path, recipe), policy, 0)
    with pytest.raises(UserError, match=match):
        update(policy, policy.model, state.optimizer, batch, recipe, 0)
    after = policy.model.model.parameters()
    assert all(torch.equal(one, two) for one, two in zip(before, after, strict=True))


def test_a_sampler_of_another_policy(apart: Run) -> None:
    sampler = batch_of(apart).sampler_logprobs
    assert sampler is not None
    untouched(apart, batch_of(apart, sampler_logprobs=sampler - 1), "step 1: .* under the sampler")
    made = {**batch_of(apart).sampled_by, "engine": {"dtype": "float32"}}
    untouched(apart, batch_of(apart, sampled_by=made), "0.01 is the most that rounding makes")
    unknown = np.full(len(sampler), np.nan, np.float32)  # nobody reported them
    gradient(apart, batch_of(apart, sampler_logprobs=unknown))


def test_ratios_that_may_differ_from_1(apart: Run) -> None:
    told = "no policy_logprobs, .*2 updates; run `castctl score --signals policy_logprobs"
    untouched(apart, batch_of(apart), told, "train.epochs=2")
    untouched(apart, batch_of(apart), told, "train.minibatches=2")
    stale = read_batch(apart.step(0), apart.recipe.method, "another model")
    untouched(apart, stale, "not known to be of the weights that train")


def test_parts_of_two_kinds(apart: Run, tmp_path: Path) -> None:
    recipe = small_recipe("grpo", *FEW)
    run = sampled_apart(tmp_path / "run", recipe)
    folder = run.step(0)
    for stage in ("signals", "advantages"):
        folder.part_path(stage, 1).unlink()
    score_stage(run, 0, policy_at(run, 0), {"entropies"}, progress=Silent(), shard=Shard(1, 2))
    assert folder.read("signals", 1).table["policy_logprobs"].null_count == 0
    shape_step(folder, recipe.method, longest=48, progress=Silent())
    with pytest.raises(UserError, match="policy_logprobs in some of its parts and not in others"):
        batch_of(run)


def test_rollouts_of_another_model_are_scored(tmp_path: Path) -> None:
    """By hand: nobody has read them under the weights that are to train."""
    run = create_run(small_recipe("grpo", *FEW), str(tmp_path / "run"), "test")
    rollout_stage(run, 0, policy_at(run, 0), progress=Silent())
    folder = run.step(0)
    for part in folder.parts("rollouts"):
        path = folder.part_path("rollouts", part)
        made = read_metadata(path, "rollouts") or {}
        write_part(
            path, "rollouts", folder.read("rollouts", part).table, made | {"model": "0" * 16}
        )
    score_stage(run, 0, policy_at(run, 0), None, progress=Silent())
    table = run.step(0).table("signals")
    assert table["policy_logprobs"].null_count == table["entropies"].null_count == 0
