"""Shards of one step that start when they like, on nodes that see the run under other paths."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from castctl.errors import UserError
from castctl.progress import Silent
from castctl.recipe.recipe import VerifierSettings
from castctl.runs.run import create_run, open_run
from castctl.shards.stage import WHOLE, Shard, StepFolder
from castctl.stages.one_step import rollout_stage, score_stage
from castctl.stages.policies import policy_at
from castctl.stages.score.rewards import score_rewards
from castctl.stages.shape import shape_step
from castctl.verify.judge import judging_pool
from commands import Commands
from conftest import Cli
from runs import SMALL, part_hashes, small_recipe
from side_by_side import together

SETTINGS = (
    *SMALL, "train.prompts_per_step=6", "train.part_size=1", "sampling.n=2",
    "sampling.max_tokens=16",
)  # fmt: skip
BEGIN = ("--method", "cast", *(word for line in SETTINGS for word in ("--set", line)))


def test_four_shards_on_two_nodes_make_the_parts_of_one_process(
    commands: Commands, tmp_path: Path
) -> None:
    """Of six parts two shards own two each and two own one. The first two have shaped theirs before
    the others begin."""
    whole = create_run(small_recipe("cast", *SETTINGS), str(tmp_path / "whole"), "test")
    source = policy_at(whole, 0)
    rollout_stage(whole, 0, source, progress=Silent())
    score_stage(whole, 0, source, None, progress=Silent())
    shape_step(whole.step(0), whole.recipe.method, longest=16, progress=Silent())
    (tmp_path / "disk").mkdir()
    for node in ("a", "b"):
        (tmp_path / node).symlink_to("disk")
    order = random.Random(0).sample(range(4), 4)
    for pair in (order[:2], order[2:]):
        for stage, options in (("rollout", BEGIN), ("score", ()), ("shape", ())):
            lines = [
                (stage, "--run", f"{node}/joined", "--shard", f"{shard}/4", *options)
                for shard, node in zip(pair, "ab", strict=True)
            ]
            codes, printed = together(commands, tmp_path, lines).ended()
            assert codes == [0, 0], printed
            for shard, said in zip(pair, printed, strict=True):
                assert f"Shard {shard}/4 is done; go on when all 4 are." in said
    alone, joined = part_hashes(whole.path), part_hashes(tmp_path / "disk/joined")
    assert len(alone) == 4 * 6 and joined == alone


def test_a_shard_does_what_is_there_and_says_what_is_not(castctl: Cli, tmp_path: Path) -> None:
    """Its own parts decide: it neither needs those of others nor takes them for its own."""
    few = (*BEGIN, "--set", "train.prompts_per_step=2")
    castctl("rollout", "--run", "runs/r", "--shard", "2/3", *few)  # of two parts none is its own
    for stage in ("score", "shape"):
        done = castctl(stage, "--run", "runs/r", "--shard", "2/3")
        assert "Shard 2/3 is done" in done.stderr
        for shard in ("0/3", "0/1"):  # has one, and it is not there
            refused = castctl(stage, "--run", "runs/r", "--shard", shard, code=2).stderr
            made_by = "rollout" if stage == "score" else "score"
            assert f"run `castctl {made_by}` first" in refused
    castctl("rollout", "--run", "runs/r", "--shard", "0/2")
    refused = castctl("score", "--run", "runs/r", "--shard", "1/2", code=2).stderr
    assert "shard 1/2 finds no rollouts of its part 1; finish `castctl rollout" in refused
    assert open_run(str(tmp_path / "runs/r")).step(0).parts("rewards") == []


def test_a_shard_that_lacks_a_part_does_its_others(castctl: Cli, tmp_path: Path) -> None:
    """And does not say that it is done."""
    castctl("rollout", "--run", "runs/r", *BEGIN)
    step = open_run(str(tmp_path / "runs/r")).step(0)
    step.part_path("rollouts", 3).unlink()
    refused = castctl("score", "--run", "runs/r", "--shard", "1/2", code=2).stderr
    assert "shard 1/2 finds no rollouts of its part 3; finish `castctl rollout --shard" in refused
    assert step.parts("rewards") == step.parts("signals") == [1, 5]
    refused = castctl("shape", "--run", "runs/r", "--shard", "1/2", code=2).stderr
    assert "shard 1/2 finds no rewards of its part 3; finish `castctl score --shard" in refused
    assert step.parts("advantages") == [1, 5]


RULES = """
def picky(problem, completion, answer):
    return 1 / (problem != "odd")
"""


def test_the_share_of_errors_is_that_of_a_shards_own_verdicts(tmp_path: Path) -> None:
    """And of a process alone that of the whole step, whichever part comes first."""
    (tmp_path / "rules.py").write_text(RULES)
    verifier = VerifierSettings(
        function=f"{tmp_path / 'rules.py'}:picky", workers=1, max_error_share=0.25
    )

    def scored(problems: Sequence[str], shard: Shard = WHOLE) -> list[int]:
        """The parts that have rewards, of a step of one problem a part."""
        folder = StepFolder(tmp_path / "-".join(problems) / str(shard.count))
        for part, problem in enumerate(problems):
            table = pa.table({
                "prompt_id": [f"{part:016x}"] * 2, "sample": [0, 1], "problem": [problem] * 2,
                "answer": ["2"] * 2, "prompt_token_ids": [[1]] * 2, "completion": ["two"] * 2,
                "completion_token_ids": [[2]] * 2, "finish_reason": ["stop"] * 2,
            })  # fmt: skip
            folder.part_path("rollouts", part).parent.mkdir(parents=True, exist_ok=True)
            pq.write_table(table, folder.part_path("rollouts", part))
        with contextlib.suppress(UserError):
            score_rewards(folder, verifier, pool, None, progress=Silent(), shard=shard)
        return folder.parts("rewards")

    with judging_pool(verifier) as pool:
        assert scored(["odd", "a", "b", "c"]) == [0, 1, 2, 3]
        assert scored(["a", "odd", "odd", "c"]) == [0, 1]  # the second is half of all
        assert scored(["odd", "a", "b", "c"], Shard(0, 2)) == []
        assert scored(["odd", "a", "b", "c"], Shard(1, 2)) == [1, 3]
