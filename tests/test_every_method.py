"""One set of rollouts shaped by every method, and the promises of a run kept by each of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import torch

from castctl import embedded
from castctl.methods import PRESETS
from castctl.progress import Silent
from castctl.runs.run import Run, adopt_run, create_run
from castctl.shards.columns import nullable_floats, ragged_column
from castctl.shards.part import content_hash, write_part
from castctl.shards.stage import Shard, StepFolder
from castctl.stages.one_step import rollout_stage, score_stage, train_stage
from castctl.stages.policies import policy_at
from castctl.stages.shape import shape_step
from castctl.stages.train.batch import read_batch
from castctl.stages.train.loop import train
from castctl.stages.train.metrics import Metrics
from runs import (
    assert_same_step,
    assert_same_weights,
    interrupted,
    metrics_without_time,
    small_recipe,
    train_small,
)

SORTED = [("prompt_id", "ascending"), ("sample", "ascending")]
SMALLER = ("train.steps=2", "train.prompts_per_step=4", "eval.k=1", "eval.limit=2")


@pytest.fixture(scope="module")
def rolled(tmp_path_factory: pytest.TempPathFactory) -> Run:
    recipe = small_recipe("grpo", *SMALLER, "sampling.max_tokens=64")
    run = create_run(recipe, str(tmp_path_factory.mktemp("one") / "run"), "test")
    rollout_stage(run, 0, policy_at(run, 0), progress=Silent())
    return run


@pytest.mark.parametrize("name", PRESETS)
def test_the_same_rollouts_shaped_by_every_method(rolled: Run, name: str, tmp_path: Path) -> None:
    method = small_recipe(name).method
    # Cut up below without its metadata, a part must hold what it left out.
    settings = rolled.recipe.train.model_copy(update={"score_rows": "all"})
    run = Run(rolled.path, rolled.recipe.model_copy(update={"method": method, "train": settings}))
    folder = run.step(0)
    score_stage(run, 0, policy_at(run, 0), None, progress=Silent(), overwrite=True)
    shape_step(folder, method, longest=64, progress=Silent(), overwrite=True)
    rollouts, rewards, shaped = (
        folder.table(stage) for stage in ("rollouts", "rewards", "advantages")
    )
    _, offsets = ragged_column(rollouts, "completion_token_ids")
    for key in ("prompt_id", "sample"):
        assert shaped[key].equals(rollouts[key])
    kept = shaped["kept"].to_numpy()
    kinds = np.array(shaped["group_kind"].to_pylist())
    base = shaped["base"].to_numpy()
    for stream in ("advantages", "weights", "distill_weights", "loss_weights"):
        flat = nullable_floats(shaped, stream, offsets)
        if stream == "advantages":
            assert flat is not None
        if flat is not None:
            assert len(flat) == offsets[-1] and np.isfinite(flat).all()
    assert pc.is_null(rewards["reward"]).to_numpy().sum() == 0
    drops = name in ("dapo", "high-entropy", "clip-cov")
    assert (kept == (kinds == "mixed")).all() if drops else kept.all()
    if name in ("opsd", "opd", "sdft", "sdpo"):
        assert (base == 0).all()
    elif name == "rl-zvp":
        silent = np.isin(kinds, ("all_correct", "all_wrong"))
        assert (np.abs(base[silent]) == np.float32(0.1)).all() and silent.any()
        assert nullable_floats(shaped, "advantages", offsets)[
            np.repeat(silent, np.diff(offsets))
        ].any()
    elif name in ("cast", "cast-public", "cast-port"):
        assert (base[kinds == "all_correct"] == 1).all() and (
            base[kinds == "all_wrong"] == -1
        ).all()
    else:
        assert (base[kinds != "mixed"] == 0).all()
    if name == "cast-public":  # another prompt keeps the gap alive where the weights are the same
        flipped = nullable_floats(shaped, "flipped", offsets)
        assert flipped is not None and flipped.any() and not flipped.all()
    distill = nullable_floats(shaped, "distill_weights", offsets)
    distilled = ("opsd", "opd", "sdft", "grpo+opsd", "sdpo", "sdpg-urkl", "sdpg-ufkl")
    assert (distill is not None) == (name in distilled)
    if "sdpg" in name:
        gate = np.repeat(base > 0, np.diff(offsets))
        np.testing.assert_allclose(distill, np.where(gate, np.float32(0.001), 0))
    batch = read_batch(folder, method)  # what trains can read it
    read = batch.old_logprobs  # another method's scoring may have left them there
    assert np.isfinite(read).all() if read is not None else not run.recipe.scores_policy
    _assert_parts_do_not_matter(run, tmp_path)


def _assert_parts_do_not_matter(run: Run, tmp_path: Path) -> None:
    """One group a part, in reverse, by two processes: every row is the same."""
    folder, method = run.step(0), run.recipe.method
    tables = {stage: folder.table(stage) for stage in ("rollouts", "rewards", "signals")}
    ids = tables["rollouts"]["prompt_id"].to_pylist()
    other = StepFolder(tmp_path / "step-00000", 0, folder.total_steps)
    for part, id in enumerate(reversed(list(dict.fromkeys(ids)))):
        rows = pa.array([row for row, each in enumerate(ids) if each == id])
        for stage, table in tables.items():
            write_part(other.part_path(stage, part), stage, table.take(rows), {})
    for index in (1, 0):
        shape_step(other, method, longest=64, progress=Silent(), shard=Shard(index, 2))
    both = [f.table("advantages").sort_by(SORTED) for f in (folder, other)]
    assert content_hash(both[0]) == content_hash(both[1])


OTHERS = ("dapo", "clip-cov", "opsd", "grpo+opsd", "rlsd", "rlrt", "sdpo", "sdpg-ufkl", "oar-p",
          "oar-g", "bicc+rcc")  # fmt: skip
"""With CAST, which has tests of its own, every slot's every way through the loop."""


@pytest.mark.slow
@pytest.mark.parametrize("name", OTHERS)
def test_stages_one_by_one_give_the_loop_s_tables_and_resuming_changes_nothing(
    name: str, tmp_path: Path
) -> None:
    drops = name in ("dapo", "clip-cov")
    rounds = ("method.zero_variance.max_rounds=2", "seed=7") if drops else ()
    recipe = small_recipe(name, *SMALLER, "train.part_size=4", *rounds)
    whole, _ = train_small(tmp_path / "whole", recipe)

    stopped = interrupted(tmp_path / "stopped", recipe)
    train(stopped, Silent(), lambda row: None)
    assert_same_step(whole.step(1), stopped.step(1))
    assert_same_weights(whole.checkpoint(2), stopped.checkpoint(2))
    rows = [Metrics(run.path / "metrics.parquet").rows for run in (whole, stopped)]
    assert metrics_without_time(rows[0]) == metrics_without_time(rows[1])

    if drops:  # a bare stage does one round
        return
    alone = adopt_run(tmp_path / "alone", recipe)
    source = policy_at(alone, 0)
    rollout_stage(alone, 0, source, progress=Silent())
    score_stage(alone, 0, source, None, progress=Silent())
    shape_step(alone.step(0), recipe.method, longest=48, progress=Silent())
    assert_same_step(whole.step(0), alone.step(0))
    train_stage(alone, 0, source, overwrite=False)
    assert_same_weights(whole.checkpoint(1), alone.checkpoint(1))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["snapshot", "ema", "initial", "current", "model"])
def test_a_privileged_teacher_of_every_kind_survives_a_resume(kind: str, tmp_path: Path) -> None:
    named = (f"method.teacher.path={embedded.ensure().model}",) if kind == "model" else ()
    few = (*SMALLER, "sampling.max_tokens=24")  # it learns from wrong completions too
    recipe = small_recipe("opsd", *few, f"method.teacher.kind={kind}", *named)
    assert recipe.method.teacher.privileged
    whole, _ = train_small(tmp_path / "whole", recipe)
    stopped = interrupted(tmp_path / "stopped", recipe)
    train(stopped, Silent(), lambda row: None)
    assert_same_weights(whole.checkpoint(2), stopped.checkpoint(2))


def test_a_current_teacher_under_the_same_prompt_is_no_divergence(tmp_path: Path) -> None:
    recipe = small_recipe(
        "sdpg", *SMALLER, "method.teacher.context=none", "train.steps=1",
        "method.distillation.gate=false",
    )  # fmt: skip
    assert any("gap is zero" in warning for warning in recipe.check_training())
    run, _ = train_small(tmp_path / "run", recipe)
    row = Metrics(run.path / "metrics.parquet").rows[-1]
    assert row["distilled_tokens"] > 0
    assert row["divergence_mean"] == pytest.approx(0, abs=1e-6)


def test_a_divergence_is_of_both_sides_at_the_sampling_temperature(tmp_path: Path) -> None:
    """Against the JSD of all logits over T = 0.7, by transformers' own forward passes: its terms
    are clipped one by one in the loss, and whole in the log."""
    clip = 0.02
    recipe = small_recipe(
        "opsd", *SMALLER, "sampling.temperature=0.7", "train.steps=1",
        f"method.distillation.clip={clip}",
    )  # fmt: skip
    run, _ = train_small(tmp_path / "run", recipe)
    row = Metrics(run.path / "metrics.parquet").rows[-1]
    model = policy_at(run, 0).load(recipe.model).model.model
    folder, total, bounded, tokens = run.step(0), 0.0, 0.0, 0
    rows = (folder.table(stage).to_pylist() for stage in ("rollouts", "signals"))
    for rollout, signal in zip(*rows, strict=True):
        completion = rollout["completion_token_ids"]
        sides = []
        for prompt in (rollout["prompt_token_ids"], signal["teacher_prompt_token_ids"]):
            with torch.no_grad():
                logits = model(torch.tensor([prompt + completion])).logits[0].double()
            sides.append(torch.softmax(logits[len(prompt) - 1 : -1] / 0.7, -1))
        p, q = sides
        m = (p + q) / 2
        terms = (q * (q / m).log() + p * (p / m).log()) / 2
        total += float(terms.sum())
        bounded += float(terms.clamp(max=clip).sum())
        tokens += len(completion)
    assert row["distilled_tokens"] == tokens
    assert row["divergence_mean"] == pytest.approx(total / tokens, rel=1e-3)
    assert row["loss"] == pytest.approx(bounded / tokens, rel=1e-3)
    assert bounded < total / 2


def test_dropped_groups_are_replaced_until_there_are_enough(tmp_path: Path) -> None:
    recipe = small_recipe(
        "dapo", *SMALLER, "train.steps=1", "sampling.n=2", "train.part_size=3",
        "method.zero_variance.max_rounds=3",
    )  # fmt: skip
    run, _ = train_small(tmp_path / "run", recipe)
    row = Metrics(run.path / "metrics.parquet").rows[-1]
    folder = run.step(0)
    rollouts, shaped = folder.table("rollouts"), folder.table("advantages")
    prompts = rollouts["prompt_id"].unique()
    assert len(prompts) == 4 * row["rounds"] and folder.parts("rollouts") == list(
        range(2 * row["rounds"])
    )
    kinds = np.array(shaped["group_kind"].to_pylist())
    assert (shaped["kept"].to_numpy() == (kinds == "mixed")).all()
    kept = len(shaped.filter(shaped["kept"])["prompt_id"].unique())
    assert kept >= 4 or row["rounds"] == 3
    before = shaped.slice(0, 8 * (row["rounds"] - 1))
    assert len(before.filter(before["kept"])["prompt_id"].unique()) < 4 or row["rounds"] == 1


def test_data_that_runs_out_ends_the_rounds(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    recipe = small_recipe("dapo", *SMALLER, "train.steps=1", "sampling.n=2", "data.limit=5")
    run, _ = train_small(tmp_path / "run", recipe)
    folder = run.step(0)
    prompts = folder.table("rollouts")["prompt_id"].unique()
    kept = folder.table("advantages")
    assert len(kept.filter(kept["kept"])["prompt_id"].unique()) < 4
    assert len(prompts) == 5 and "after every prompt of the data" in caplog.text
