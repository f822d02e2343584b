"""A sampler that is another policy than the scorer stops the step, in the loop and from files."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator

import numpy as np
import pyarrow as pa
import pytest

from castctl.errors import UserError
from castctl.progress import Silent
from castctl.runs.run import Run, create_run
from castctl.shards.part import Metadata, read_metadata, write_part
from castctl.shards.stage import StepFolder
from castctl.stages.one_step import rollout_stage, score_stage
from castctl.stages.policies import policy_at
from castctl.stages.train.loop import train
from runs import small_recipe


def shifted(folder: StepFolder, by: float, token: slice, changed: Metadata | None = None) -> None:
    """Move the sampler's log-probs of the part's longest completion, as a faulty decode would."""
    path = folder.part_path("rollouts", 0)
    table = folder.read("rollouts", 0).table
    logprobs = table["sampler_logprobs"].to_pylist()
    longest = int(np.argmax([len(row) for row in logprobs]))
    assert len(logprobs[longest]) >= 16
    row = np.array(logprobs[longest], np.float32)
    row[token] += by
    logprobs[longest] = row.tolist()
    place = table.column_names.index("sampler_logprobs")
    table = table.set_column(place, "sampler_logprobs", pa.array(logprobs, pa.list_(pa.float32())))
    metadata = {k: v for k, v in (read_metadata(path, "rollouts") or {}).items()}
    write_part(path, "rollouts", table, metadata | (changed or {}))


EVERY = slice(None)


@pytest.fixture(scope="module")
def sampled(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run with the rollouts of a step."""
    recipe = small_recipe("grpo", "model.device=cpu", "train.prompts_per_step=1",
                          "train.score_policy=always")  # fmt: skip
    run = create_run(recipe, str(tmp_path_factory.mktemp("gap") / "run"), "test")
    rollout_stage(run, 0, policy_at(run, 0), progress=Silent())
    return run


@pytest.fixture
def step(sampled: Run) -> Iterator[tuple[StepFolder, Callable[[], None]]]:
    """The sampled step, and what scores it."""
    folder, source = sampled.step(0), policy_at(sampled, 0)
    path = folder.part_path("rollouts", 0)
    original = path.read_bytes()
    yield folder, lambda: score_stage(sampled, 0, source, None, progress=Silent())
    path.write_bytes(original)
    for stage in ("rewards", "signals"):
        shutil.rmtree(folder.path / stage, ignore_errors=True)


def test_a_sampler_of_another_policy_stops_the_score_stage(
    step: tuple[StepFolder, Callable[[], None]],
) -> None:
    folder, score = step
    shifted(folder, -0.02, EVERY)
    with pytest.raises(UserError, match=r"part-00000.*0\.02 nats a token.*0\.01 is the most"):
        score()
    assert not folder.has("signals", 0)


def test_rounding_stops_nothing(step: tuple[StepFolder, Callable[[], None]]) -> None:
    folder, score = step
    shifted(folder, -0.001, EVERY)
    score()
    assert folder.has("signals", 0)


@pytest.mark.parametrize(
    "changed",
    [
        {"engine": {"kind": "other", "version": "1", "dtype": "bfloat16"}},  # coarser arithmetic
        {"model": "0123456789abcdef"},  # another model, of which a warning tells
        {"sampling": {"top_p": 0.9}},  # log-probs of another distribution
        {"sampling": {"presence_penalty": 0.2}},
        {"sampling": {"repetition_penalty": 1.1}},
    ],
    ids=["bfloat16", "model", "top_p", "presence", "repetition"],
)
def test_what_makes_a_gap_by_right_is_let_pass(
    step: tuple[StepFolder, Callable[[], None]], changed: Metadata
) -> None:
    folder, score = step
    shifted(folder, -0.05, EVERY, changed)
    score()
    assert folder.has("signals", 0)


def test_one_token_that_is_nats_away_stops_even_bfloat16(
    step: tuple[StepFolder, Callable[[], None]],
) -> None:
    folder, score = step
    shifted(folder, -20.0, slice(0, 1), {"engine": {"dtype": "bfloat16"}})
    with pytest.raises(UserError, match=r"0\.3 is the most"):
        score()


def test_the_loop_stops_before_the_weights_move(
    sampled: Run, step: tuple[StepFolder, Callable[[], None]]
) -> None:
    shifted(step[0], -0.5, EVERY)
    with pytest.raises(UserError, match="under the sampler"):
        train(sampled, Silent(), lambda row: None)
    assert not sampled.checkpoints()
