"""What trackers are sent: the numbers of steps, evaluations with intervals, some completions."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from castctl.runs.run import Run
from castctl.shards.stage import StepFolder
from castctl.stages.evaluate.results import read_result
from castctl.stages.train.trackers import LONGEST_TEXT, SAMPLE, SHOW, TABLE, shown_samples
from runs import small_recipe, train_small


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    pytest.importorskip("tensorboard")
    recipe = small_recipe(
        "grpo", "logging.trackers=[tensorboard]", "logging.completions=3", "train.steps=2",
        "eval.every=1",
    )  # fmt: skip
    return train_small(tmp_path_factory.mktemp("trackers") / "run", recipe)[0]


@pytest.fixture(scope="module")
def events(run: Run) -> Any:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    files = (run.path / "trackers").rglob("events.out.tfevents.*")
    file = min(files, key=lambda path: len(path.parts))  # the settings have one below it
    events = EventAccumulator(str(file), size_guidance={"tensors": 0})
    events.Reload()
    return events


def test_numbers_stand_at_the_steps_that_are_done(run: Run, events: Any) -> None:
    rewards = events.Scalars("reward_mean")
    assert [each.step for each in rewards] == [1, 2]
    told = np.array([each.value for each in rewards])
    assert np.allclose(told, run.metrics()["reward_mean"].to_pylist())


def test_evaluations_come_with_their_intervals(run: Run, events: Any) -> None:
    for bound in ("mean", "low", "high"):
        scalars = events.Scalars(f"eval_{bound}")
        assert [each.step for each in scalars] == [0, 1, 2], "from before training on"
        results = [read_result(run.eval_folder("embedded", step)) for step in (0, 1, 2)]
        wanted = [result["avg"][bound] for result in results if result]
        assert np.allclose([each.value for each in scalars], wanted)


def test_a_few_completions_come_as_text(run: Run, events: Any) -> None:
    texts = events.Tensors("samples/text_summary")
    assert [each.step for each in texts] == [1, 2]
    assert TABLE not in run.metrics().column_names, "a number would take its place"
    for step, event in enumerate(texts):
        text = event.tensor_proto.string_val[0].decode()
        samples = shown_samples(run.step(step), 3)
        assert text.count("**, ") == len(samples) and 1 < len(samples) <= 3
        for sample in samples:
            assert f"**{sample['verdict']}**, reward {sample['reward']:g}, advantage" in text
            assert f"    {sample['completion'].splitlines()[0]}" in text
            assert f"    Problem: {sample['problem']}" in text


def changed(run: Run, path: Path, stage: str, name: str, values: list[Any]) -> StepFolder:
    """The first step with other values in a column, as another tool might have made it."""
    shutil.copytree(run.step(0).path, path / "step-00000")
    folder = StepFolder(path / "step-00000")
    table = folder.read(stage, 0).table
    at, field = table.column_names.index(name), table.schema.field(name)
    table = table.set_column(at, field, pa.array(values, field.type))
    pq.write_table(table.replace_schema_metadata(None), folder.part_path(stage, 0))
    return folder


def test_the_best_and_the_least_of_each_prompt_are_shown(run: Run, tmp_path: Path) -> None:
    base = [0.5, 2.0, -1.0, 0.0, 0.25, 0.25, 0.25, 0.25]
    folder = changed(run, tmp_path, "advantages", "base", base)
    samples = shown_samples(folder, 100)
    rollouts, rewards = (folder.read(stage, 0).table for stage in ("rollouts", "rewards"))
    assert [each["advantage"] for each in samples] == [2.0, -1.0, 0.25], "once where all are alike"
    for sample, row in zip(samples, (1, 2, 4), strict=True):
        assert sample["completion"] == rollouts["completion"][row].as_py()
        assert sample["problem"] == rollouts["problem"][row].as_py()
        assert sample["verdict"] == rewards["verdict"][row].as_py()
        assert sample["reward"] == rewards["reward"][row].as_py()
    assert shown_samples(folder, 0) == [] and shown_samples(folder, 1) == samples[:1]


def sample(completion: str) -> dict[str, Any]:
    values = ("1 + 1?\n# Title", "2", completion, "correct", None, -0.5)
    return dict(zip(SAMPLE, values, strict=True))


def test_text_of_a_model_is_no_markup() -> None:
    written: list[str] = []
    writer = SimpleNamespace(add_text=lambda name, text, global_step: written.append(text))
    odd = "a | b\n# heading\n\n<script>\n\x1b[31m\u2028---"
    SHOW["tensorboard"](SimpleNamespace(tracker=writer), [sample(odd)], 1)
    head, *rest = written[0].split("\n")
    assert head == "**correct**, no reward, advantage -0.5"
    assert all(line.startswith("    ") or not line for line in rest)
    assert "\x1b" not in written[0] and "\u2028" not in written[0]


def test_tables_go_to_wandb_and_trackio(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the calls that Accelerate's WandBTracker and trackio have."""
    sent: list[Any] = []
    wandb = SimpleNamespace(log_table=lambda *args, **options: sent.append((args, options)))
    SHOW["wandb"](wandb, [sample("x")], 3)
    [(name, options)] = [(args[0], options) for args, options in sent]
    assert name == TABLE and options["columns"] == list(SAMPLE) and options["step"] == 3
    assert options["data"] == [list(sample("x").values())]
    trackio = ModuleType("trackio")
    trackio.Table = lambda dataframe: dataframe.to_dict("records")  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "trackio", trackio)
    logged: list[Any] = []
    tracker = SimpleNamespace(log=lambda values, step: logged.append((values, step)))
    SHOW["trackio"](tracker, [sample("x")], 3)
    [(values, step)] = logged
    assert step == 3 and values[TABLE][0]["verdict"] == "correct"


def test_a_long_text_is_cut_and_says_so(run: Run, tmp_path: Path) -> None:
    folder = changed(run, tmp_path, "rollouts", "completion", ["x" * (LONGEST_TEXT + 7)] * 8)
    assert shown_samples(folder, 1)[0]["completion"] == "x" * LONGEST_TEXT + "… (7 more characters)"
