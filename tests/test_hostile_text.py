"""Text made to break a terminal: printed harmlessly, stored as it is."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from castctl.report.console import printable
from castctl.runs.run import open_run
from castctl.verify.spans import token_span
from conftest import Cli

HOSTILE = {
    "colours": "\x1b[31mred\x1b[0m \x9b1m",
    "link": "\x1b]8;;http://evil\x07here\x1b]8;;\x07 \x1b]8;;http://evil\x1b\\x\x1b]8;;\x1b\\",
    "clipboard": "\x1b]52;c;aGVsbG8=\x07",
    "screen": "\x1b[?1049h\x1b[2J\x1b[?25l\x1bc\x1bP+q\x1b\\",
    "markup": "[red]x[/red] [/] [link=http://evil]y[/link] [bold [/bold]",
    "direction": "abc\u202egnp.exe\u2066\u2069\u200e\u200f\u061c",
    "invisible": "a\u200bb\u200c\ufeffc\u00add\u2028e\u2029f\u0085g",
    "control": "nul\x00 bel\x07 back\x08 tab\t return\rline\n del\x7f",
}
EVERYTHING = " ".join(HOSTILE.values())
NAME = "\x1b[31m[red]\u202e\t\x07[bold"
"""What may stand in the name of a file, a run or a column."""

SMALL = (
    "-n", "2", "--max-tokens", "8", "--set", "data.max_prompt_tokens=9000",
    "--set", "train.part_size=4",
)  # fmt: skip


def assert_harmless(done: subprocess.CompletedProcess[str]) -> None:
    """Neither stream holds anything but printable characters and line feeds, nor a traceback."""
    for stream in (done.stdout, done.stderr):
        bad = {
            char
            for char in stream
            if char != "\n" and unicodedata.category(char) in ("Cc", "Cf", "Cs", "Zl", "Zp")
        }
        assert not bad, (bad, stream)
        assert "Traceback" not in stream, stream


def rows() -> list[dict[str, str]]:
    problems = [
        {"problem": f"1 + {text} ?", "answer": f"<{text}>", "solution": f"so {text}!"}
        for text in (*HOSTILE.values(), EVERYTHING)
    ]
    return [*problems, {"problem": "x" * 2000, "answer": "y" * 10**6, "solution": "z" * 10**6}]


def write_jsonl(path: Path) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows()), encoding="utf-8")


def write_csv(path: Path) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows()[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows())


def write_parquet(path: Path) -> None:
    pq.write_table(pa.Table.from_pylist(rows()), path)


@pytest.mark.slow
@pytest.mark.parametrize("write", [write_jsonl, write_csv, write_parquet])
def test_data_is_stored_as_it_was_and_printed_harmlessly(
    castctl: Cli, tmp_path: Path, write: Callable[[Path], None]
) -> None:
    file = f"{NAME}.{write.__name__.removeprefix('write_')}"
    write(tmp_path / file)
    run = "run[red][bold"
    for command in (("rollout", "--data", file, *SMALL), ("score",), ("shape",)):
        assert_harmless(castctl(*command, "--run", run))
    if write is write_jsonl:
        for command in (
            ("runs",),
            ("inspect", f"runs/{run}"),
            ("inspect", f"runs/{run}/step-00000"),
        ):
            assert_harmless(castctl(*command))
        (tmp_path / file).rename(
            tmp_path / "[red][bold.jsonl"
        )  # an evaluation's folder is so named
        few = ("-k", "1", "--limit", "4", *SMALL[2:])
        assert_harmless(castctl("eval", "--data", "[red][bold.jsonl", *few))
    folder = tmp_path / "runs" / run
    prompts = pq.read_table(folder / "prompts/part-00000.parquet").to_pylist()
    texts = ("problem", "answer", "solution")
    assert [{name: row[name] for name in texts} for row in prompts] == rows()
    assert {row["source"] for row in prompts} == {file}
    step = open_run(str(folder)).step(0)
    stored = step.table("rollouts").to_pylist()
    assert {row["problem"] for row in stored} == {row["problem"] for row in rows()}
    assert {row["answer"] for row in stored} == {row["answer"] for row in rows()}
    assert step.table("advantages").num_rows == 2 * len(rows())


HALF = "\\ud800"
WRONG_DATA = {
    "half-pair.jsonl": (f'{{"problem": "1", "answer": "2{HALF}"}}\n'.encode(), "line 1"),
    "half-pair-bytes.jsonl": (b'{"problem": "1\xed\xa0\x80", "answer": "2"}\n', "line 1"),
    "latin1.jsonl": (b'{"problem": "1"}\n{"problem": "\xe9", "answer": "2"}\n', "line 2"),
    "latin1.csv": (b"problem,answer\n\xe9,2\n", "latin1.csv"),
    "column.jsonl": (json.dumps({EVERYTHING: "1"}).encode(), "data.problem_column"),
    "role.jsonl": (
        json.dumps({"problem": [{"role": EVERYTHING, "content": "x"}]}).encode(), "row 0",
    ),
    "broken.jsonl": (b'{"problem": "\x1b[31m\n', "line 1"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG_DATA)
def test_wrong_data_is_refused_in_one_harmless_line(
    castctl: Cli, tmp_path: Path, name: str
) -> None:
    content, place = WRONG_DATA[name]
    file = f"{NAME}{name}"
    (tmp_path / file).write_bytes(content)
    done = castctl("rollout", "--data", file, code=2)
    assert_harmless(done)
    assert place in done.stderr.splitlines()[-1] and printable(NAME) in done.stderr


def test_parquet_that_is_not_utf8_is_refused(castctl: Cli, tmp_path: Path) -> None:
    broken = pa.Array.from_buffers(pa.string(), 1, pa.array([b"\xff\xfe"], pa.binary()).buffers())
    pq.write_table(pa.table({"problem": broken, "answer": ["1"]}), tmp_path / "broken.parquet")
    done = castctl("rollout", "--data", "broken.parquet", code=2)
    assert_harmless(done)
    assert "broken.parquet cannot be read" in done.stderr


WRONG = [
    ("rollout", "--data", f"missing{NAME}.jsonl"),
    ("rollout", "--data", "embedded", "--model", f"missing{NAME}"),
    ("rollout", "--data", "embedded", "--model", f"owner/missing{NAME}"),
    ("rollout", "--recipe", f"missing{NAME}.yaml"),
    ("rollout", "--set", f"data.problem_column={NAME}"),
    ("rollout", "--set", f"sampling.n={EVERYTHING}".replace("\x00", "")),
    ("rollout", "--set", f"{NAME}=1"),
    ("rollout", "--set", NAME),
    ("rollout", "--set", 'data.prompt_template="\\ud800 {{ problem }}"'),
    ("rollout", "--set", 'data.prompt_template="\\e[31m{{ nothing }}"'),
    ("rollout", "--set", 'data.prompt_template="{{ problem }} {{ \\e[31m"'),
    ("rollout", "--set", 'data.path="nul\\0.jsonl"'),
    ("rollout", "--device", NAME),
    ("rollout", "--shard", NAME),
    ("rollout", "--run", "half\udcff"),
    (f"--{NAME}",),
    (NAME,),
    ("train", "--method", NAME),
    ("score", "--run", f"missing{NAME}"),
    ("score", "--signals", NAME),
    ("train", "--from", f"missing{NAME}/step-00000"),
    ("eval", NAME),
    ("eval", "--checkpoint", NAME),
    ("inspect", NAME),
]


@pytest.mark.parametrize("arguments", WRONG, ids=lambda value: ascii(value)[:40])
def test_wrong_input_is_quoted_harmlessly(castctl: Cli, arguments: tuple[str, ...]) -> None:
    done = castctl(*arguments, code=2)
    assert_harmless(done)
    assert done.stderr.splitlines()[-1].startswith("castctl: ")


def test_a_dry_run_prints_hostile_settings_harmlessly(castctl: Cli) -> None:
    quoted = json.dumps(EVERYTHING)
    keys = ("data.system_prompt", "logging.project", "eval.task")
    changes = [word for key in keys for word in ("--set", f"{key}={quoted}")]
    done = castctl("train", "--dry-run", *changes)
    assert_harmless(done)


TOKENS = (EVERYTHING, "x" * 2**20, rf"\boxed{{{HOSTILE['clipboard']}}}", r"\boxed{5}")


@pytest.fixture
def foreign(tmp_path: Path) -> Callable[..., Path]:
    """Writes rollouts with these completions, as another tool would."""

    def write(tokenizer: Any, completions: list[list[int]]) -> Path:
        table = [
            {
                "prompt_id": "a" * 16, "sample": sample, "problem": EVERYTHING, "answer": "5",
                "prompt_token_ids": [1, 2, 3], "completion_token_ids": ids,
                "completion": tokenizer.decode(ids, skip_special_tokens=True),
                "finish_reason": "stop",
            }
            for sample, ids in enumerate(completions)
        ]  # fmt: skip
        folder = tmp_path / "elsewhere/step-00000/rollouts"
        folder.mkdir(parents=True)
        pq.write_table(pa.Table.from_pylist(table), folder / "part-00000.parquet")
        return folder.parent

    return write


@pytest.fixture(scope="module")
def loud_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded model with tokens whose text is hostile, one of them a megabyte long."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from castctl import embedded

    path = embedded.ensure().model
    tokenizer = AutoTokenizer.from_pretrained(path)
    tokenizer.add_tokens(list(TOKENS))
    model = AutoModelForCausalLM.from_pretrained(path)
    model.resize_token_embeddings(len(tokenizer))
    folder = tmp_path_factory.mktemp("loud")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.slow
def test_hostile_completions_and_a_megabyte_in_a_token(
    castctl: Cli, foreign: Callable[..., Path], loud_model: Path
) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(loud_model)
    everything, huge, clipboard, right = tokenizer.convert_tokens_to_ids(list(TOKENS))
    completions = [
        [everything, clipboard],
        [huge, right],
        [huge, everything],
        [right, clipboard, huge],
    ]
    step = foreign(tokenizer, completions)
    done = castctl("score", "--run", "elsewhere", "--model", str(loud_model))
    assert_harmless(done)
    rewards = pq.read_table(step / "rewards/part-00000.parquet").to_pylist()
    assert [row["verdict"] for row in rewards] == ["wrong", "correct", "no_answer", "wrong"]
    assert rewards[0]["extracted"] == HOSTILE["clipboard"]
    assert [row["answer_start"] for row in rewards] == [1, 1, None, 1]
    assert_harmless(castctl("shape", "--run", "elsewhere"))
    text = tokenizer.decode([huge, right])
    assert token_span(tokenizer, [huge, right], len(text) - 2, len(text) - 1) == (1, 2)


@pytest.mark.slow
def test_what_a_verifier_says_is_printed_harmlessly(
    castctl: Cli, foreign: Callable[..., Path], loud_model: Path, tmp_path: Path
) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(loud_model)
    foreign(tokenizer, [[tokenizer.convert_tokens_to_ids(EVERYTHING)]] * 2)
    (tmp_path / "rules.py").write_text(
        f"def check(problem, completion, answer):\n    raise ValueError({EVERYTHING!r} * 9)\n"
        f"def load(problem): pass\n"
    )
    for function, words in (("check", "most often: ValueError"), ("load", "must take")):
        done = castctl(
            "score", "--run", "elsewhere", "--model", str(loud_model),
            "--set", f"verifier.function=rules.py:{function}", code=2,
        )  # fmt: skip
        assert_harmless(done)
        assert words in done.stderr


def test_a_chat_template_that_refuses_is_quoted_harmlessly(
    castctl: Cli, loud_model: Path, tmp_path: Path
) -> None:
    shutil.copytree(loud_model, tmp_path / "model")
    (tmp_path / "model/chat_template.jinja").write_text(
        "{{ raise_exception('\x1b[31m[red]\u202e') }}", encoding="utf-8"
    )
    done = castctl("rollout", "--model", "model", "--data", "embedded", "--limit", "1", code=2)
    assert_harmless(done)
    assert "chat template refuses" in done.stderr


@given(st.text(st.characters(exclude_categories=())))
def test_printable_text_is_one_harmless_line(text: str) -> None:
    shown = printable(text)
    shown.encode()
    assert all(char.isprintable() or unicodedata.category(char) == "Zs" for char in shown)
    assert len(shown.splitlines()) <= 1
