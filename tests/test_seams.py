"""Where another engine or another kind of policy comes in: what is asked of them, and when."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

import castctl
from castctl.engines import Measures, Site, make_engine
from castctl.engines.transformers_engine import TransformersEngine
from castctl.errors import UserError
from castctl.inspection.target import find_target
from castctl.inspection.verify import verify
from castctl.progress import Silent
from castctl.runs.run import Run, create_run
from castctl.shards.part import read_part, write_part
from castctl.shards.stage import Shard, StepFolder
from castctl.stages.one_step import rollout_stage, score_stage, train_stage
from castctl.stages.policies import policy_at
from castctl.stages.shape import shape_step
from castctl.stages.train import loop
from runs import small_recipe

PACKAGE = Path(castctl.__file__).parent
KINDS = {
    "TransformersEngine", "VllmEngine", "FullWeights", "FullCopy", "AdapterWeights", "AdapterCopy",
    "AdaptedModel", "ShardedWeights",
}  # fmt: skip


def test_only_the_makers_name_a_kind() -> None:
    """Loop, stages, evaluation and diagnoses ask an engine and a policy, and never which it is."""
    named = {
        (file.relative_to(PACKAGE).as_posix(), node.id)
        for file in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Name) and node.id in KINDS
    }
    makers = {"engines/__init__.py", "models/policy.py", "models/sharded.py"}
    assert {file for file, _ in named} == makers


def test_the_loop_syncs_after_every_update_and_closes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []

    class Watched(TransformersEngine):
        def generate(self, *arguments: Any) -> Any:
            calls.append("generate")
            return super().generate(*arguments)

        def rest(self) -> None:
            calls.append("rest")

        def sync(self) -> Measures:
            calls.append("sync")
            return {"sync_gap_max": 0.5}

        def close(self) -> None:
            calls.append("close")

    monkeypatch.setattr(loop, "make_engine", lambda recipe, policy, at: Watched(policy.model))
    run = create_run(small_recipe("grpo", "train.steps=2"), str(tmp_path / "run"), "test")
    loop.train(run, Silent(), lambda row: None)
    sampled = ["generate", "rest"]
    assert calls == [*sampled, *2 * [*sampled, "sync"], *sampled, "close"]
    assert run.metrics()["sync_gap_max"].to_pylist() == [0.5, 0.5]

    calls.clear()
    again = create_run(small_recipe("grpo"), str(tmp_path / "again"), "test")
    with pytest.raises(KeyboardInterrupt):
        loop.train(again, Silent(), stopping)
    assert calls[-1] == "close"


def stopping(row: object) -> None:
    raise KeyboardInterrupt


@pytest.fixture(scope="module")
def rolled(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A step of two parts, scored and shaped."""
    run = create_run(small_recipe("grpo"), str(tmp_path_factory.mktemp("mixed") / "run"), "test")
    source = policy_at(run, 0)
    rollout_stage(run, 0, source, progress=Silent())
    score_stage(run, 0, source, None, progress=Silent())
    shape_step(run.step(0), run.recipe.method, progress=Silent())
    return run


def test_rollouts_say_what_drew_them(rolled: Run) -> None:
    policy = policy_at(rolled, 0).load(rolled.recipe.model)
    site = Site(policy_at(rolled, 0).folder, rolled.path)
    identity = make_engine(rolled.recipe, policy, site).identity
    assert identity.keys() == {"kind", "version", "dtype", "seeds"}
    for part in rolled.step(0).parts("rollouts"):
        assert rolled.step(0).read("rollouts", part).metadata["engine"] == identity


@pytest.mark.parametrize(
    "key, inner, named",
    [
        ("engine", {"kind": "other"}, "engine.kind"),
        ("engine", {"version": "0.1"}, "engine.version"),
        ("engine", {"dtype": "bfloat16"}, "engine.dtype"),
        ("engine", {"seeds": "others"}, "engine.seeds"),
        ("model", None, "'another'"),
    ],
)
def test_parts_of_two_engines_or_models_are_refused_as_mixed(
    rolled: Run, key: str, inner: dict[str, str] | None, named: str
) -> None:
    """By every stage that reads them, by a shard that would add to them, and by --verify."""
    folder, recipe = rolled.step(0), rolled.recipe
    path = folder.part_path("rollouts", 1)
    whole = path.read_bytes()
    try:
        relabel(path, key, "another" if inner is None else inner)
        source = policy_at(rolled, 0)
        for stage in (
            lambda: score_stage(rolled, 0, source, None, progress=Silent(), shard=Shard(0, 2)),
            lambda: shape_step(folder, recipe.method, progress=Silent(), shard=Shard(0, 2)),
            lambda: train_stage(rolled, 0, source, overwrite=False),
            lambda: rollout_stage(rolled, 0, source, progress=Silent(), shard=Shard(0, 2)),
        ):
            with pytest.raises(UserError) as refused:
                stage()
            assert named in str(refused.value) and "--overwrite" in str(refused.value)
        problems = verify(find_target(str(folder.path)), Silent()).problems
        assert any(named in problem for problem in problems)
    finally:
        path.write_bytes(whole)
    assert not verify(find_target(str(folder.path)), Silent()).problems


def test_parts_made_elsewhere_and_before_engines_were_named_do_not_mix(rolled: Run) -> None:
    folder = rolled.step(0)
    paths = [folder.part_path("rollouts", part) for part in folder.parts("rollouts")]
    whole = [path.read_bytes() for path in paths]
    try:
        relabel(paths[0], "engine", None)
        folder.refuse_mixed("rollouts")
        pq.write_table(pq.read_table(paths[0]).replace_schema_metadata(None), paths[0])
        folder.refuse_mixed("rollouts")
    finally:
        for path, content in zip(paths, whole, strict=True):
            path.write_bytes(content)


def relabel(path: Path, key: str, value: Any) -> None:
    """Write a part again as if it had been made otherwise: None removes what it says."""
    part = read_part(path, "rollouts")
    said = dict(part.metadata or {})
    old = said.pop(key)
    if value is not None:
        said[key] = {**old, **value} if isinstance(value, dict) else value
    write_part(path, "rollouts", part.table, said)


def test_a_step_folder_without_parts_mixes_nothing(tmp_path: Path) -> None:
    StepFolder(tmp_path).refuse_mixed("rollouts", {"model": "a"})
