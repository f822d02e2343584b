"""Files of TRL, verl and lm-evaluation-harness, as these write them, through the command line."""

from __future__ import annotations

import gzip
import json
from codecs import BOM_UTF8
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from castctl.shards.stage import StepFolder
from conftest import Cli

Rows = list[dict[str, Any]]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def jsonl(name: str, rows: Rows) -> str:
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return name


def parquet(name: str, rows: Rows) -> str:
    pq.write_table(pa.Table.from_pylist(rows), name)
    return name


def rescored(castctl: Cli, source: str) -> dict[str, Any]:
    """What `castctl eval --rescore` says of a source that is one evaluation, with its rollouts."""
    done = castctl("eval", "--rescore", source, "--json", "--set", "verifier.workers=1")
    [part] = json.loads(done.stdout)["parts"]
    rollouts = StepFolder(Path(part["path"])).table("rollouts")
    names = ("problem", "answer", "completion")
    part["rows"] = [tuple(row[name] for name in names) for row in rollouts.to_pylist()]
    part["moved"] = {(move["old"], move["new"]): move["count"] for move in part["moves"]}
    return part


def prompts(castctl: Cli, path: str) -> list[tuple[str, str | None, str | None]]:
    """Problem, answer and solution of the prompts that `castctl rollout` reads from a file."""
    few = ("--set", "sampling.n=1", "--max-tokens", "4", "--set", "train.prompts_per_step=1")
    castctl("rollout", "--data", path, "--run", "r", *few)
    rows = pq.read_table("runs/r/prompts/part-00000.parquet").to_pylist()
    return [(row["problem"], row["answer"], row["solution"]) for row in rows]


def evaluated(castctl: Cli, path: str) -> list[tuple[str, str]]:
    """Problem and answer of what `castctl eval` asks of a file."""
    castctl("eval", path, "--model", "embedded", "--run", "e", "-k", "1", "--max-tokens", "4")
    [folder] = Path("runs/e/eval").glob("*/step-00000")
    rows = StepFolder(folder).table("rollouts").to_pylist()
    return [(row["problem"], row["answer"]) for row in rows]


USER = {"role": "user", "content": "1 + 1 = ?"}


# Answers after GSM8K's mark

GOLDS = {
    "1,234": ("1234", "234"),
    "$18": ("18", "8"),
    "$1,234.50": ("1234.5", "234.5"),
    "18%": (r"18\%", "19"),
    "3/4": (r"\frac{3}{4}", "3"),
    "18.": ("18", "19"),
    "18 dollars": ("18", "19"),
    "1,234 dollars": ("1234", "234"),
    "+5": ("5", "-5"),
    "2:30": ("2:30", "2:31"),
    "yes": ("yes", "no"),
    r"$\boxed{18}$": ("18", "19"),
    "1, 2": ("1, 2", "12"),
    "1,234, 5,678": ("1234, 5678", "1, 234, 5678"),
    "(1,234)": ("(1, 234)", "1234"),
}


def test_whatever_line_follows_the_last_mark_is_the_answer(castctl: Cli) -> None:
    rows = [
        {"question": gold, "answer": f"#### Steps\nSome <<1+1=2>>2.\n#### {gold}\n",
         "response": f"\\boxed{{{text}}}", "correct": correct}
        for gold, texts in GOLDS.items() for text, correct in zip(texts, (1, 0), strict=True)
    ]  # fmt: skip
    part = rescored(castctl, jsonl("golds.jsonl", rows))
    assert not part["changes"]
    assert part["moved"] == {("correct", "correct"): len(GOLDS), ("wrong", "wrong"): len(GOLDS)}


def test_headings_of_markdown_are_no_answers(castctl: Cli) -> None:
    rows = [
        {"problem": "a", "solution": "#### Solution\nIt is \\boxed{1}."},
        {"problem": "b", "solution": "It is \\boxed{2}.\n\n#### Checked"},
        {"problem": "c", "solution": "##### 7\nIt is \\boxed{3}.\n##### 8"},
        {"problem": "d", "solution": "#### Steps\nFour.\n#### 4"},
    ]
    assert prompts(castctl, jsonl("headings.jsonl", rows)) == [
        ("a", "1", rows[0]["solution"]),
        ("b", "2", rows[1]["solution"]),
        ("c", "3", rows[2]["solution"]),
        ("d", "4", "#### Steps\nFour."),
    ]


# TRL


@pytest.mark.parametrize("write", [jsonl, parquet])
def test_trls_prompt_and_solution(castctl: Cli, write: Any) -> None:
    system = {"role": "system", "content": "Be brief."}
    rows: Rows = [
        {"prompt": [system, USER], "solution": r"We add: \boxed{2}."},
        {"prompt": [{"role": "user", "content": "1 + 2 = ?"}], "solution": r"$\frac{6}{2}$"},
        {"prompt": [{"role": "user", "content": "1 + 3 = ?"}], "solution": "4"},
        {"prompt": [{"role": "user", "content": "1 + 4 = ?"}], "solution": "1 + 4 = 5."},
        {"prompt": [{"role": "user", "content": "1 + 5 = ?"}],
         "solution": "One has to count five on from one and gets six then."},
    ]  # fmt: skip
    kept = [
        ("1 + 1 = ?", "2", r"We add: \boxed{2}."),
        ("1 + 2 = ?", r"$\frac{6}{2}$", None),
        ("1 + 3 = ?", "4", None),
    ]
    suffix = "parquet" if write is parquet else "jsonl"
    assert prompts(castctl, write(f"trl.{suffix}", rows)) == kept
    assert evaluated(castctl, write(f"gold.{suffix}", rows[:3])) == [row[:2] for row in kept]
    # Of a sum that is worked out and of a sentence every answer would be wrong without a word.
    said = castctl("eval", f"trl.{suffix}", "--model", "embedded", code=2).stderr
    assert "2 problems cannot be posed (no answer)" in " ".join(said.split())
    assert "solutions of one line taken for the answer, in want of another: 2" in said


def test_trls_prompts_that_are_text(castctl: Cli) -> None:
    rows: Rows = [{"prompt": "1 + 1 = ?", "solution": "2"}]
    assert prompts(castctl, jsonl("trl.jsonl", rows)) == [("1 + 1 = ?", "2", None)]


def trl_log(prompt: Any, completion: Any, reward: float | None, **extra: Any) -> dict[str, Any]:
    """A row of `completions_00010.parquet`."""
    return {"step": 10, "prompt": prompt, "completion": completion, "accuracy_reward": reward,
            "think_format_reward": 0.0, **extra, "advantage": 0.5}  # fmt: skip


def test_trls_logged_completions(castctl: Cli) -> None:
    def said(text: str) -> Rows:
        return [{"role": "assistant", "content": text}]

    gold = {"answer_parsed": "[2]", "gold_parsed": "[2]", "solution": r"Add: \boxed{2}"}
    rows = [
        trl_log([USER], said(r"\boxed{2}"), 1.0, **gold),
        trl_log([USER], said(r"\boxed{3}"), 0.0, **gold),
        trl_log([USER], said(r"\boxed{2}"), 0.0, **gold),
        trl_log([USER], said(r"\boxed{2}"), float("nan"), **gold),
        trl_log([USER], said(None), 0.0, **gold),  # type: ignore[arg-type]
    ]
    part = rescored(castctl, parquet("completions_00010.parquet", rows))
    assert part["old_grader"] == "column accuracy_reward"
    assert part["moved"] == {
        ("correct", "correct"): 1, ("wrong", "wrong"): 1, ("wrong", "correct"): 1,
        (None, "correct"): 1, ("wrong", "no_answer"): 1,
    }  # fmt: skip
    assert part["rows"][0] == ("1 + 1 = ?", "2", r"\boxed{2}")
    assert part["before"]["mean"] == pytest.approx(1 / 4)
    assert part["after"]["mean"] == pytest.approx(2 / 4)


def test_trls_older_log_holds_rendered_prompts_and_often_no_answer(castctl: Cli) -> None:
    prompt = (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n1 + 1 = ?<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    log = trl_log(prompt, r"\boxed{2}", 1.0)
    said = castctl("eval", "--rescore", parquet("old.parquet", [log]), code=2).stderr
    assert "no column of answers, such as solution (TRL) or gts (verl)" in " ".join(said.split())
    part = rescored(castctl, parquet("new.parquet", [log | {"solution": "2"}]))
    assert part["rows"] == [("1 + 1 = ?", "2", r"\boxed{2}")]


# verl

RENDERED = {
    "Qwen": "system\nYou help.\nuser\n{}\nassistant\n",
    "Qwen thinking": "user\n{}\nassistant\n<think>\n\n</think>\n\n",
    "Llama": "system\n\nToday Date: 26 Jul 2024\n\nuser\n\n{}assistant\n\n",
    "Gemma": "user\n{}\nmodel\n",
    "none": "{}",
}


def dump(text: str, output: str, gts: Any, score: float, **extra: Any) -> dict[str, Any]:
    """A line of `10.jsonl`, as `_dump_generations` writes it."""
    return {"input": text, "output": output, "gts": gts, "score": score, "step": 10, **extra}


def test_verls_dumped_generations(castctl: Cli) -> None:
    rows = []
    for number, template in enumerate(RENDERED.values()):
        text = template.format(f"{number} + 1 = ?\nAsk the user\nor a model.")
        for answer in (number + 1, number + 2):
            right = answer == number + 1
            # A reward with a penalty is no verdict, and what was found is no reference answer.
            rows.append(dump(text, f"\\boxed{{{answer}}}", [str(number + 1)] if number else "1",
                             -1.0 + right, acc=right, pred=str(answer), answer="9"))  # fmt: skip
    part = rescored(castctl, jsonl("10.jsonl", rows))
    assert part["old_grader"] == "column acc" and not part["changes"]
    assert part["moved"] == {("correct", "correct"): 5, ("wrong", "wrong"): 5}
    asked = [(f"{n} + 1 = ?\nAsk the user\nor a model.", str(n + 1)) for n in range(5)]
    assert [row[:2] for row in part["rows"]][::2] == asked
    assert "chat templates taken off the problem: 8" in part["notes"]
    assert evaluated(castctl, "10.jsonl") == asked
    assert [row[:2] for row in prompts(castctl, "10.jsonl")] == asked


def test_scores_of_another_scale_count_as_right_or_wrong(castctl: Cli) -> None:
    rows = [dump("1 + 1 = ?", f"\\boxed{{{n}}}", "2", score) for n, score in ((2, 1.0), (3, -1.0))]
    part = rescored(castctl, jsonl("10.jsonl", rows))
    assert part["before"]["mean"] == part["after"]["mean"] == 0.5 and not part["changes"]
    assert (
        "the old rewards go from -1 to 1: each counts as right, from 1 on, or wrong"
        in (part["notes"])
    )


def test_verls_generations_without_reference_answers_are_told(castctl: Cli) -> None:
    rows = [dump("1 + 1 = ?", r"\boxed{2}", None, 1.0)]
    said = castctl("eval", "--rescore", jsonl("10.jsonl", rows), code=2).stderr
    assert "10.jsonl: no answer in any row" in " ".join(said.split())
    part = rescored(castctl, jsonl("10.jsonl", [*rows, dump("2 + 1 = ?", "3", "3", 1.0)]))
    assert part["moved"] == {("correct", "no_answer"): 1}
    assert "1 completions of problems without an answer left out" in part["notes"]
    for row in rows:
        del row["gts"]
    said = castctl("eval", "--rescore", jsonl("10.jsonl", rows), code=2).stderr
    assert "no column of answers" in said and "input, output, score, step" in " ".join(said.split())


def test_a_rendered_conversation_of_several_turns_is_refused(castctl: Cli) -> None:
    text = "user\n1 + 1 = ?\nassistant\n2\nuser\n2 + 1 = ?\nassistant\n"
    rows = [dump("1 + 1 = ?", "2", "2", 1.0), dump(text, "3", "3", 1.0)]
    said = castctl("eval", "--rescore", jsonl("10.jsonl", rows), code=2).stderr
    assert "row 1 counted from 0" in said and "several turns" in " ".join(said.split())


# lm-evaluation-harness


def sample(doc_id: int, response: str, right: float, **others: Any) -> dict[str, Any]:
    """A document of a sample file without filters, as the first versions 0.4 wrote it."""
    target = f"steps <<1+1=2>>2\n#### {doc_id}"
    question = f"Question {doc_id}?"
    return {"doc_id": doc_id, "doc": {"question": question, "answer": target}, "target": target,
            "arguments": [[f"Q: {question}\nA:", {"until": ["Q:"]}]], "resps": [[response]],
            "filtered_resps": [response[-3:]], "exact_match": right, **others}  # fmt: skip


def test_an_indented_array_of_two_filters_without_their_names(castctl: Cli) -> None:
    strict = [sample(1, r"\boxed{1}", 0.0), sample(2, r"\boxed{3}", 0.0)]
    flexible = [sample(1, r"\boxed{1}", 1.0), sample(2, r"\boxed{3}", 0.0)]
    name = "pretrained__org__model_gsm8k.jsonl"
    Path("out").mkdir()
    Path("out", name).write_text(json.dumps(strict + flexible, indent=2))
    Path("out/results.json").write_text(json.dumps({"results": {}}, indent=2))
    for source in (f"out/{name}", "out"):
        part = rescored(castctl, source)
        assert part["moved"] == {("correct", "correct"): 1, ("wrong", "wrong"): 1}
        assert part["samples"] == [1, 1] and [row[1] for row in part["rows"]] == ["1", "2"]
        assert "filters 1 without a name, 2 without a name read the same" in part["notes"][0]


@pytest.mark.parametrize("name", [None, "none"])
def test_lines_of_a_document_with_other_responses_are_all_graded(
    castctl: Cli, name: str | None
) -> None:
    named = {"filter": name} if name else {}
    lines = [
        sample(doc_id, f"\\boxed{{{text}}}", right, **named)
        for doc_id, text, right in ((1, 1, 1.0), (2, 2, 1.0), (1, 9, 0.0), (2, 2, 1.0), (3, 4, 0.0))
    ]
    part = rescored(castctl, jsonl("samples_x_2026.jsonl", lines))
    assert part["completions"] == 5 and part["samples"] == [1, 2]
    assert part["moved"] == {("correct", "correct"): 3, ("wrong", "wrong"): 2}
    assert part["before"]["mean"] == part["after"]["mean"] == pytest.approx((1 / 2 + 1 + 0) / 3)


def test_two_samples_of_every_document_are_not_taken_for_two_filters(castctl: Cli) -> None:
    lines = [sample(doc_id, f"\\boxed{{{doc_id + off}}}", 1.0 - off)
             for off in (0, 1) for doc_id in (1, 2)]  # fmt: skip
    part = rescored(castctl, jsonl("samples_x_2026.jsonl", lines))
    assert part["moved"] == {("correct", "correct"): 2, ("wrong", "wrong"): 2}
    assert not part["notes"]


def test_documents_of_two_tasks_with_one_number_are_two(castctl: Cli) -> None:
    other = sample(1, r"\boxed{5}", 1.0, target="5", doc={"question": "2 + 3 = ?"})
    part = rescored(castctl, jsonl("both.jsonl", [sample(1, r"\boxed{1}", 1.0), other]))
    assert part["problems"] == part["completions"] == 2
    assert part["moved"] == {("correct", "correct"): 2}


def test_compressed_sample_files_of_a_folder(castctl: Cli) -> None:
    Path("out").mkdir()
    with gzip.open("out/samples_x_2026.jsonl.gz", "wt") as file:
        file.write(json.dumps(sample(1, r"\boxed{1}", 1.0)) + "\n")
    part = rescored(castctl, "out")
    assert part["moved"] == {("correct", "correct"): 1}
    assert Path(part["path"]).parent.name == "samples_x_2026"


# Compressed files


def test_compressed_files_are_read_everywhere(castctl: Cli) -> None:
    row = {"problem": "1 + 1 = ?", "answer": "2", "completion": r"\boxed{2}"}
    with gzip.open("sums.json.gz", "wb") as file:
        file.write(BOM_UTF8 + json.dumps([row], indent=2).encode())
    with pa.output_stream("sums.csv.zst", compression="zstd") as stream:
        stream.write(BOM_UTF8 + b"problem,answer\n1 + 1 = ?,2\n")
    assert prompts(castctl, "sums.json.gz") == [("1 + 1 = ?", "2", None)]
    assert evaluated(castctl, "sums.csv.zst") == [("1 + 1 = ?", "2")]
    part = rescored(castctl, "sums.json.gz")
    assert part["moved"] == {(None, "correct"): 1} and Path(part["path"]).parent.name == "sums"
    whole = Path("sums.json.gz").read_bytes()
    Path("sums.json.gz").write_bytes(whole[:-9])
    for command in (("rollout", "--data"), ("eval",), ("eval", "--rescore")):
        [*_, said] = castctl(*command, "sums.json.gz", code=2).stderr.splitlines()
        assert "sums.json.gz cannot be read as .json.gz" in said and "mend the file" in said
