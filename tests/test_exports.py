"""What other tools read of a run: their own columns, and castctl's own numbers."""

from __future__ import annotations

import json
import math
import shutil
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from castctl.errors import UserError
from castctl.progress import Silent
from castctl.recipe.reader import load_recipe
from castctl.recipe.recipe import DataSettings
from castctl.runs.run import Run, open_run
from castctl.stages.evaluate.foreign import read_completions
from castctl.stages.evaluate.foreign_files import read_foreign
from castctl.stages.evaluate.rescore import rescore
from castctl.writers import FORMATS, writer
from conftest import Cli
from runs import small_recipe, train_small

ODD = 'a\x00b\r\nc\u2028d\x85 "e" \\f </script> \U0001f600\x1b[31m \ufeff'
"""What breaks lines, ends strings or is obeyed by somebody, if it is not escaped."""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Two steps of CAST, evaluated before, between and after."""
    recipe = small_recipe("cast", "train.steps=2", "eval.every=1", "eval.limit=6", "eval.k=3")
    return train_small(tmp_path_factory.mktemp("exports") / "R", recipe)[0]


def exported(run: Run, name: Any, folder: Path, step: int | None = None) -> Path:
    folder.mkdir(parents=True)
    writer(name)(run, step, folder)
    return folder


def test_every_format_has_a_writer() -> None:
    assert all(callable(writer(name)) for name in FORMATS if name != "model")


def test_trl_reads_its_columns(run: Run, tmp_path: Path) -> None:
    folder = exported(run, "trl", tmp_path / "out") / "completions"
    assert sorted(path.name for path in folder.iterdir()) == [
        "completions_00001.parquet", "completions_00002.parquet",
    ]  # fmt: skip
    for step in (0, 1):
        table = pq.read_table(folder / f"completions_{step + 1:05d}.parquet")
        assert table.column_names == [
            "step", "prompt", "completion", "accuracy_reward", "solution", "advantage",
        ]  # fmt: skip
        rewards, shaped = (run.step(step).table(stage) for stage in ("rewards", "advantages"))
        assert set(table["step"].to_pylist()) == {step + 1}
        assert table["accuracy_reward"].to_pylist() == rewards["reward"].to_pylist()
        assert table["advantage"].to_pylist() == shaped["base"].to_pylist()
        assert any(table["advantage"].to_pylist())
        problems = run.step(step).table("rollouts")["problem"].to_pylist()
        assert all(p in t for p, t in zip(problems, table["prompt"].to_pylist(), strict=True))


def test_datasets_reads_what_trl_would(run: Run, tmp_path: Path) -> None:
    from datasets import load_dataset

    folder = exported(run, "trl", tmp_path / "out", 1)
    files = [str(path) for path in folder.rglob("*.parquet")]
    rows = load_dataset("parquet", data_files=files, split="train", cache_dir=str(tmp_path / "c"))
    assert len(rows) == run.step(1).table("rollouts").num_rows and set(rows["step"]) == {2}


def test_verl_reads_its_lines(run: Run, tmp_path: Path) -> None:
    folder = exported(run, "verl", tmp_path / "out")
    for step in (0, 1):
        lines = (folder / f"{step + 1}.jsonl").read_bytes().splitlines()
        rows = [json.loads(line) for line in lines]
        rewards, rollouts = (run.step(step).table(stage) for stage in ("rewards", "rollouts"))
        assert all(list(row)[:5] == ["input", "output", "gts", "score", "step"] for row in rows)
        assert {row["step"] for row in rows} == {step + 1}
        assert [row["score"] for row in rows] == rewards["reward"].to_pylist()
        assert [row["gts"] for row in rows] == rollouts["answer"].to_pylist()
        assert [row["output"] for row in rows] == rollouts["completion"].to_pylist()
        right = [verdict == "correct" for verdict in rewards["verdict"].to_pylist()]
        assert [row["acc"] for row in rows] == right and any(right)


@pytest.mark.parametrize(
    ("name", "file"), [("trl", "completions/completions_00001.parquet"), ("verl", "1.jsonl")]
)
def test_castctl_reads_back_what_it_wrote(run: Run, tmp_path: Path, name: str, file: str) -> None:
    back = read_completions(exported(run, name, tmp_path / "out", 0) / file, DataSettings())
    rollouts, rewards = (run.step(0).table(stage) for stage in ("rollouts", "rewards"))
    assert [s.completion for s in back.samples] == rollouts["completion"].to_pylist()
    assert [s.answer for s in back.samples] == rollouts["answer"].to_pylist()
    assert [s.reward for s in back.samples] == rewards["reward"].to_pylist()


def test_castctl_grades_the_details_that_it_wrote(run: Run, tmp_path: Path) -> None:
    [made] = read_foreign(exported(run, "lighteval", tmp_path / "out", 2), DataSettings())
    samples = run.eval_folder("embedded", 2).table("rollouts")
    assert made.name == "embedded-0"
    for name, said in (("problem", "problem"), ("answer", "answer"), ("completion", "completion")):
        assert [getattr(each, said) for each in made.samples] == samples[name].to_pylist()


def test_lighteval_reads_its_details(run: Run, tmp_path: Path) -> None:
    from datasets import load_dataset

    folder = exported(run, "lighteval", tmp_path / "out", 2)
    [details] = (folder / "details" / run.name / "step-00002").glob("*/*.parquet")
    date = details.parent.name
    assert details.name == f"details_embedded|0_{date}.parquet"
    rows = load_dataset(
        "parquet", data_files=str(details), split="train", cache_dir=str(tmp_path / "c")
    )
    assert rows.column_names == ["doc", "metric", "model_response"]
    result = json.loads((run.eval_folder("embedded", 2).path / "results.json").read_text())
    means = {row["doc"]["id"]: row["metric"]["avg@n:n=3"] for row in rows}
    assert means == result["by_problem"]
    samples = run.eval_folder("embedded", 2).table("rollouts")
    texts = [text for row in rows for text in row["model_response"]["text"]]
    assert texts == samples["completion"].to_pylist()
    assert [row["doc"]["choices"][row["doc"]["gold_index"]] for row in rows] == samples[
        "answer"
    ].to_pylist()[::3]
    told = json.loads((folder / "results" / run.name / "step-00002" / f"results_{date}.json")
                      .read_text())["results"]["embedded|0"]  # fmt: skip
    assert math.isclose(told["avg@n:n=3"], result["avg"]["mean"])
    assert math.isclose(told["pass@k:k=3&n=3"], result["pass"]["3"]["mean"])
    spread = np.std(list(means.values()), ddof=1) / math.sqrt(6)
    assert math.isclose(told["avg@n:n=3_stderr"], spread)


def test_an_inspect_log_holds_the_evaluation(run: Run, tmp_path: Path) -> None:
    [path] = exported(run, "inspect", tmp_path / "out", 2).glob("*_embedded_*.eval")
    result = json.loads((run.eval_folder("embedded", 2).path / "results.json").read_text())
    with zipfile.ZipFile(path) as log:
        assert log.testzip() is None
        header = json.loads(log.read("header.json"))
        samples = [json.loads(log.read(name)) for name in log.namelist() if "samples/" in name]
        summaries = json.loads(log.read("summaries.json"))
    metrics = {m["name"]: m["value"] for m in header["results"]["scores"][0]["metrics"].values()}
    assert metrics == {
        "avg@3": result["avg"]["mean"], "avg@3 low": result["avg"]["low"],
        "avg@3 high": result["avg"]["high"], "pass@3": result["pass"]["3"]["mean"],
        "maj@3": result["maj"]["mean"],
    }  # fmt: skip
    assert header["eval"]["model"] == f"castctl/{run.name}/step-00002"
    scores = [sample["scores"]["castctl"]["value"] for sample in samples]
    assert scores == run.eval_folder("embedded", 2).table("rewards")["reward"].to_pylist()
    assert {(s["id"], s["epoch"]) for s in samples} == {(n, e) for n in range(1, 7)
                                                        for e in (1, 2, 3)}  # fmt: skip
    assert [s["uuid"] for s in samples] == [s["uuid"] for s in summaries]


def test_inspect_itself_reads_the_log(run: Run, tmp_path: Path) -> None:
    inspect_log = pytest.importorskip("inspect_ai.log")
    folder = exported(run, "inspect", tmp_path / "out")
    listed = inspect_log.list_eval_logs(str(folder))
    assert [each.task for each in listed] == ["embedded"] * 3
    for each in listed:
        log = inspect_log.read_eval_log(each.name)
        step = log.eval.metadata["step"]
        rewards = run.eval_folder("embedded", step).table("rewards")
        assert log.status == "success"
        samples = sorted(log.samples, key=lambda sample: (sample.id, sample.epoch))
        values = [sample.scores["castctl"].as_float() for sample in samples]
        assert values == rewards["reward"].to_pylist()
        mean = log.results.scores[0].metrics["avg@3"].value
        assert math.isclose(np.mean(values), mean)
        assert math.isclose(np.mean([r.as_float() for r in log.reductions[0].samples]), mean)
        assert log.samples[0].output.completion == log.samples[0].messages[-1].text
        assert len(inspect_log.read_eval_log_sample_summaries(each.name)) == 18


def with_odd_text(run: Run, path: Path) -> Run:
    """A step of that run as another tool might have made it, one completion of which is odd."""
    made = open_run(str(run.path))
    other = Run(path / "odd", made.recipe)
    (path / "odd").mkdir()
    for name in ("recipe.yaml", "manifest.json"):
        (path / "odd" / name).write_bytes((run.path / name).read_bytes())
    for stage in ("rollouts", "rewards", "advantages"):
        table = run.step(0).table(stage)
        if stage == "rollouts":
            texts = table["completion"].to_pylist()
            texts[9] = ODD
            at = table.column_names.index("completion")
            table = table.set_column(at, "completion", pa.array(texts))
        if stage == "rewards":
            rewards, verdicts = table["reward"].to_pylist(), table["verdict"].to_pylist()
            rewards[9], verdicts[9] = None, "error"
            for name, values in (("reward", rewards), ("verdict", verdicts)):
                at = table.column_names.index(name)
                kind = table.schema.field(name).type
                table = table.set_column(at, name, pa.array(values, kind))
        file = other.step(0).part_path(stage, 0)
        file.parent.mkdir(parents=True)
        pq.write_table(table.replace_schema_metadata(None), file)
    return other


def test_odd_text_and_no_verdict_come_through_rollouts(run: Run, tmp_path: Path) -> None:
    odd = with_odd_text(run, tmp_path)
    lines = (exported(odd, "verl", tmp_path / "verl") / "1.jsonl").read_text("ascii").splitlines()
    assert len(lines) == 16 and json.loads(lines[9])["output"] == ODD
    assert json.loads(lines[9])["score"] is None
    [file] = exported(odd, "trl", tmp_path / "trl").rglob("*.parquet")
    table = pq.read_table(file)
    assert table["completion"][9].as_py() == ODD and table["accuracy_reward"][9].as_py() is None


def test_odd_text_comes_through_evaluations(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    rows = [{"problem": "2 + 2?", "answer": "4", "completion": text}
            for text in (f"{ODD} \\boxed{{4}}", "\\boxed{5}")]  # fmt: skip
    (tmp_path / "told_x.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = load_recipe(model={"path": "some/model"}, overrides=["verifier.workers=1"])
    rescore(tmp_path / "told_x.jsonl", recipe, progress=Silent(), name="graded")
    run = open_run("graded")
    [path] = exported(run, "inspect", tmp_path / "inspect").iterdir()
    with zipfile.ZipFile(path) as log:
        sample = json.loads(log.read("samples/1_epoch_1.json"))
    assert sample["output"]["completion"] == rows[0]["completion"]
    assert (
        sample["scores"]["castctl"]["value"] == 1 and sample["messages"][0]["content"] == "2 + 2?"
    )
    [details] = exported(run, "lighteval", tmp_path / "lighteval").rglob("*.parquet")
    response = pq.read_table(details)["model_response"][0].as_py()
    assert response["text"] == [row["completion"] for row in rows]


def test_a_result_of_other_rewards_is_refused(run: Run, tmp_path: Path) -> None:
    shutil.copytree(run.path, tmp_path / "R")
    other = open_run(str(tmp_path / "R"))
    file = other.eval_folder("embedded", 2).path / "results.json"
    result = json.loads(file.read_text())
    result["by_problem"] = {key: 1.0 - mean for key, mean in result["by_problem"].items()}
    file.write_text(json.dumps(result))
    for name in ("inspect", "lighteval"):
        with pytest.raises(UserError, match="not that of the rewards beside it"):
            exported(other, name, tmp_path / name)


def test_rollouts_of_another_tokenizer_are_refused(run: Run, tmp_path: Path) -> None:
    odd = with_odd_text(run, tmp_path)
    file = odd.step(0).part_path("rollouts", 0)
    table = pq.read_table(file)
    texts = ["another", *table["completion"].to_pylist()[1:]]
    at = table.column_names.index("completion")
    pq.write_table(table.set_column(at, "completion", pa.array(texts)), file)
    with pytest.raises(UserError, match="are not those of model"):
        exported(odd, "trl", tmp_path / "out")


def test_the_command_writes_all_or_nothing(run: Run, castctl: Cli, tmp_path: Path) -> None:
    def refused(folder: str, *options: str) -> str:
        return castctl("export", str(run.path), folder, *options, code=2).stderr

    done = castctl("export", str(run.path), "logs", "--as", "inspect")
    assert done.stdout.strip() == "logs" and len(list((tmp_path / "logs").iterdir())) == 3
    assert "is there already" in refused("logs", "--as", "trl")
    steps = refused("t", "--as", "trl", "--step", "7")
    assert "no rollouts at step 7; steps that have: 0, 1" in steps
    told = refused("t", "--as", "inspect", "--step", "7")
    assert "no evaluation at step 7; steps there: 0, 1, 2" in told
    assert "--merged" in refused("t", "--as", "verl", "--merged")
    formats = "model, trl, verl, lighteval, inspect"
    assert refused("t", "--as", "nope").endswith(
        f"castctl: there is no format nope; write one of {formats}\n"
    )
    run.step(1).part_path("advantages", 1).rename(tmp_path / "aside")
    lacks = refused("t", "--as", "trl")
    (tmp_path / "aside").rename(run.step(1).part_path("advantages", 1))
    assert "without advantages, part 1 first" in lacks and "castctl shape" in lacks
    assert not (tmp_path / "t").exists() and not list(tmp_path.glob(".castctl-*"))


def test_a_prompt_that_is_none_is_refused(run: Run, tmp_path: Path) -> None:
    shutil.copytree(run.path, tmp_path / "R")
    other = open_run(str(tmp_path / "R"))
    file = other.eval_folder("embedded", 2).path / "results.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"prompt": {"chat": "maybe"}}))
    with pytest.raises(UserError, match=r"results.json: .*chat.*evaluate again"):
        exported(other, "inspect", tmp_path / "out", 2)
