"""Completions judged again: castctl's own, those of other makers, and lm-evaluation-harness's."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from castctl.comparison.evaluations import compare_evaluations, find_evaluations
from castctl.data.conversation import Message
from castctl.data.prompts import prompt_id
from castctl.errors import UserError
from castctl.progress import Silent
from castctl.recipe.model import ModelSettings
from castctl.recipe.recipe import Recipe
from castctl.report.rescore import rescored_page
from castctl.shards.part import write_part
from castctl.shards.stage import StepFolder
from castctl.stages.evaluate.rescore import Move, Regraded, Rescored, rescore
from conftest import Cli
from models import tokenizer

RECIPE = Recipe.model_validate({"verifier": {"workers": 1, "timeout": 20}})


def rows_file(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def regrade(source: Path, name: str | None = None) -> tuple[Rescored, Regraded]:
    found = rescore(source, RECIPE, progress=Silent(), name=name)
    return found, found.parts[0]


def moves(part: Regraded) -> dict[tuple[str | None, str], int]:
    return {(move.old, move.new): move.count for move in part.moves}


def page(found: Rescored, width: int = 100) -> str:
    console = Console(width=width, record=True, quiet=False, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(rescored_page(found, full=True))
    return console.export_text()


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


ROWS = [
    {"question": "1+1?", "response": r"\boxed{2}", "answer": 2, "score": 1},
    {"question": "2+1?", "response": r"\boxed{4}", "answer": "3", "score": 1.0},
    {"question": "1+1?", "response": "it is 2", "answer": 2, "score": 1},
    {"question": "1+1?", "response": r"\boxed{3}", "answer": 2, "score": 0},
]


def test_a_name_that_is_taken_is_told_at_once(tmp_path: Path) -> None:
    file = rows_file(Path("theirs.jsonl"), [{"problem": "1", "completion": "1", "answer": "1"}])
    regrade(file, "mine")
    with pytest.raises(UserError, match=r"mine is there already; name another with --run$"):
        regrade(file, "mine")


def test_rows_with_a_makers_verdict() -> None:
    found, part = regrade(rows_file(Path("mine.jsonl"), ROWS), "theirs")
    assert found.run == Path("runs/theirs")
    assert part.problems == 2 and part.completions == 4 and part.samples == (1, 3)
    assert moves(part) == {("correct", "correct"): 1, ("correct", "wrong"): 1,
                           ("correct", "no_answer"): 1, ("wrong", "wrong"): 1}  # fmt: skip
    assert part.unboxed == 1 and part.old_grader == "column score"
    changed = {(change.prompt_id, change.sample, change.new) for change in part.changes}
    assert changed == {
        (prompt_id("1+1?", "2"), 1, "no_answer"),
        (prompt_id("2+1?", "3"), 0, "wrong"),
    }
    assert part.before is not None and part.before.mean == pytest.approx((2 / 3 + 1) / 2)
    assert part.after.mean == pytest.approx((1 / 3 + 0) / 2)
    said = " ".join(page(found).split())
    assert r"1 of 4 completions hold no \boxed{}" in said
    assert "problems have 1 to 3 completions" in said


def test_the_run_made_of_them_is_read_by_other_commands() -> None:
    regrade(rows_file(Path("mine.jsonl"), ROWS), "one")
    folder = StepFolder(Path("runs/one/eval/mine/step-00000"))
    rollouts, rewards = (folder.table(stage) for stage in ("rollouts", "rewards"))
    assert rollouts["completion"].to_pylist() == [ROWS[at]["response"] for at in (0, 2, 3, 1)]
    assert rollouts["sample"].to_pylist() == [0, 1, 2, 0]
    assert rewards["extracted"].to_pylist() == ["2", None, "3", "4"]
    assert all(ids == [] for ids in rollouts["completion_token_ids"].to_pylist())
    result = json.loads((folder.path / "results.json").read_text())
    assert result["k"] == 1 and list(result["pass"]) == ["1"] and result["samples"] == [1, 3]
    assert [result["pass"]["1"]["mean"], result["avg"]["mean"]] == pytest.approx([1 / 6, 1 / 6])
    better = [row | {"response": r"\boxed{2}"} if row["answer"] == 2 else row for row in ROWS]
    regrade(rows_file(Path("mine.jsonl"), better), "two")
    entries = find_evaluations(["runs/one", "runs/two/eval/mine/step-00000"])
    assert entries is not None
    against = compare_evaluations(entries).entries[1].against_first
    assert against is not None
    assert against.difference.mean == pytest.approx(1 / 3)
    assert against.gained == [prompt_id("1+1?", "2")]


def test_pass_at_k_of_equal_numbers_in_a_list_column_of_parquet() -> None:
    texts = [[r"\boxed{1}", r"\boxed{2}", r"\boxed{1}"], [r"\boxed{2}"] * 3]
    table = {"problem": ["a", "b"], "answer": ["1", "1"], "completions": texts,
             "correct": [[True, True, True], [False, False, False]]}  # fmt: skip
    pq.write_table(pa.table(table), "lists.parquet")
    found, part = regrade(Path("lists.parquet"))
    assert part.samples == (3, 3) and not part.notes and len(part.changes) == 1
    assert found.run is not None
    result = json.loads((part.path / "results.json").read_text())
    # Of problem a two of three are right: pass@1 2/3, pass@2 1, pass@3 1; of b none.
    assert [result["pass"][k]["mean"] for k in "123"] == pytest.approx([1 / 3, 1 / 2, 1 / 2])
    assert result["maj"]["mean"] == 0.5 and result["length_mean"] is None


def test_messages_and_no_verdicts_in_json() -> None:
    answer = [{"role": "user", "content": "p"}, {"role": "assistant", "content": r"\boxed{5}"}]
    row = {"prompt": [{"role": "user", "content": "p"}], "completion": answer, "ground_truth": "5",
           "finish_reason": "stop"}  # fmt: skip
    cut = row | {"completion": "let me", "finish_reason": "length"}
    Path("chat.json").write_text(json.dumps([row, cut]))
    _, part = regrade(Path("chat.json"))
    assert moves(part) == {(None, "correct"): 1, (None, "truncated"): 1}
    assert part.before is None and part.old_grader is None and not part.changes


def test_what_was_said_before_a_problem_tells_it_from_another() -> None:
    talk = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "p"}]
    rows = [{"prompt": prompt, "completion": r"\boxed{5}", "answer": "5"} for prompt in (talk, "p")]
    _, part = regrade(rows_file(Path("talks.jsonl"), rows))
    rollouts = StepFolder(part.path).table("rollouts")
    assert rollouts["earlier"].to_pylist() == [talk[:1], None]
    before = (Message("system", "Be brief."),)
    ids = [prompt_id("p", "5", before), prompt_id("p", "5")]
    assert rollouts["prompt_id"].to_pylist() == ids and part.problems == 2


def sample(doc_id: int, name: str, response: str, right: float, **others: Any) -> dict[str, Any]:
    """A line as `--log_samples` writes it."""
    question, target = f"Question {doc_id}?", f"steps <<1+1=2>>2\n#### {doc_id}"
    return {
        "doc_id": doc_id, "doc": {"question": question, "answer": target}, "target": target,
        "arguments": {"gen_args_0": {"arg_0": f"Q: {question}\nA:", "arg_1": {"until": ["Q:"]}}},
        "resps": [[response]], "filtered_resps": [response[-3:]], "filter": name,
        "metrics": ["exact_match"], "doc_hash": "d", "prompt_hash": "p", "target_hash": "t",
        "exact_match": right, **others,
    }  # fmt: skip


def test_sample_files_of_lm_evaluation_harness() -> None:
    lines = [
        sample(doc, name, text, float(strict if name == "strict-match" else flexible))
        for name in ("strict-match", "flexible-extract")
        for doc, text, strict, flexible in (
            (18, "so it is #### 18", 1, 1),
            (3, r"hence \boxed{3}", 0, 1),
            (7, r"hence \boxed{8}", 0, 0),
        )
    ]
    folder = Path("out/org__model")
    folder.mkdir(parents=True)
    rows_file(folder / "samples_gsm8k_2026-01-01T00-00-00.000001.jsonl", lines)
    (folder / "results_2026-01-01T00-00-00.000001.json").write_text("{}")
    found, part = regrade(Path("out"))
    assert part.completions == 3 and part.old_grader == "its exact_match" and part.unboxed == 1
    assert moves(part) == {("correct", "no_answer"): 1, ("correct", "correct"): 1,
                           ("wrong", "wrong"): 1}  # fmt: skip
    [change] = part.changes
    assert (change.problem, change.answer, change.new) == ("Question 18?", "18", "no_answer")
    assert "filters flexible-extract, strict-match" in " ".join(page(found).split())


def test_sample_files_of_one_name_in_two_folders_are_two_evaluations() -> None:
    for model, text in (("a", r"\boxed{1}"), ("b", r"\boxed{2}")):
        (Path("out") / model).mkdir(parents=True)
        rows_file(Path("out") / model / "samples_x_2026.jsonl", [sample(1, "none", text, 1.0)])
    found = rescore(Path("out"), RECIPE, progress=Silent())
    assert [part.path.parent.name for part in found.parts] == [
        "a-samples_x_2026", "b-samples_x_2026",
    ]  # fmt: skip
    assert [part.after.mean for part in found.parts] == [1.0, 0.0]


def details(name: str, rows: list[dict[str, Any]], folder: str = "details/org/m/2026") -> Path:
    """Details of lighteval: a row for each, with what the rows say over an ordinary one."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    whole = []
    for row in rows:
        doc = {
            "query": f"Solve it. {row['problem']}", "original_query": row.get("original"),
            "choices": row["choices"], "gold_index": row.get("gold", [0]), "instruction": "",
        }  # fmt: skip
        response = {"input": row.get("input", "x"), "text": row["text"], "logprobs": []}
        metric = {"extractive_match": row.get("match"), "length": 3.0}
        whole.append({"doc": doc, "metric": metric, "model_response": response})
    file = Path(folder) / f"details_{name}_2026-01-01T00-00-00.000001.parquet"
    pq.write_table(pa.Table.from_pylist(whole), file)
    return file


def test_details_of_lighteval() -> None:
    file = details(
        "lighteval|gsm8k|0",
        [
            {"problem": "9+9?", "choices": ["So\n#### 18"], "text": [r"\boxed{18}"], "match": 1.0},
            {"problem": "1+1?", "choices": ["1", r"so \boxed{2}"], "gold": [1], "original": "1+1?",
             "text": ["it is 2"], "match": 1.0},
            {"problem": "?", "choices": ["3", "4"], "gold": [0, 1], "text": ["3"], "match": 1.0},
            {"problem": "2+2?", "choices": ["4"], "text": ["so", r"</think> \boxed{4}"],
             "input": "User: 2+2? <think>\n", "match": 0.5},
        ],
    )  # fmt: skip
    for source in (file, Path("details")):
        found, part = regrade(source)
        assert (part.problems, part.completions, part.path.parent.name) == (
            3,
            4,
            "lighteval-gsm8k-0",
        )
        assert part.old_grader == "its extractive_match"
        assert moves(part) == {("correct", "correct"): 1, ("correct", "no_answer"): 1,
                               (None, "no_answer"): 1, (None, "correct"): 1}  # fmt: skip
        assert part.after.mean == pytest.approx((1 + 0 + 0.5) / 3)
        [change] = part.changes
        assert (change.problem, change.answer) == ("1+1?", "2")
        words = " ".join(page(found).split())
        assert "1 problems with several reference answers" in words
        assert "1 completions of problems without an answer left out" in words


def test_details_without_samples_are_refused() -> None:
    choices = details("mmlu|0", [{"problem": "?", "choices": ["A", "B"], "text": []}])
    with pytest.raises(UserError, match=r"row 0 counted from 0: no generated text"):
        regrade(choices)
    older = pa.table({"full_prompt": ["1+1?"], "predictions": ["['2']"], "gold": ["['2']"]})
    pq.write_table(older, "older.parquet")
    with pytest.raises(UserError, match="details of an older lighteval"):
        regrade(Path("older.parquet"))
    assert not Path("runs").exists()


def test_a_thought_that_a_prompt_opened_stands_in_its_completions() -> None:
    asked = {"problem": "2+2?", "answer": 4, "prompt": "User: 2+2?\nAssistant: <think>\n"}
    rows = [
        asked | {"completion": r"so \boxed{4}"},
        asked | {"completion": r"so</think> \boxed{4}"},
        asked | {"completion": r"so \boxed{4}", "prompt": "What is <think>?"},
    ]
    _, part = regrade(rows_file(Path("mine.jsonl"), rows), "one")
    assert moves(part) == {(None, "no_answer"): 1, (None, "correct"): 2}
    _, again = regrade(part.path)
    assert moves(again) == {("no_answer", "no_answer"): 1, ("correct", "correct"): 2}
    prompt = {"gen_args_0": {"arg_0": "<|user|>Q<|assistant|><think>\n", "arg_1": {}}}
    lines = [sample(4, "none", r"so \boxed{4}", 1.0, arguments=prompt)]
    _, part = regrade(rows_file(Path("samples_x_2026.jsonl"), lines))
    assert moves(part) == {("correct", "no_answer"): 1}


def test_several_responses_and_a_prompt_as_the_problem() -> None:
    chat = json.dumps([{"role": "user", "content": "Compute."}])
    line = sample(1, "none", "", 1.0, doc={"id": 1}, target="4",
                  arguments={"gen_args_0": {"arg_0": [chat], "arg_1": {}}},
                  resps=[[r"\boxed{4}", r"\boxed{5}"]])  # fmt: skip
    _, part = regrade(rows_file(Path("samples_x_2026.jsonl"), [line]))
    assert moves(part) == {(None, "correct"): 1, (None, "wrong"): 1}
    assert StepFolder(part.path).table("rollouts")["problem"].to_pylist() == ["Compute."] * 2


WRONG = {
    "missing.jsonl": (None, "no such file or folder"),
    "empty.jsonl": ("", "is empty"),
    "columns.jsonl": ('{"a": 1}\n', "columns.jsonl: no column of problems"),
    "silent.jsonl": ('{"problem": "p", "answer": 1}\n', "no column of completions"),
    "blind.jsonl": ('{"problem": "p", "completion": "c"}\n', "no column of answers"),
    "none.jsonl": ('{"problem": "p", "completion": [], "answer": 1}\n', "holds no completion"),
    "odd.jsonl": ('{"problem": "p", "completion": {"a": 1}, "answer": 1}\n', "neither text"),
    "word.jsonl": ('{"problem": "p", "completion": "c", "answer": 1, "score": "meh"}\n', '"meh"'),
    "few.jsonl": ('{"problem": "p", "completion": ["a", "b"], "answer": 1, "score": 1}\n',
                  "2 completions but 1 verdicts"),
    "gold.jsonl": ('{"problem": "p", "completion": "\\\\boxed{1}", "answer": null}\n', "no answer"),
    "kind.txt": ("hello", "of no known kind"),
    "samples_arc_1.jsonl": (
        json.dumps(sample(1, "none", "", 1.0, resps=[[["-1.5", "True"]], [["-2", "False"]]])),
        "likelihoods",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_wrong_input_is_one_line_and_leaves_no_run(name: str) -> None:
    content, said = WRONG[name]
    if content is not None:
        Path(name).write_text(content)
    with pytest.raises(UserError, match=said) as caught:
        rescore(Path(name), RECIPE, progress=Silent())
    assert "\n" not in str(caught.value)
    assert name in str(caught.value)
    assert not list(Path().glob("runs/*"))


def test_a_folder_with_nothing() -> None:
    Path("nothing").mkdir()
    with pytest.raises(UserError, match="holds no rollouts"):
        rescore(Path("nothing"), RECIPE, progress=Silent())


def test_hostile_text_is_escaped() -> None:
    rows = [{"problem": "\x1b[31mred[bold]", "answer": "1", "completion": "\\boxed{\x1b[2J[/x]}",
             "correct": True}]  # fmt: skip
    found, _ = regrade(rows_file(Path("mine.jsonl"), rows))
    shown = page(found, 160)
    assert "\x1b" not in shown and r"\x1b[31mred[bold]" in shown and r"\x1b[2J[/x]" in shown


def contents(folder: Path) -> dict[str, str]:
    return {
        str(file): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }


def test_an_evaluation_of_our_own_is_judged_again(castctl: Cli, tmp_path: Path) -> None:
    few = ("-k", "2", "--limit", "3", "--max-tokens", "64", "--run", "mine")
    castctl("eval", *few, "--recipe", "tiny")
    folder = StepFolder(next((tmp_path / "runs/mine/eval").glob("*/step-00000")))
    right = folder.read("rewards", 0)
    before = json.loads((folder.path / "results.json").read_text())
    verdicts = right.table["verdict"].to_pylist()
    # As if an older grader had found the first completion otherwise.
    flipped = "wrong" if verdicts[0] == "correct" else "correct"
    old = right.table.set_column(
        right.table.schema.get_field_index("verdict"), "verdict", [[flipped, *verdicts[1:]]]
    )
    rewards = [1.0 - right.table["reward"][0].as_py(), *right.table["reward"].to_pylist()[1:]]
    old = old.set_column(
        old.schema.get_field_index("reward"), "reward", [pa.array(rewards, pa.float32())]
    )
    write_part(folder.part_path("rewards", 0), "rewards", old,
               {**(right.metadata or {}), "grader": "an older one"})  # fmt: skip
    stored = contents(folder.path)

    (tmp_path / "other").mkdir()
    (tmp_path / "other/config.json").write_text("{}")
    tokenizer().save_pretrained(tmp_path / "other")
    other = RECIPE.model_copy(update={"model": ModelSettings(path=str(tmp_path / "other"))})
    with pytest.raises(UserError, match="name the model that made them"):
        rescore(folder.path, other, progress=Silent())

    done = castctl("eval", "--rescore", "runs/mine", "--json")
    [part] = json.loads(done.stdout)["parts"]
    assert contents(folder.path) == stored and not part["written"]
    assert part["old_grader"] == "an older one" and part["new_grader"] == before["grader"]
    [change] = part["changes"]
    assert (change["old"], change["new"]) == (flipped, verdicts[0])
    assert part["after"]["mean"] == pytest.approx(before["avg"]["mean"])
    assert abs(part["difference"]["mean"]) == pytest.approx(1 / 6)

    castctl("eval", "--rescore", str(folder.path), "--overwrite")
    again = folder.read("rewards", 0)
    assert again.metadata == right.metadata
    assert again.table.drop(["seconds"]).equals(right.table.drop(["seconds"]))
    after = json.loads((folder.path / "results.json").read_text())
    assert after == before

    write_part(folder.part_path("rewards", 0), "rewards", right.table,
               {**(right.metadata or {}), "verifier": {"function": "mine.py:f"}})  # fmt: skip
    stored = contents(folder.path)
    refused = castctl("eval", "--rescore", str(folder.path), "--overwrite", code=2).stderr
    assert "--set verifier.function=mine.py:f" in " ".join(refused.split())
    assert contents(folder.path) == stored
    assert "leave it out" in castctl("eval", "--rescore", "runs/mine", "--run", "x", code=2).stderr


PART_OF_THE_CREDIT = """
def check(problem, completion, answer):
    return 1.0 if answer in completion else 0.1
"""


@pytest.mark.parametrize(("least", "right"), [(None, 1), (0.1, 3)])
def test_part_of_the_credit_counts_from_where_the_user_says(
    castctl: Cli, least: float | None, right: int
) -> None:
    Path("rules.py").write_text(PART_OF_THE_CREDIT)
    rows_file(
        Path("made.jsonl"),
        [
            {"problem": "1+1?", "completion": rf"\boxed{{{number}}}", "answer": "2"}
            for number in (2, 3, 3)
        ],
    )
    said = () if least is None else ("--set", f"verifier.correct_from={least}")
    castctl("eval", "--rescore", "made.jsonl", "--run", "r",
            "--set", "verifier.function=rules.py:check", *said)  # fmt: skip
    [file] = Path("runs/r/eval").glob("*/step-00000/results.json")
    result = json.loads(file.read_text())
    assert result["avg"]["mean"] == pytest.approx(1.2 / 3)
    assert result["pass"]["1"]["mean"] == pytest.approx(right / 3)
    assert result["maj"]["mean"] == (0.0 if least is None else 1.0)
    rescored = castctl("eval", "--rescore", "runs/r", "--trust-verifier", "--json").stdout
    [again] = json.loads(rescored)["parts"]
    assert not again["changes"]
    told = "" if least is None else ", correct from 0.1"
    assert result["grader"].endswith(told) and (least or "correct from" not in result["grader"])


def test_names_in_brackets_are_printed_as_they_are() -> None:
    found, _ = regrade(rows_file(Path("mine.jsonl"), ROWS))
    odd = replace(found.parts[0].changes[0], prompt_id="[/x]", old="[/bold]", new="[red]")
    part = replace(found.parts[0], changes=[odd], moves=[Move("[/bold]", "[red]", 1)])
    shown = page(replace(found, parts=[part]), 160)
    assert shown.count("[/bold]") == shown.count("[red]") == 2 and "[/x]/" in shown
