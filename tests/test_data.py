"""Prompts out of files, benchmarks and a hub of our own."""

import csv
import gzip
import hashlib
import json
import os
import subprocess
import sys
import threading
from codecs import BOM_UTF8
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from castctl.data.benchmarks import BENCHMARKS, resolve, task_source
from castctl.data.columns import (
    ANSWER,
    PROBLEM,
    RENDERED,
    SOLUTION,
    Columns,
    Example,
    read_example,
)  # fmt: skip
from castctl.data.conversation import Message
from castctl.data.prompts import (
    REPEATED,
    REPLACED,
    Prompts,
    load_prompts,
    prompt_id,
    require_answers,
)
from castctl.errors import UserError
from castctl.recipe.recipe import DataSettings
from castctl.shards.schema import PROMPTS

Rows = list[dict[str, Any]]


def load(path: Path, **settings: Any) -> Prompts:
    return load_prompts(DataSettings.model_validate({"path": str(path), **settings}))


def jsonl(folder: Path, rows: Rows, name: str = "problems.jsonl") -> Path:
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def parquet(folder: Path, rows: Rows) -> Path:
    path = folder / "problems.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def nested(column: str, value: Any) -> dict[str, Any]:
    for name in reversed(column.split(".")):
        value = {name: value}
    return value


# Files


def test_every_kind_of_file_gives_the_same_prompts(tmp_path: Path) -> None:
    rows = [
        {"problem": 'Say "a,\nb" é 1+1?', "answer": "2.0", "solution": "1+1=2"},
        {"problem": "Which agent?", "answer": "007", "solution": "Bond"},
    ]
    files = [jsonl(tmp_path, rows), parquet(tmp_path, rows)]
    files.append(tmp_path / "problems.json")
    files[-1].write_text(json.dumps(rows, indent=1))
    files.append(tmp_path / "problems.csv")
    with files[-1].open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    for path in files[:1] + files[2:]:
        text, name = BOM_UTF8 + path.read_bytes(), f"marked-{path.name}"
        files.append(tmp_path / name)
        files[-1].write_bytes(text)
        for suffix, kind in ((".gz", "gzip"), (".zst", "zstd")):
            files.append(tmp_path / f"{name}{suffix}")
            with pa.output_stream(files[-1], compression=kind) as stream:
                stream.write(text)
    files.append(tmp_path / "array.jsonl")  # as lm-evaluation-harness wrote it once
    files[-1].write_text(f"\n{json.dumps(rows, indent=2)}\n")
    for path in files:
        table = load(path).table
        assert table.schema == PROMPTS
        assert table.select(["problem", "answer", "solution"]).to_pylist() == rows
        assert set(table["source"].to_pylist()) == {path.name}


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("a.jsonl", b'{"problem": "1+1"}\n\n{"problem": "1+', r"a\.jsonl, line 3: not valid JSON"),
        ("a.jsonl", b'{"problem": "\\ud800"}\n', "line 1: not valid JSON"),
        ("a.jsonl", b'{"problem": "\xff"}\n', "line 1: not valid JSON"),
        ("a.jsonl", b"[" * 100_000, r"cannot be read as \.jsonl"),
        ("a.jsonl", b'"1+1"\n', "line 1: not a JSON object"),
        ("a.json", b'[{"problem": "1+1"}, 2]', "entry 2 is not a JSON object"),
        ("a.json", b'[{"problem": "1+1"}', r"cannot be read as \.json"),
        ("a.csv", b"problem,answer\n1+1,2,3\n", r"cannot be read as \.csv.*Expected 2 columns"),
        ("a.csv", b"", r"cannot be read as \.csv"),
        ("a.parquet", b"PAR1 and no more", r"cannot be read as \.parquet"),
        ("a.txt", b"1+1", r"must end in \.parquet, \.jsonl, \.json, \.csv"),
        ("a.csv", b"problem,problem\n1+1,2\n", "two columns are called problem"),
        ("a.jsonl", b"", r"a\.jsonl is empty"),
        ("a.json", b"[]", r"a\.json is empty"),
        ("a.csv", b"problem,answer\n", "holds no problem"),
        ("a.jsonl", b'{"problem": " "}\n', "holds no problem"),
        ("a.jsonl", b'{"task": "1+1", "truth": "2"}\n', r"data\.problem_column.*task, truth"),
        ("a.jsonl", b'{"problem": {"text": "1+1"}}\n', r"row 0 .*problem\.FIELD"),
    ],
)
def test_a_mistake_in_a_file_is_one_clear_line(
    tmp_path: Path, name: str, content: bytes, complaint: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(UserError, match=complaint) as error:
        load(path)
    assert "\n" not in str(error.value)


def test_a_path_that_is_no_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no such file: .*nonesuch\.jsonl"):
        load(tmp_path / "nonesuch.jsonl")
    with pytest.raises(UserError, match="is a folder"):
        load(tmp_path)
    with pytest.raises(UserError, match="neither a file nor a hub id"):
        load(Path("no/such/folder"))


def test_a_damaged_parquet_file_is_told(tmp_path: Path) -> None:
    path = parquet(tmp_path, [{"problem": f"{n}+1"} for n in range(1000)])
    content = bytearray(path.read_bytes())
    content[50:200] = bytes(150)
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"cannot be read as \.parquet"):
        load(path)


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
@pytest.mark.parametrize("kind", [".jsonl", ".json", ".csv"])
def test_a_damaged_compressed_file_is_told(tmp_path: Path, kind: str, suffix: str) -> None:
    path = tmp_path / f"a{kind}{suffix}"
    text = "".join(f'{{"problem": "{number}+{number**9}"}}\n' for number in range(1000)).encode()
    with pa.output_stream(path, compression={".gz": "gzip", ".zst": "zstd"}[suffix]) as stream:
        stream.write(text)
    whole = path.read_bytes()
    for content in (whole[: len(whole) // 2], whole[:-3], whole[4:], text, whole + b"more"):
        path.write_bytes(content)
        with pytest.raises(
            UserError, match=rf"a\{kind}\{suffix} cannot be read as \{kind}\{suffix}"
        ):
            load(path)
    plain = tmp_path / f"a{kind}"
    plain.write_bytes(whole)
    with pytest.raises(UserError, match=rf"a\{kind}"):
        load(plain)


def test_joined_files_keep_their_marks_and_frames(tmp_path: Path) -> None:
    parts = [BOM_UTF8 + json.dumps({"problem": name}).encode() + b"\n" for name in "ab"]
    (tmp_path / "a.jsonl.gz").write_bytes(b"".join(gzip.compress(part) for part in parts))
    assert load(tmp_path / "a.jsonl.gz").table["problem"].to_pylist() == ["a", "b"]


# Columns


@pytest.mark.parametrize("kind", [jsonl, parquet])
@pytest.mark.parametrize(
    ("problem", "answer", "solution"),
    [
        *((name, "answer", "solution") for name in PROBLEM),
        *(("problem", name, "solution") for name in ANSWER),
        *(("problem", "answer", name) for name in SOLUTION),
        ("Problem", "ANSWER", "Solution"),
    ],
)
def test_columns_are_found_by_their_usual_names(
    tmp_path: Path, kind: Any, problem: str, answer: str, solution: str
) -> None:
    row = {"id": 1} | nested(problem, "1+1") | nested(answer, "2") | nested(solution, "1+1=2")
    table = load(kind(tmp_path, [row])).table
    found = table.select(["problem", "answer", "solution"]).to_pylist()
    assert found == [{"problem": "1+1", "answer": "2", "solution": "1+1=2"}]


def test_named_columns_win(tmp_path: Path) -> None:
    row = {"problem": "no", "answer": "no", "solution": "no", "a": "1+1", "b": {"c": 2}, "d": "so"}
    path = jsonl(tmp_path, [row])
    table = load(path, problem_column="a", answer_column="b.c", solution_column="d").table
    assert table.select(["problem", "answer", "solution"]).to_pylist() == [
        {"problem": "1+1", "answer": "2", "solution": "so"}
    ]


@pytest.mark.parametrize("setting", ["problem_column", "answer_column", "solution_column"])
def test_an_unknown_column_is_told_with_those_there_are(tmp_path: Path, setting: str) -> None:
    path = jsonl(tmp_path, [{"problem": "1+1", "meta": {"answer": "2"}}])
    with pytest.raises(UserError, match=rf"data\.{setting} is x, .*problem, meta, meta\.answer"):
        load(path, **{setting: "x"})


@pytest.mark.parametrize(
    ("written", "answer"),
    [
        ("18", "18"),
        ("2.0", "2.0"),
        ("1e3", "1e3"),
        ("123456789012345678901234567890", "123456789012345678901234567890"),
        ('" 7 "', "7"),
        ('["3"]', "3"),
        ('["1", "-1"]', "1, -1"),
        ("[]", None),
        ("null", None),
        ("NaN", None),
        ('" "', None),
    ],
)
def test_answers_of_json_become_text_as_written(
    tmp_path: Path, written: str, answer: str | None
) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(f'{{"problem": "x", "answer": {written}}}\n')
    assert load(path).table["answer"].to_pylist() == [answer]


def test_answers_of_parquet_become_text(tmp_path: Path) -> None:
    ints = parquet(tmp_path, [{"problem": "a", "answer": 18}, {"problem": "b", "answer": None}])
    assert load(ints).table["answer"].to_pylist() == ["18", None]
    floats = [2.0, 0.5, float("nan")]
    rows = [{"problem": str(number), "answer": number} for number in floats]
    assert load(parquet(tmp_path, rows)).table["answer"].to_pylist() == ["2.0", "0.5", None]


# Raw forms


def test_gsm8k_is_split_into_solution_and_answer(tmp_path: Path) -> None:
    row = {"question": "?", "answer": "Half: <<2,468/2=1234>>1,234.\nSo 1,234.\n#### 1,234"}
    assert load(jsonl(tmp_path, [row])).table.to_pylist()[0] == {
        "prompt_id": prompt_id("?", "1234"),
        "problem": "?",
        "answer": "1234",
        "solution": "Half: 1,234.\nSo 1,234.",
        "source": "problems.jsonl",
        "earlier": None,
    }


@given(st.integers(), st.text(st.characters(exclude_characters="#<>")))
def test_gsm8k_numbers_come_back_without_commas(number: int, reasoning: str) -> None:
    row = {"question": "?", "answer": f"{reasoning}\n#### {number:,}"}
    example = read_example(row, Columns("question", "answer", None), Counter())
    assert example == Example("?", str(number), reasoning.strip() or None)


def test_nothing_after_the_mark_is_no_answer(tmp_path: Path) -> None:
    prompts = load(jsonl(tmp_path, [{"problem": "1+1?", "answer": "1 + 1 = 2\n#### "}]))
    assert prompts.table["answer"].to_pylist() == [None]


def test_a_heading_is_no_gsm8k_answer(tmp_path: Path) -> None:
    row = {"problem": "?", "answer": "3", "solution": "#### Step 1\nadd"}
    assert load(jsonl(tmp_path, [row])).table["solution"].to_pylist() == ["#### Step 1\nadd"]


def test_without_an_answer_the_last_box_of_the_solution_is_one(tmp_path: Path) -> None:
    rows = [
        {"problem": "a", "solution": r"\boxed{1}, no: \boxed{\frac{1}{2}}."},
        {"problem": "b", "solution": "no box"},
        {"problem": "c", "solution": r"\boxed{1}", "answer": "3"},
    ]
    table = load(jsonl(tmp_path, rows)).table
    assert table["answer"].to_pylist() == [r"\frac{1}{2}", None, "3"]


def test_a_solution_that_repeats_the_answer_is_none(tmp_path: Path) -> None:
    path = jsonl(
        tmp_path, [{"prompt": "?", "solution": "34", "reward_model": {"ground_truth": 34}}]
    )
    assert load(path).table.select(["answer", "solution"]).to_pylist() == [
        {"answer": "34", "solution": None}
    ]


DAPO = (
    "Solve the following math problem step by step. The last line of your response should be of "
    "the form Answer: $Answer (without quotes) where $Answer is the answer to the problem.\n\n"
    '{}\n\nRemember to put your answer on its own line after "Answer:".'
)


def test_dapo_rows_lose_their_wrapper_and_their_repetitions(tmp_path: Path) -> None:
    rows = [
        {
            "data_source": "math_dapo",
            "prompt": [{"content": DAPO.format(f"What is {n}+1?"), "role": "user"}],
            "reward_model": {"ground_truth": str(n + 1), "style": "rule"},
            "extra_info": {"index": f"{copy}-{n}"},
        }
        for copy in range(100)
        for n in range(30)
    ]
    path = parquet(tmp_path, rows)
    prompts = load(path)
    assert prompts.table["problem"].to_pylist() == [f"What is {n}+1?" for n in range(30)]
    assert prompts.table["answer"].to_pylist() == [str(n + 1) for n in range(30)]
    assert prompts.notes == [
        "answer-line instructions stripped from the problem: 3000",
        "repeated rows removed: 2970",
    ]
    assert load(path, limit=7).table.equals(prompts.table.slice(0, 7))


TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hi!"},
    {"role": "assistant", "content": "Hello."},
    {"role": "user", "content": " 1+1? "},
]


@pytest.mark.parametrize("kind", [jsonl, parquet])
def test_what_was_said_before_the_problem_is_kept(tmp_path: Path, kind: Any) -> None:
    rows = [{"prompt": TALK}, {"prompt": TALK[3:]}, {"prompt": TALK[1:]}, {"prompt": TALK}]
    prompts = load(kind(tmp_path, [row | {"answer": "2"} for row in rows]))
    assert prompts.table["problem"].to_pylist() == ["1+1?"] * 3
    assert prompts.table["earlier"].to_pylist() == [TALK[:3], None, TALK[1:3]]
    ids = prompts.table["prompt_id"].to_pylist()
    assert len(set(ids)) == 3 and ids[1] == prompt_id("1+1?", "2")
    assert f"{REPEATED}: 1" in prompts.notes


def test_system_messages_that_the_recipe_replaces_are_counted(tmp_path: Path) -> None:
    path = jsonl(tmp_path, [{"prompt": TALK}, {"prompt": TALK[1:]}])
    assert load(path).notes == []
    own = load(path, system_prompt="Think.")
    assert own.notes == [f"{REPLACED}: 1"]
    assert own.table.equals(load(path).table)


CHATML = "<|im_start|>{}\n{}<|im_end|>\n"
LLAMA = "<|start_header_id|>{}<|end_header_id|>\n\n{}<|eot_id|>"


@pytest.mark.parametrize(
    "rendered",
    [
        "user\n{}\nassistant\n",
        "system\nHelp the\nuser.\nuser\n{}\nassistant\n<think>\n",
        CHATML.format("system", "Help.") + CHATML.format("user", "{}") + "<|im_start|>assistant\n",
        "<|begin_of_text|>" + LLAMA.format("system", "\nHelp.") + LLAMA.format("user", "{}")
        + "<|start_header_id|>assistant<|end_header_id|>\n\n",
        "system\n\nHelp the user.user\n\n{}assistant\n\n",
        "<bos><start_of_turn>user\n{}<end_of_turn>\n<start_of_turn>model\n",
        "<\uff5cbegin▁of▁sentence\uff5c>Help.<\uff5cUser\uff5c>{}<\uff5cAssistant\uff5c><think>\n",
        "<\uff5cUser\uff5c>{}<\uff5cAssistant\uff5c>",
    ],
)  # fmt: skip
def test_of_a_rendered_prompt_the_users_message_is_the_problem(
    tmp_path: Path, rendered: str
) -> None:
    problem = "The user asks\nan assistant\n\nfor a model."
    rows = [{"input": rendered.format(DAPO.format(problem))}]
    prompts = load(jsonl(tmp_path, rows))
    assert prompts.table["problem"].to_pylist() == [problem]
    assert RENDERED + ": 1" in prompts.notes
    [earlier] = prompts.table["earlier"].to_pylist()
    assert [turn["role"] for turn in earlier or []] == ["system"] * ("elp" in rendered)
    assert all("elp" in turn["content"] for turn in earlier or [])


@pytest.mark.parametrize(
    "text",
    ["user\nWhich is the best model", "Ask the user\nassistant", "user\nassistants\nmodels",
     "<|im_start|>", "<\uff5cUser\uff5c>1+1?"],
)  # fmt: skip
def test_what_only_resembles_a_rendered_prompt_is_kept(tmp_path: Path, text: str) -> None:
    prompts = load(jsonl(tmp_path, [{"input": text}]))
    assert prompts.table["problem"].to_pylist() == [text] and not prompts.notes


@pytest.mark.parametrize(
    ("messages", "complaint"),
    [
        ([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], "a user's the"),
        ([{"role": "tool", "content": "a"}, {"role": "user", "content": "b"}], "tool, user"),
        ([{"role": "user", "content": [{"type": "image"}]}], "must hold texts"),
        ([{"role": "system", "content": "a"}], "a user's the last"),
        ([], "a user's the last"),
        (["a"], "not of messages"),
    ],
)
def test_other_conversations_are_refused_with_their_row(
    tmp_path: Path, messages: list[Any], complaint: str
) -> None:
    rows: Rows = [{"prompt": "1+1?"}, {"prompt": messages}]
    path = jsonl(tmp_path, rows)
    with pytest.raises(UserError, match=rf"problems\.jsonl, row 1 .*{complaint}"):
        load(path)


# Prompts


def test_prompt_id_is_the_documented_hash() -> None:
    def head(text: str) -> str:
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    assert prompt_id("1+1?", "2") == head('["1+1?","2"]')
    before = (Message("system", "Be brief."),)
    assert prompt_id("1+1?", "2", before) == head('["1+1?","2",[["system","Be brief."]]]')
    assert prompt_id('a"\\é\n', None) == head('["a\\"\\\\é\\n",null]')


_pairs = st.tuples(st.text(max_size=3), st.none() | st.text(max_size=3))


@given(_pairs, _pairs)
def test_prompt_ids_differ_where_prompts_do(
    one: tuple[str, str | None], two: tuple[str, str | None]
) -> None:
    assert (prompt_id(*one) == prompt_id(*two)) == (one == two)


def test_repetitions_and_empty_problems_leave_traces(tmp_path: Path) -> None:
    rows: Rows = [
        {"problem": "a", "answer": "1", "solution": "first"},
        {"problem": "", "answer": "1"},
        {"problem": " a\n", "answer": "1", "solution": "again"},
        {"problem": "a", "answer": "2"},
        {"problem": "b", "answer": None},
    ]
    prompts = load(jsonl(tmp_path, rows))
    kept = prompts.table.select(["problem", "answer", "solution"]).to_pylist()
    assert [tuple(row.values()) for row in kept] == [
        ("a", "1", "first"),
        ("a", "2", None),
        ("b", None, None),
    ]
    assert prompts.rows.to_pylist() == [0, 3, 4]
    assert prompts.notes == ["repeated rows removed: 1"]
    assert prompts.dropped.to_pylist() == [
        {"row": 1, "prompt_id": None, "problem": "", "reason": "empty problem"}
    ]

    answered = require_answers(prompts)
    assert answered.table["answer"].to_pylist() == ["1", "2"]
    assert answered.rows.to_pylist() == [0, 3]
    assert answered.dropped.to_pylist()[1:] == [
        {"row": 4, "prompt_id": prompt_id("b", None), "problem": "b", "reason": "no answer"}
    ]


def test_data_without_answers_cannot_be_verified(tmp_path: Path) -> None:
    prompts = load(jsonl(tmp_path, [{"problem": "a"}, {"problem": "b", "answer": ""}]))
    with pytest.raises(UserError, match=r"none of the 2 problems .*data\.answer_column"):
        require_answers(prompts)


# Benchmarks


@pytest.mark.parametrize("task", [*BENCHMARKS, "some/file.jsonl", "acme/sums"])
def test_an_evaluation_keeps_the_rendering_and_nothing_of_the_training_rows(task: str) -> None:
    training = DataSettings(
        path="train.csv",
        config="main",
        split="train",
        revision="abc",
        problem_column="a",
        answer_column="b",
        solution_column="c",
        limit=3,
        prompt_template="{{ problem }}!",
        system_prompt="Be brief.",
        chat_template_options={"enable_thinking": False},
        max_prompt_tokens=99,
    )
    data = task_source(task, training)
    rendering = {"chat", "prompt_template", "system_prompt", "chat_template_options", "date"}
    for field in DataSettings.model_fields.keys() - {"path", "split"}:
        model = training if field in rendering else DataSettings()
        assert getattr(data, field) == getattr(model, field), field
    assert data.path == task


def test_the_users_settings_win_over_a_benchmarks() -> None:
    data = resolve(DataSettings(path="gsm8k", config="socratic", answer_column="x"))
    assert (data.path, data.config, data.split) == ("openai/gsm8k", "socratic", "train")
    assert (data.problem_column, data.answer_column) == ("question", "x")


@pytest.mark.slow
def test_the_embedded_benchmark_evaluates_on_other_problems_than_it_trains_on() -> None:
    training = DataSettings(path="embedded")
    train = require_answers(load_prompts(training)).table
    heldout = require_answers(load_prompts(task_source("embedded", training))).table
    assert set(train["source"].to_pylist()) == {"embedded"} == set(heldout["source"].to_pylist())
    assert not set(train["problem"].to_pylist()) & set(heldout["problem"].to_pylist())


@pytest.mark.parametrize(
    ("name", "problems", "solutions"),
    [
        ("aime24", 30, 0),
        ("aime25", 30, 0),
        ("amc23", 40, 0),
        ("math500", 500, 500),
        ("gsm8k", 1319, 1319),
    ],
)
def test_benchmark_files_load_whole(name: str, problems: int, solutions: int) -> None:
    if "CASTCTL_BENCHMARKS" not in os.environ:
        pytest.skip("CASTCTL_BENCHMARKS names no folder of benchmark files")
    prompts = require_answers(load(Path(os.environ["CASTCTL_BENCHMARKS"]) / f"{name}.jsonl"))
    assert len(prompts.table) == problems
    assert len(prompts.dropped) == 0
    assert len(set(prompts.table["prompt_id"].to_pylist())) == problems
    assert problems - prompts.table["solution"].null_count == solutions


def test_a_context_stands_before_its_question(tmp_path: Path) -> None:
    rows: Rows = [
        {"context": "Let $x=2$.", "question": "Find $x$.", "final_answer": ["2"]},
        {"context": None, "question": "Find $y$.", "final_answer": ["1", "3"]},
        {"context": " ", "question": "Find $z$.", "final_answer": ["4"]},
        {"context": "Nothing is asked.", "question": "", "final_answer": ["5"]},
    ]
    named = load(jsonl(tmp_path, rows, "olympiadbench.jsonl"))
    whole = ["Let $x=2$.\n\nFind $x$.", "Find $y$.", "Find $z$."]
    assert named.table["problem"].to_pylist() == whole
    assert named.table["answer"].to_pylist() == ["2", "1, 3", "4"]
    assert named.dropped["reason"].to_pylist() == ["empty problem"]
    other = load(jsonl(tmp_path, rows, "other.jsonl"))  # where a context may be anything
    assert other.table["problem"].to_pylist() == ["Find $x$.", "Find $y$.", "Find $z$."]


# The hub: a small one of our own, asked by a process of its own

SHA = "0123456789abcdef0123456789abcdef01234567"
CARD = """---
configs:
- {config_name: main, data_files: [{split: train, path: a.jsonl}, {split: test, path: b.jsonl}]}
- {config_name: one, data_files: [{split: train, path: a.jsonl}]}
---
"""
SUMS = {
    "README.md": CARD,
    "a.jsonl": '{"question": "1+1", "answer": "one and one\\n#### 2"}\n',
    "b.jsonl": '{"question": "2+1", "answer": "two and one\\n#### 3"}\n',
}

PUBLISHED = {
    "aime24": ("HuggingFaceH4/aime_2024", None, "train", {"problem": "P", "answer": "204"}, "204"),
    "aime25": ("MathArena/aime_2025", None, "train",
               {"problem_idx": 1, "problem": "P", "answer": 70}, "70"),
    "aime26": ("MathArena/aime_2026", None, "train",
               {"problem_idx": 1, "problem": "P", "answer": 71}, "71"),
    "amc23": ("math-ai/amc23", None, "test", {"question": "P", "answer": "27"}, "27"),
    "math500": ("HuggingFaceH4/MATH-500", None, "test",
                {"problem": "P", "solution": "S", "answer": "\\frac12", "subject": "x", "level": 2},
                "\\frac12"),
    "hmmt25": ("MathArena/hmmt_feb_2025", None, "train",
               {"problem_idx": 1, "problem": "P", "answer": "\\sqrt{2}"}, "\\sqrt{2}"),
    "minerva": ("math-ai/minervamath", None, "test", {"question": "P", "answer": "4.5e33"},
                "4.5e33"),
    "olympiadbench": ("Hothan/OlympiadBench", "OE_TO_maths_en_COMP", "train",
                      {"question": "P", "final_answer": ["$1$", "$\\frac12$"], "context": "C"},
                      "$1$, $\\frac12$"),
    "gsm8k": ("openai/gsm8k", "main", "test", {"question": "P", "answer": "So\n#### 1,018"},
              "1018"),
}  # fmt: skip
"""The benchmarks as they are published: hub id, configuration, split, a row, and its answer."""


def published_files(config: str | None, split: str, row: dict[str, Any]) -> dict[str, str]:
    """A repository with one configuration of that split, and another of other rows."""
    name, other = config or "default", "validation"
    card = {"configs": [
        {"config_name": name, "data_files": [{"split": split, "path": "a.jsonl"},
                                             {"split": other, "path": "b.jsonl"}]},
        {"config_name": "another", "data_files": [{"split": split, "path": "b.jsonl"}]},
    ]}  # fmt: skip
    wrong = row | {"problem" if "problem" in row else "question": "wrong"}
    return {
        "README.md": f"---\n{json.dumps(card)}\n---\n",
        "a.jsonl": json.dumps(row) + "\n",
        "b.jsonl": json.dumps(wrong) + "\n",
    }


REPOSITORIES = {"acme/sums": SUMS} | {
    hub_id: published_files(config, split, row)
    for hub_id, config, split, row, _ in PUBLISHED.values()
}


class Hub(BaseHTTPRequestHandler):
    """A few data sets, as far as the client libraries ask for them."""

    def do_GET(self) -> None:
        path = urlparse(self.path).path
        words = path.removeprefix("/api").split("/")
        name = "/".join(words[2:4])
        files = REPOSITORIES.get(name)
        if files is None:
            self.reply(404, "", "RepoNotFound")
            return
        api, file = f"/api/datasets/{name}", f"/datasets/{name}/resolve/{SHA}/"
        if path in {api, f"{api}/revision/main", f"{api}/revision/{SHA}"}:
            names = [{"rfilename": each} for each in files]
            self.reply(200, json.dumps({"id": name, "sha": SHA, "siblings": names}))
        elif path.startswith(f"{api}/tree/"):
            tree = [
                {"type": "file", "oid": SHA, "size": len(text), "path": each}
                for each, text in files.items()
            ]
            self.reply(200, json.dumps(tree))
        elif path.startswith(f"{api}/revision/"):
            self.reply(404, "", "RevisionNotFound")
        elif path.startswith(file):
            each = path.removeprefix(file)
            found = each in files
            self.reply(200 if found else 404, files.get(each, ""), "" if found else "EntryNotFound")
        else:
            self.reply(404, "", "RepoNotFound")

    do_HEAD = do_GET

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.reply(200, "[]")

    def reply(self, status: int, text: str, error: str = "") -> None:
        self.send_response(status)
        headers = {"X-Repo-Commit": SHA, "ETag": f'"{hash(text)}"', "X-Error-Code": error}
        for name, value in {**headers, "Content-Length": len(text)}.items():
            self.send_header(name, str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(text.encode())

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def hub() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


ASK = """
import json, sys
from castctl.data.prompts import load_prompts
from castctl.errors import UserError
from castctl.recipe.recipe import DataSettings
for settings in json.loads(sys.argv[1]):
    try:
        prompts = load_prompts(DataSettings(**settings))
        table = prompts.table.select(["problem", "answer", "source"])
        print(json.dumps([*table.to_pylist(), *prompts.notes, prompts.revision]))
    except UserError as error:
        print(json.dumps(str(error)))
"""


def ask(home: Path, settings: Rows, **environment: str) -> list[Any]:
    environment = {**os.environ, "HF_HOME": str(home), **environment}
    command = [sys.executable, "-c", ASK, json.dumps(settings)]
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, check=True, timeout=60
    )
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.slow
def test_a_hub_data_set_is_loaded_at_its_commit_and_again_from_the_cache(
    tmp_path: Path, hub: str
) -> None:
    sums = {"path": "acme/sums", "config": "main"}
    train = [{"problem": "1+1", "answer": "2", "source": "acme/sums"}, SHA]
    test = [{"problem": "2+1", "answer": "3", "source": "acme/sums"}, SHA]
    settings: Rows = [
        sums,
        {**sums, "split": "test", "revision": SHA},
        {**sums, "config": "one", "split": "test"},
        {**sums, "split": "dev"},
        {**sums, "config": "none"},
        {**sums, "revision": "none"},
        {"path": "acme/none"},
    ]
    loaded = ask(tmp_path, settings, HF_ENDPOINT=hub)
    assert loaded[:3] == [train, test, [train[0], "acme/sums has one split only: train", SHA]]
    complaints = [
        "set data.split to one of: train, test",
        "Available: ['main', 'one']",
        "mend data.revision",
        "--data FILE",
    ]
    for complaint, line in zip(complaints, loaded[3:], strict=True):
        assert complaint in line
        assert "\n" not in line

    offline = ask(tmp_path, [*settings[:2], settings[5]], HF_ENDPOINT=hub, HF_HUB_OFFLINE="1")
    assert offline[:2] == [train, test]
    assert f"holds revision {SHA} only, not none" in offline[2]


@pytest.mark.slow
def test_every_benchmark_is_read_from_where_it_is_published(tmp_path: Path, hub: str) -> None:
    settings = [task_source(task, DataSettings()).model_dump(mode="json") for task in PUBLISHED]
    found = ask(tmp_path, settings, HF_ENDPOINT=hub)
    problems = {"olympiadbench": "C\n\nP"}
    expected = [
        [{"problem": problems.get(task, "P"), "answer": answer, "source": task}, SHA]
        for task, (*_, answer) in PUBLISHED.items()
    ]
    assert found == expected
    assert PUBLISHED.keys() == BENCHMARKS.keys() - {"embedded"}


@pytest.mark.slow
def test_without_a_hub_the_user_is_told_within_seconds(tmp_path: Path) -> None:
    nowhere = "http://127.0.0.1:9"
    for environment in ({"HF_ENDPOINT": nowhere}, {"HF_HUB_OFFLINE": "1"}):
        [line] = ask(tmp_path, [{"path": "gsm8k"}], **environment)
        assert "openai/gsm8k" in line
        assert "--data FILE" in line
