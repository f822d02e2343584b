"""One step's update: what may not change it, and what must."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from castctl.errors import UserError
from castctl.models.language_model import LanguageModel
from castctl.recipe.recipe import Recipe
from castctl.runs.run import Run
from castctl.shards.part import write_part
from castctl.shards.stage import StepFolder
from castctl.stages import one_step
from castctl.stages.policies import policy_at
from castctl.stages.train import loop
from castctl.stages.train.batch import TrainBatch, read_batch
from castctl.stages.train.state import new_state
from castctl.stages.train.update import UpdateStats, update
from runs import small_recipe, train_small

Weights = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A small CAST run; its step 1 has a gap."""
    return train_small(tmp_path_factory.mktemp("update") / "run")[0]


@pytest.fixture(scope="module")
def batch(run: Run) -> TrainBatch:
    return read_batch(run.step(1), run.recipe.method)


def test_a_batch_says_whether_the_policy_has_scored_it_itself(run: Run, tmp_path: Path) -> None:
    folder, method, name = run.step(1), run.recipe.method, policy_at(run, 1).fingerprint
    assert read_batch(folder, method, name).on_policy
    for other in (None, "another", policy_at(run, 0).fingerprint):
        assert not read_batch(folder, method, other).on_policy
    copied = StepFolder(tmp_path / "step-00001", 1, folder.total_steps)
    for stage in ("rollouts", "signals", "advantages"):
        for part in folder.parts(stage):
            write_part(copied.part_path(stage, part), stage, folder.read(stage, part).table, {})
    assert not read_batch(copied, method, name).on_policy  # nobody says who scored it


def test_loop_and_stage_know_that_the_policy_has_scored_it_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[bool] = []

    def seeing(*given: Any, **named: Any) -> UpdateStats:
        seen.extend(each.on_policy for each in given if isinstance(each, TrainBatch))
        return update(*given, **named)

    for module in (loop, one_step):
        monkeypatch.setattr(module, "update", seeing)
    few = ("train.steps=2", "train.prompts_per_step=2", "sampling.max_tokens=16", "eval.limit=1")
    made, _ = train_small(tmp_path / "run", small_recipe("grpo", *few, "eval.k=1"))
    one_step.train_stage(made, 1, policy_at(made, 1), overwrite=True)
    assert seen == [True] * 3


def update_in_float64(
    run: Run, batch: TrainBatch, recipe: Recipe
) -> tuple[LanguageModel, UpdateStats]:
    """The initial policy after an update, its gradient still there, and the update's numbers."""
    trained = policy_at(run, 0).load(recipe.model)
    policy = trained.model
    policy.model.double()
    policy.dtype = torch.float64
    state = new_state(Run(run.path, recipe), trained, 0)
    return policy, update(trained, policy, state.optimizer, batch, recipe, step=1)


def updated(run: Run, batch: TrainBatch, recipe: Recipe) -> tuple[Weights, UpdateStats]:
    """Weights after an update of the initial policy, and its numbers."""
    policy, stats = update_in_float64(run, batch, recipe)
    return {n: p.detach().clone() for n, p in policy.model.named_parameters()}, stats


def gradient(run: Run, batch: TrainBatch, recipe: Recipe) -> torch.Tensor:
    """The gradient of an update, flat."""
    policy, _ = update_in_float64(run, batch, recipe)
    return torch.cat([p.grad.flatten() for p in policy.model.parameters()])


def distance(one: Weights, two: Weights) -> float:
    return max(float((one[name] - two[name]).abs().max()) for name in one)


@pytest.mark.parametrize("aggregation", ["token_mean", "sequence_mean", "constant"])
def test_what_is_masked_counts_in_the_denominators_still(
    run: Run, batch: TrainBatch, aggregation: str
) -> None:
    """As if it had no advantage, and not as if it were not there."""
    recipe = small_recipe("cast", f"method.surrogate.aggregation={aggregation}")
    moved = [r for r in range(len(batch.prompts)) if batch.advantages[tokens(batch, r)].any()]
    masked = moved[::2]
    weights, advantages = batch.loss_weights.copy(), batch.advantages.copy()
    for row in masked:
        weights[tokens(batch, row)] = advantages[tokens(batch, row)] = 0
    kept = batch.kept_R & ~np.isin(np.arange(len(batch.kept_R)), masked)
    found = gradient(run, replace(batch, loss_weights=weights), recipe)
    silent = gradient(run, replace(batch, advantages=advantages), recipe)
    assert found.abs().max() > 0 and torch.allclose(found, silent, rtol=1e-9, atol=1e-14)
    dropped = gradient(run, replace(batch, kept_R=kept), recipe)
    assert not torch.allclose(found, dropped, rtol=1e-2)


def tokens(batch: TrainBatch, row: int) -> slice:
    return slice(batch.offsets[row], batch.offsets[row + 1])


@pytest.mark.parametrize("aggregation", ["token_mean", "sequence_mean", "constant"])
def test_micro_batches_do_not_change_the_gradient(
    run: Run, batch: TrainBatch, aggregation: str
) -> None:
    setting = f"method.surrogate.aggregation={aggregation}"
    whole = gradient(run, batch, small_recipe("cast", setting))
    split = gradient(run, batch, small_recipe("cast", setting, "train.microbatch_tokens=64"))
    # transformers computes norms and rotations in float32 whatever the weights are.
    assert float((whole - split).norm() / whole.norm()) < 1e-7


def test_distilled_rows_among_others_do_not_change_the_gradient(
    run: Run, batch: TrainBatch
) -> None:
    """A teacher with prompts of its own reads some rows of a batch, however it is cut up."""
    rows = len(batch.prompts)
    weights = np.repeat(np.arange(rows) % 3 != 0, np.diff(batch.offsets)) * np.float32(0.7)
    longer = [np.concatenate([prompt, prompt]) for prompt in batch.prompts]
    distilled = replace(batch, distill_weights=weights, teacher_prompts=longer)
    settings = ("method.distillation.kind=reverse_kl", "method.teacher.context=answer")
    whole = gradient(run, distilled, small_recipe("cast", *settings))
    split = gradient(run, distilled, small_recipe("cast", *settings, "train.microbatch_tokens=64"))
    assert float((whole - split).norm() / whole.norm()) < 1e-7
    plain = gradient(run, batch, small_recipe("cast"))
    assert float((whole - plain).norm() / plain.norm()) > 1e-3


def test_checkpointed_activations_and_small_chunks_do_not_change_it(
    run: Run, batch: TrainBatch
) -> None:
    plain, _ = updated(run, batch, small_recipe())
    thrifty, _ = updated(
        run,
        batch,
        small_recipe("cast", "train.gradient_checkpointing=true", "train.head_chunk_tokens=7"),
    )
    assert distance(plain, thrifty) < 1e-9


def test_rows_that_are_not_kept_are_as_if_they_were_not_there(run: Run, batch: TrainBatch) -> None:
    kept = batch.kept_R.copy()
    kept[::3] = False
    garbage = np.where(np.repeat(~kept, np.diff(batch.offsets)), 1e6, batch.advantages)
    masked = replace(batch, kept_R=kept, advantages=garbage.astype(np.float32))
    clean = replace(batch, kept_R=kept)
    assert (
        distance(updated(run, masked, small_recipe())[0], updated(run, clean, small_recipe())[0])
        == 0
    )


def test_rows_without_an_advantage_count_in_the_denominator(run: Run, batch: TrainBatch) -> None:
    """Skipped in the forward pass, they halve the loss all the same."""
    recipe = small_recipe("cast", "method.surrogate.aggregation=constant")
    first = batch.group_of_row < 2
    lone = replace(batch, kept_R=batch.kept_R & first)
    silent = np.where(np.repeat(first, np.diff(batch.offsets)), batch.advantages, 0)
    both = replace(batch, advantages=silent.astype(np.float32))
    alone, together = (updated(run, b, recipe)[1] for b in (lone, both))
    share = lone.kept_R.sum() / both.kept_R.sum()
    assert together.losses[0] == pytest.approx(alone.losses[0] * share, rel=1e-9)
    assert together.tokens == alone.tokens


def test_several_updates_a_batch_leave_the_policy_that_sampled(run: Run, batch: TrainBatch) -> None:
    recipe = small_recipe("cast", "train.epochs=2", "train.minibatches=2")
    weights, stats = updated(run, batch, recipe)
    row = stats.row()
    assert row["optimizer_steps"] == 4
    assert row["kl_old_new"] > 0 and np.isfinite(row["clip_share"])
    assert distance(weights, updated(run, batch, recipe)[0]) == 0


def test_an_anchor_and_an_entropy_bonus_reach_every_token(run: Run, batch: TrainBatch) -> None:
    recipe = small_recipe("cast", "method.anchor.kind=k3")
    with pytest.raises(UserError, match="ref_logprobs"):
        read_batch(run.step(1), recipe.method)
    anchored = replace(batch, ref_logprobs=batch.old_logprobs)
    assert updated(run, anchored, recipe)[1].tokens == int(np.diff(batch.offsets).sum())
    bonus = small_recipe("cast", "method.surrogate.entropy_bonus=0.1")
    assert distance(updated(run, batch, bonus)[0], updated(run, batch, small_recipe())[0]) > 0


def test_a_loss_that_is_not_finite_leaves_the_weights_alone(run: Run, batch: TrainBatch) -> None:
    broken = replace(batch, loss_weights=np.full_like(batch.loss_weights, np.nan))
    trained = policy_at(run, 0).load(run.recipe.model)
    policy = trained.model
    before = {n: p.detach().clone() for n, p in policy.model.named_parameters()}
    state = new_state(run, trained, 0)
    with pytest.raises(UserError, match="stopped before the weights"):
        update(trained, policy, state.optimizer, broken, run.recipe, step=1)
    assert distance(before, {n: p.detach() for n, p in policy.model.named_parameters()}) == 0
