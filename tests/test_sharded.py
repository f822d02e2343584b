"""Weights in shares of two ranks: the numbers of one process, which goes on from them too."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from castctl import embedded
from castctl.errors import UserError
from castctl.progress import Silent
from castctl.ranks import ALONE
from castctl.runs.run import Run, open_run
from castctl.stages.train.loop import train
from rank_entries import moments
from rank_processes import ended, started
from runs import SMALL, assert_same_step, assert_same_weights, small_recipe, train_small

ENTRIES = str(Path(__file__).with_name("rank_entries.py"))

CUT = (
    "train.steps=1",
    "train.prompts_per_step=8",
    "train.microbatch_tokens=400",
    "optimizer.lr=1e-8",  # Adam would blow rounding up to the size of a step
)
OFTEN = ("train.minibatches=2", "train.epochs=2")


def untied(folder: Path) -> Path:
    """The embedded model with a head of its own."""
    made = embedded.ensure().model
    shutil.copytree(made, folder)
    model = AutoModelForCausalLM.from_pretrained(made, dtype=torch.float32)
    model.config.tie_word_embeddings = False
    model.lm_head.weight = torch.nn.Parameter(1.01 * model.lm_head.weight.detach())
    model.save_pretrained(folder)
    return folder


@pytest.mark.slow
def test_an_update_in_shares_is_that_of_one_process(tmp_path: Path) -> None:
    """Tied and untied, with the ratio of whole completions and activations computed again, and
    with a teacher that distils; one of them is a single micro-batch, so that rank 1 has none."""
    model = f"model.path={untied(tmp_path / 'untied-model')}"
    recipes = {
        "tied": small_recipe("gspo", *CUT, *OFTEN, "train.gradient_checkpointing=true"),
        "untied": small_recipe("oar-g", *CUT, model, "train.microbatch_tokens=16384"),
        "teacher": small_recipe("sdpg", *CUT, "method.teacher.kind=current"),
    }
    runs = {name: train_small(tmp_path / name, recipe)[0] for name, recipe in recipes.items()}
    paths = [str(run.path) for run in runs.values()]
    printed = ended(started(2, ENTRIES, "write_moments", *paths, TEST_SHARDING="full"))
    for name, run in runs.items():
        alone, row = moments(run.path, ALONE)
        assert (run.path / "ranks-2.npz").exists(), printed
        with np.load(run.path / "ranks-2.npz") as found:
            assert list(found["row"]) == pytest.approx(list(row.values()), rel=1e-5, abs=1e-7)
            away = sum(((found[n] - alone[n]) ** 2).sum() for n in alone) ** 0.5
        size = sum((moment**2).sum() for moment in alone.values()) ** 0.5
        assert size > 0 and away < 1e-6 * size, name


@pytest.mark.slow
def test_a_run_in_shares_is_that_of_one_process_which_goes_on_from_it(tmp_path: Path) -> None:
    path = tmp_path / "two"
    options = ("train.part_size=1", "method.teacher.kind=ema", "method.teacher.decay=0.5")
    sets = [word for line in (*SMALL, *options) for word in ("--set", line)]
    start = ("-m", "castctl", "train", "--run", str(path))
    asked = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}  # as its file for FSDP does
    processes = started(2, *start, "--method", "cast", *sets, **asked)
    printed = "".join(ended(processes))
    assert [process.returncode for process in processes] == [0, 0], printed
    two = open_run(str(path))
    assert two.recipe.train.sharding == "full"
    one, _ = train_small(tmp_path / "one", small_recipe("cast", *options))
    close(two, one)

    again = begun_again(two, tmp_path / "again")
    processes = started(2, "-m", "castctl", "train", "--resume", "--run", str(again.path))
    printed = "".join(ended(processes))
    assert [process.returncode for process in processes] == [0, 0], printed
    assert_same_step(two.step(2), again.step(2))
    assert_same_weights(two.checkpoint(3), again.checkpoint(3))

    alone = begun_again(two, tmp_path / "alone")
    train(alone, Silent(), lambda row: None)
    close(two, alone)


def begun_again(run: Run, path: Path) -> Run:
    """A copy of the run as it was before its last step."""
    shutil.copytree(run.path, path)
    for gone in ("step-00002", "checkpoints/step-00003", "eval/embedded/step-00003"):
        shutil.rmtree(path / gone)
    return open_run(str(path))


def close(run: Run, other: Run) -> None:
    """The last step has the same completions, and a checkpoint of weights, teacher and moments that
    are the same but for rounding."""
    tokens = [r.step(2).table("rollouts")["completion_token_ids"] for r in (run, other)]
    assert tokens[0] == tokens[1]
    for name in ("model", "teacher/model", "optimizer"):
        mine, theirs = (load_file(r.checkpoint(3) / f"{name}.safetensors") for r in (run, other))
        assert mine.keys() == theirs.keys()
        away = sum(float((mine[n] - theirs[n]).double().norm() ** 2) for n in mine) ** 0.5
        size = sum(float(theirs[n].double().norm() ** 2) for n in theirs) ** 0.5
        assert away < 1e-5 * size, name


def test_adapters_in_shares_are_refused() -> None:
    with pytest.raises(UserError, match="shares out whole weights, and not adapters"):
        small_recipe("grpo", "train.sharding=full", "model.lora={}")
