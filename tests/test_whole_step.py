"""Methods that look at the whole step: every part is read, and none is shaped beside others."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from castctl.errors import UserError
from castctl.inspection.target import find_target
from castctl.inspection.verify import verify
from castctl.progress import Silent
from castctl.runs.run import Run, create_run
from castctl.shards.stage import Shard, StepFolder
from castctl.stages.one_step import rollout_stage, score_stage
from castctl.stages.policies import policy_at
from castctl.stages.shape import shape_step
from castctl.stages.train.batch import read_batch
from runs import small_recipe

METHODS = ("lite-ppo", "high-entropy", "clip-cov")


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A step of four prompts in two parts."""
    run = create_run(small_recipe("grpo"), str(tmp_path_factory.mktemp("whole") / "run"), "test")
    rollout_stage(run, 0, policy_at(run, 0), progress=Silent())
    score_stage(run, 0, policy_at(run, 0), None, progress=Silent())
    return run


def copied(scored: Run, path: Path, *stages: str, parts: tuple[int, ...] = (0, 1)) -> StepFolder:
    """A step with these stages' parts."""
    folder, source = StepFolder(path), scored.step(0)
    for stage in stages:
        for part in parts:
            target = folder.part_path(stage, part)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source.part_path(stage, part), target)
    return folder


def problems(folder: StepFolder) -> list[str]:
    return verify(find_target(str(folder.path)), Silent()).problems


@pytest.mark.parametrize("name", METHODS)
def test_a_shard_alone_is_refused(scored: Run, name: str, tmp_path: Path) -> None:
    """With rollouts that tell of the other's part, and without: then a gap tells."""
    method = small_recipe(name).method
    beside = copied(scored, tmp_path / "beside", "rollouts")
    copied(scored, beside.path, "rewards", "signals", parts=(0,))
    gap = copied(scored, tmp_path / "gap", "rewards", "signals", parts=(1,))
    for folder, index, lacks in ((beside, 0, 1), (gap, 1, 0)):
        with pytest.raises(UserError, match="looks at the whole step") as refused:
            shape_step(folder, method, longest=48, progress=Silent(), shard=Shard(index, 2))
        assert f"part {lacks} first" in str(refused.value) and "\n" not in str(refused.value)
        assert not folder.parts("advantages")
    unscored = copied(scored, tmp_path / "unscored", "rewards")
    copied(scored, unscored.path, "signals", parts=(0,))
    with pytest.raises(UserError, match=r"part-00001.parquet is missing; run `castctl score"):
        shape_step(unscored, method, longest=48, progress=Silent(), shard=Shard(0, 2))


def test_parts_shaped_beside_others_do_not_mix(scored: Run, tmp_path: Path) -> None:
    """What a shard shaped when it saw no other part stands out once the others are there."""
    method = small_recipe("lite-ppo").method
    stages = ("rollouts", "rewards", "signals")
    folder = copied(scored, tmp_path / "step-00000", *stages, parts=(0,))
    shape_step(folder, method, progress=Silent(), shard=Shard(0, 2))
    copied(scored, folder.path, *stages, parts=(1,))
    shape_step(folder, method, progress=Silent(), shard=Shard(1, 2))
    with pytest.raises(UserError, match=r"whole_step is .* make them again with --overwrite"):
        read_batch(folder, method)
    with pytest.raises(UserError, match=r"another whole_step .* add --overwrite"):
        shape_step(folder, method, progress=Silent())
    assert any("whole_step" in line for line in problems(folder))
    shape_step(folder, method, progress=Silent(), overwrite=True)
    assert read_batch(folder, method).kept_R.all()
    assert not problems(folder)
