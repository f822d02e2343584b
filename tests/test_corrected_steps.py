"""The correction in the stages: what shape writes, what is measured, what nothing trains on, and
runs of before it was a slot."""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import yaml

from castctl.errors import UserError
from castctl.methods import MethodSettings
from castctl.methods.correction import NoCorrection
from castctl.progress import Silent
from castctl.ragged import offsets_of
from castctl.runs.run import Run, create_run, open_run
from castctl.shards.part import read_metadata, write_part
from castctl.shards.stage import StepFolder
from castctl.stages.measures import measure_step
from castctl.stages.one_step import rollout_stage, score_stage, train_stage
from castctl.stages.policies import policy_at
from castctl.stages.shape import shape_step
from castctl.stages.train.batch import read_batch
from random_steps import write_step
from runs import (
    assert_goes_on,
    interrupted,
    small_recipe,
)

CORRECTIONS: dict[str, dict[str, Any]] = {
    "default": {},
    "capped": {"high": 1.2},
    "tokens": {"kind": "mask", "low": 0.8, "high": 1.3},
    "sequences": {"kind": "mask", "level": "sequence", "low": 0.7},
    "means": {"kind": "mask", "level": "geometric", "low": 0.9, "high": 1.1},
}


def method(correction: dict[str, Any], **slots: Any) -> MethodSettings:
    return MethodSettings.model_validate({"name": "grpo", "correction": correction, **slots})


def shaped(folder: StepFolder, made: MethodSettings) -> pa.Table:
    shape_step(folder, made, longest=12, progress=Silent(), overwrite=True)
    return folder.table("advantages")


def step(tmp_path: Path, **options: Any) -> StepFolder:
    options = {"noise": 0.5, "method": {"name": "grpo"}, **options}
    return write_step(tmp_path / "step-00000", np.random.default_rng(3), **options)


def differences(folder: StepFolder) -> list[list[float]]:
    """l_old - l_sampler of each completion's tokens."""
    scorer = folder.table("signals")["policy_logprobs"].to_pylist()
    sampler = folder.table("rollouts")["sampler_logprobs"].to_pylist()
    return [
        [a - b for a, b in zip(*pair, strict=True)] for pair in zip(scorer, sampler, strict=True)
    ]


def rewrite(folder: StepFolder, stage: str, number: int, table: pa.Table, **changed: Any) -> None:
    """A part again, with other metadata."""
    path = folder.part_path(stage, number)
    write_part(path, stage, table, (read_metadata(path, stage) or {}) | changed)


@pytest.mark.parametrize("name", CORRECTIONS)
def test_shape_writes_the_weights_of_the_correction(tmp_path: Path, name: str) -> None:
    folder, made = step(tmp_path), method(CORRECTIONS[name])
    found = shaped(folder, made)["loss_weights"].to_pylist()
    rows = differences(folder)
    flat = np.array([d for row in rows for d in row])
    expected = made.correction.corrected(flat, np.zeros(len(flat)),
                                         offsets_of([len(row) for row in rows]))  # fmt: skip
    assert expected is not None
    weights = [w for row in found for w in row]
    np.testing.assert_allclose(weights, expected.weights_N, rtol=2e-6)
    assert expected.masked_N.any() or expected.capped_N.any(), "the bounds are felt"
    assert not expected.masked_N.all()
    assert [len(row) for row in found] == [len(row) for row in rows]


def test_masks_of_overlong_completions_multiply_it(tmp_path: Path) -> None:
    folder = step(tmp_path)
    plain = shaped(folder, method(CORRECTIONS["tokens"]))["loss_weights"].to_pylist()
    for number in folder.parts("rollouts"):
        table = folder.read("rollouts", number).table
        cut = ["length" if n % 3 == 0 else "stop" for n in range(table.num_rows)]
        place = table.column_names.index("finish_reason")
        table = table.set_column(place, "finish_reason", pa.array(cut))
        rewrite(folder, "rollouts", number, table)
    made = method(CORRECTIONS["tokens"], overlong={"kind": "mask"})
    both = shaped(folder, made)["loss_weights"].to_pylist()
    reasons = folder.table("rollouts")["finish_reason"].to_pylist()
    for alone, masked, reason in zip(plain, both, reasons, strict=True):
        assert masked == ([0.0] * len(alone) if reason == "length" else alone)


def test_without_a_correction_or_log_probs_there_are_no_weights(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = step(tmp_path)
    none = shaped(folder, method({"kind": "none"}))["loss_weights"]
    assert none.null_count == len(none)
    mute = write_step(tmp_path / "mute", np.random.default_rng(0), sampler=False)
    with caplog.at_level(logging.WARNING):
        found = shaped(mute, method({}))["loss_weights"]
    assert found.null_count == len(found)
    assert "has no sampler_logprobs: method.correction has nothing to read" in caplog.text


def test_an_infinite_chance_is_no_log_prob(tmp_path: Path) -> None:
    folder = step(tmp_path)
    table = folder.read("rollouts", 0).table
    logprobs = table["sampler_logprobs"].to_pylist()
    next(row for row in logprobs if row)[0] = math.inf
    place = table.column_names.index("sampler_logprobs")
    column = pa.array(logprobs, pa.list_(pa.float32()))
    rewrite(folder, "rollouts", 0, table.set_column(place, "sampler_logprobs", column))
    with pytest.raises(UserError, match=r"part-00000.*infinite, which no log-prob is"):
        shaped(folder, method({}))


@pytest.mark.parametrize("name", CORRECTIONS)
def test_measures_of_a_step_by_the_plain_reading(tmp_path: Path, name: str) -> None:
    folder, made = step(tmp_path), method(CORRECTIONS[name])
    shaped(folder, made)
    found, rows = measure_step(folder), differences(folder)
    flat = [d for row in rows for d in row]
    assert found["sampler_gap_max"] == pytest.approx(max(map(abs, flat)))
    kl = math.fsum(math.exp(d) - 1 - d for d in flat) / len(flat)
    assert found["sampler_kl"] == pytest.approx(kl, rel=1e-6)
    correction = made.correction
    assert not isinstance(correction, NoCorrection)
    low, high = correction.bounds
    ratios = []
    for row in filter(None, rows):
        if correction.level == "token":
            ratios += [(math.exp(d), 1) for d in row]
        else:
            mean = 1 if correction.level == "sequence" else len(row)
            ratios.append((math.exp(math.fsum(row) / mean), len(row)))
    beyond = sum(n for r, n in ratios if r > high or r < low) / len(flat)
    masks = correction.kind == "mask"
    assert found["correction_masked_share"] == pytest.approx(beyond if masks else 0)
    assert found["correction_capped_share"] == pytest.approx(0 if masks else beyond)
    weights = [min(r, high) if not masks else r if low <= r <= high else 0 for r, _ in ratios]
    kish = math.fsum(weights) ** 2 / len(weights) / math.fsum(w * w for w in weights)
    assert found["correction_effective_share"] == pytest.approx(kish, rel=1e-6)


def test_a_step_shaped_elsewhere_says_nothing_of_a_correction(tmp_path: Path) -> None:
    """Nobody knows which it was; the distance of sampler and scorer is known all the same."""
    folder = step(tmp_path)
    for number in folder.parts("advantages"):
        path = folder.part_path("advantages", number)
        table = folder.read("advantages", number).table.replace_schema_metadata(None)
        pa.parquet.write_table(table, path)
    found = measure_step(folder)
    assert found["sampler_kl"] is not None
    assert not any(name.startswith("correction_") for name in found)


# Sampling from another distribution than the policy's


@pytest.fixture(scope="module")
def nucleus(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run with a scored step that was sampled by nucleus."""
    recipe = small_recipe("grpo", "sampling.top_p=0.9", "train.prompts_per_step=2")
    run = create_run(recipe, str(tmp_path_factory.mktemp("nucleus") / "run"), "test")
    source = policy_at(run, 0)
    rollout_stage(run, 0, source, progress=Silent())
    score_stage(run, 0, source, None, progress=Silent())
    return run


def test_nothing_trains_on_another_distribution(nucleus: Run) -> None:
    folder, source = nucleus.step(0), policy_at(nucleus, 0)
    said = r"part-00000.* was sampled with top_p=0\.9: the sampler drew from another"
    with pytest.raises(UserError, match=rf"{said}.*set method\.correction\.kind=none"):
        shaped(folder, method({}))
    none = method({"kind": "none"})
    assert shaped(folder, none)["advantages"].null_count == 0
    with pytest.raises(UserError, match=rf"{said}.*roll out again without it"):
        read_batch(folder, none)
    with pytest.raises(UserError, match=r"nothing trains on that.*eval\.top_p"):
        train_stage(nucleus, 0, source, overwrite=False)
    whole = nucleus.changed(["sampling.top_p=1", "method.correction.kind=none"])
    with pytest.raises(UserError, match=said):
        train_stage(whole, 0, source, overwrite=False)
    assert not nucleus.checkpoints()


@pytest.mark.parametrize(
    "setting",
    ["top_p=0.5", "top_k=3", "min_p=0.1", "presence_penalty=-0.1", "repetition_penalty=1.1"],
)
def test_all_that_alters_the_distribution_is_refused_before_sampling(setting: str) -> None:
    with pytest.raises(UserError, match=f"sampling.{setting} draws from another distribution"):
        small_recipe("opsd", f"sampling.{setting}").check_training()
    fair = ("eval.top_p=0.9", "eval.presence_penalty=1", "eval.repetition_penalty=1.1")
    small_recipe("opsd", *fair).check_training()


# Runs of before


PENALTIES = ("presence_penalty", "repetition_penalty")


def make_older(run: Run, cap: float | None) -> None:
    """Write a run's recipe and the metadata of its parts as they were when the correction was a cap
    alone and there were no penalties."""
    file = run.path / "recipe.yaml"
    tree = yaml.safe_load(file.read_text())
    del tree["method"]["correction"]
    tree["method"]["importance_cap"] = cap
    tree["sampling"]["allow_truncated"] = False
    for name in PENALTIES:
        del tree["sampling"][name], tree["eval"][name]
    file.write_text(yaml.dump(tree))
    for number in run.steps:
        folder = run.step(number)
        for part in folder.parts("advantages"):
            read = folder.read("advantages", part)
            assert read.metadata is not None
            settings = dict(read.metadata["settings"])
            del settings["correction"]
            settings["importance_cap"] = cap
            rewrite(folder, "advantages", part, read.table, settings=settings)
        for part in folder.parts("rollouts"):
            read = folder.read("rollouts", part)
            made = (read.metadata or {}).get("sampling", {})
            sampling = {name: made[name] for name in made if name not in PENALTIES}
            rewrite(folder, "rollouts", part, read.table, sampling=sampling)


def test_an_older_run_goes_on_as_if_it_were_of_today(tmp_path: Path) -> None:
    recipe = small_recipe(
        "grpo", "train.steps=2", "train.checkpoint_every=2", "train.score_policy=always"
    )
    older = interrupted(tmp_path / "older", recipe)
    assert older.step(0).parts("advantages") and not older.checkpoints()
    make_older(older, 2.0)
    _, whole = assert_goes_on(older, recipe, tmp_path / "whole")
    rows, others = (run.metrics().to_pylist()[0] for run in (older, whole))
    names = [name for name in rows if name.startswith("correction_")]
    assert names and [rows[n] for n in names] == [others[n] for n in names]


@pytest.mark.parametrize(
    ("cap", "setting", "said"),
    [
        (3.0, "high=3", r"correction\.high \(3\.0, now 2\.0\)"),
        (None, "kind=none", r"correction\.kind \('none', now 'truncate'\)"),
    ],
)
def test_an_older_run_that_was_capped_otherwise_is_not_taken_for_this_one(
    tmp_path: Path, cap: float | None, setting: str, said: str
) -> None:
    recipe = small_recipe("grpo", f"method.correction.{setting}")
    run = create_run(recipe, str(tmp_path / "run"), "test")
    write_step(run.step(0).path, np.random.default_rng(0),
               method=recipe.method.model_dump(mode="json"))  # fmt: skip
    make_older(run, cap)
    opened = open_run(str(run.path))
    assert opened.recipe == recipe
    read_batch(run.step(0), opened.recipe.method)
    with pytest.raises(UserError, match=f"shaped with another {said}"):
        read_batch(run.step(0), MethodSettings())
