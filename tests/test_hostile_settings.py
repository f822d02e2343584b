"""Settings, recipes and rows that would hang the machine or fill its memory end in one line."""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import re
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from castctl.data.columns import Columns, read_example
from castctl.data.prompts import load_prompts
from castctl.errors import UserError
from castctl.recipe.names import sections_in
from castctl.recipe.reader import dump_recipe, load_recipe
from castctl.recipe.recipe import DataSettings, Recipe
from castctl.recipe.verifier import VerifierSettings
from castctl.shards.part import read_json, write_json
from castctl.shards.stage import StepFolder
from castctl.stages.evaluate.results import read_result
from castctl.stages.train.metrics import Metrics
from castctl.verify.judge import Row, judge
from castctl.verify.pool import CheckPool
from conftest import Cli


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@contextlib.contextmanager
def within(seconds: int) -> Iterator[None]:
    """Fails after so long, where it would wait for ever."""

    def late(*_: object) -> None:
        raise AssertionError(f"took longer than {seconds} s")

    old = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, old)


def refused(done: subprocess.CompletedProcess[str]) -> str:
    line = done.stderr.rstrip("\n").splitlines()[-1]
    assert line.startswith("castctl: ") and len(line) < 600, done.stderr
    return line


# Numbers


def whole_numbers(section: type[BaseModel]) -> Iterator[tuple[type[BaseModel], str]]:
    """Every setting below a section that takes a whole number."""
    for name, field in section.model_fields.items():
        inner = sections_in(field)
        for each in inner:
            yield from whole_numbers(each)
        if re.search(r"(^|\W)int\W", str(field.annotation)):
            yield section, name


def test_every_whole_number_has_an_upper_bound() -> None:
    found = list(whole_numbers(Recipe))
    assert len(found) > 30
    for section, name in found:
        with pytest.raises(ValidationError) as caught:
            section.model_validate({name: 2**63})
        kinds = {error["type"] for error in caught.value.errors() if error["loc"][-1] == name}
        assert kinds & {"less_than", "less_than_equal"}, (section, name)


def test_bounds_leave_room_for_every_use() -> None:
    recipe = load_recipe(
        overrides=[f"seed={2**63 - 1}", "train.steps=1000000", "sampling.max_tokens=10000000",
                   "data.max_prompt_tokens=10000000", "sampling.n=100000", "verifier.workers=1024"]
    )  # fmt: skip
    assert recipe.seed == 2**63 - 1


LARGE = [
    (("rollout", "-n", str(10**18)), "sampling.n: input should be less than or equal to 100000"),
    (("train", "--steps", str(10**18)), "train.steps: input should be less than or equal to"),
    (("train", "--set", f"seed={2**63}"), "seed: input should be less than 9223372036854775808"),
    (("train", "--set", "seed=0x" + "f" * 9999), "seed holds a number that is far too large"),
    (("train", "--set", f"train.part_size={10**12}"), "train.part_size: input should be less"),
    (("eval", "--max-tokens", str(10**12)), "max_tokens: input should be less than or equal"),
    (("train", "--set", f"verifier.workers={10**9}"), "verifier.workers: input should be less"),
    (("train", "--set", "verifier.timeout=1e300"), "verifier.timeout: input should be less"),
    (("train", "--set", "verifier.memory_gb=1e300"), "verifier.memory_gb: input should be less"),
    (("compare", "tiny", "tiny", "--seeds", str(10**18)), "--seeds"),
]


@pytest.mark.parametrize(("arguments", "words"), LARGE)
def test_a_number_without_measure(castctl: Cli, arguments: tuple[str, ...], words: str) -> None:
    assert words in refused(castctl(*arguments, code=2, timeout=30))


# Recipes

ALIASES = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n"
    for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)

RECIPES = [
    (ALIASES, "line 2: an alias; write out what it stands for"),
    ("train: {steps: 2}\ntrain: {steps: 3}\n", "line 2: train is written twice; keep one"),
    ("train: " + "[" * 20_000, "nested deeper than 30 levels"),
    ("about: " + "x" * 300_000, "longer than 262,144 characters"),
    ("extends: /dev/zero", "/dev/zero is no regular file"),
    ("extends: pipe.yaml", "pipe.yaml is no regular file"),
]


@pytest.mark.parametrize(("text", "words"), RECIPES)
def test_a_recipe_without_end(castctl: Cli, text: str, words: str) -> None:
    os.mkfifo("pipe.yaml")
    Path("r.yaml").write_text(text)
    assert words in refused(castctl("train", "r.yaml", code=2, timeout=30))


def test_what_is_written_is_read_again() -> None:
    shared = {"a": [1, 2]}
    recipe = load_recipe(data={"chat_template_options": {"one": shared, "two": shared}})
    text = dump_recipe(recipe)
    assert "&" not in text
    Path("r.yaml").write_text(text)
    assert load_recipe("r.yaml") == recipe
    with pytest.raises(UserError, match="shorten its texts"):
        dump_recipe(load_recipe(data={"system_prompt": "x" * 300_000}))


# Files


@pytest.mark.parametrize("command", ["train --data", "eval", "eval --rescore", "train"])
@pytest.mark.parametrize("file", ["pipe.jsonl", "/dev/zero"])
def test_a_file_that_never_ends(castctl: Cli, command: str, file: str) -> None:
    os.mkfifo("pipe.jsonl")
    done = castctl(*command.split(), file, code=2, timeout=60)
    assert f"{file} is no regular file" in refused(done)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[" * 100_000, "recursion"),
        ('{"a": ' + "9" * 5000 + "}", "digits"),
        ("[[1, 2]]", "found list"),
        ("[]", "found list"),
        ("5", "found int"),
    ],
)
def test_json_that_is_no_object(text: str, words: str) -> None:
    Path("x.json").write_text(text)
    with pytest.raises(UserError, match=f"x.json is no JSON object.*{words}"):
        read_json(Path("x.json"))


def test_pipes_where_castctl_writes_files() -> None:
    os.mkfifo("pipe")
    with within(20):
        for read in (read_json, Metrics):
            with pytest.raises(UserError, match="pipe is no regular file"):
                read(Path("pipe"))
    with open("long.json", "wb") as stream:
        stream.truncate(2**40)  # a terabyte of holes
    with pytest.raises(UserError, match="longer than"):
        read_json(Path("long.json"))


def test_a_part_that_is_a_pipe(castctl: Cli) -> None:
    folder = Path("x/step-00000/rollouts")
    folder.mkdir(parents=True)
    os.mkfifo(folder / "part-00000.parquet")
    done = castctl("score", "--run", "x/step-00000", code=2, timeout=60)
    assert "part-00000.parquet is no regular file" in refused(done)


def test_a_model_folder_with_a_pipe(castctl: Cli) -> None:
    Path("m").mkdir()
    Path("m/config.json").write_text("{}")
    os.mkfifo("m/tokenizer.json")
    Path("d.jsonl").write_text('{"problem": "1 + 1", "answer": "2"}\n')
    done = castctl("rollout", "--model", "m", "--data", "d.jsonl", code=2, timeout=60)
    assert "m/tokenizer.json is no regular file" in refused(done)


# Rows

LONG = "1 + 1 " * (50 * 2**20 // 6)


def test_a_row_of_50_megabytes_is_left_out_unread() -> None:
    rows: list[dict[str, Any]] = [
        {"problem": "1 + 1", "answer": "2"},
        {"problem": LONG, "answer": "2"},
        {"problem": "2 + 2", "answer": "4", "solution": LONG[: 3 * 10**6]},
        {"problem": [{"role": "user", "content": ""}] * 100_000, "answer": "4"},
    ]
    Path("d.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    start = time.monotonic()
    prompts = load_prompts(DataSettings(path="d.jsonl"))
    assert prompts.table["problem"].to_pylist() == ["1 + 1"]
    assert prompts.dropped["row"].to_pylist() == [1, 2, 3]
    assert set(prompts.dropped["reason"].to_pylist()) == {"too long"}
    assert time.monotonic() - start < 20


def test_a_line_that_unpacks_without_end_is_refused() -> None:
    with gzip.open("d.jsonl.gz", "wb", 1) as stream:
        stream.write(b'{"problem": "')
        for _ in range(300):
            stream.write(b" " * 2**20)
    with pytest.raises(UserError, match=r"line 1: longer than 268,435,456 bytes"):
        load_prompts(DataSettings(path="d.jsonl.gz"))


def test_a_cell_that_is_nested_deep() -> None:
    Path("d.jsonl").write_text('{"problem": "p", "answer": ' + "[" * 900 + "]" * 900 + "}\n")
    with pytest.raises(UserError, match=r"row 0 counted from 0: nested too deep|recursion"):
        load_prompts(DataSettings(path="d.jsonl"))


SLOW = {
    "turns": "system\n" + "\nuser\n" * 30_000,
    "turns of one, the end of another": "system\n"
    + "\nuser\n" * 30_000
    + "<\uff5cAssistant\uff5c>",
    "turns of the other": "<\uff5cUser\uff5c>" * 30_000,
    "the other's, the end of one": "<\uff5cUser\uff5c>" * 30_000 + "assistant",
    "a sum": "1+1" * 60_000,
    "a number": "a\n#### " + "123," * 50_000,
}


@pytest.mark.parametrize("text", SLOW)
def test_patterns_take_no_longer_than_the_text(text: str) -> None:
    columns = Columns("problem", "answer", "solution")
    rows = [
        {"problem": SLOW[text], "answer": "1"},
        {"problem": "p", "answer": SLOW[text]},
        {"problem": "p", "solution": SLOW[text].replace("\n", " ")},
    ]
    with within(20):
        for row in rows:
            with contextlib.suppress(UserError):
                read_example(row, columns, Counter())
        gold = read_example(rows[2], Columns("problem", None, "solution"), Counter())
    assert gold.problem == "p"


def test_a_completion_of_50_megabytes_is_an_error_and_not_read() -> None:
    settings = VerifierSettings(workers=1)
    rows = [Row("p", LONG + "\\boxed{2}", "2", "stop"), Row("p", "\\boxed{2}", "2", "stop")]
    with CheckPool(settings) as pool:
        judged = judge(pool, settings, rows)
    assert [each.verdict for each in judged] == ["error", "correct"]
    assert "more than 10,000,000 characters" in (judged[0].message or "")
    assert judged[0].reward is None


# Models and results


@pytest.mark.parametrize(
    "config", [{"num_hidden_layers": 10**9}, {"text_config": {"num_experts": 10**9}}]
)
def test_a_model_that_would_be_made_without_end(castctl: Cli, config: dict[str, Any]) -> None:
    Path("m").mkdir()
    Path("m/config.json").write_text(json.dumps({"model_type": "qwen3", **config}))
    Path("d.jsonl").write_text('{"problem": "1 + 1", "answer": "2"}\n')
    train = ("train", "--model", "m", "--data", "d.jsonl")
    assert "=1e+09, and castctl loads models of at most" in refused(castctl(*train, code=2))
    castctl(*train, "--dry-run", timeout=60)


@pytest.mark.parametrize("value", [5, "x", None, [1], {"a": [1]}])
def test_results_of_another_kind(value: object) -> None:
    folder = StepFolder(Path("eval/a/step-00000"), 0)
    write_json(folder.path / "results.json", {"task": "a", "k": 1, "avg": value, "pass": {}})
    with pytest.raises(UserError, match="is not as castctl eval writes it"):
        read_result(folder)
