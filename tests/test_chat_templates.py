"""Chat templates of every kind, through the command line: what is asked and how it is judged."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from castctl import embedded
from castctl.embedded.model import CHAT_TEMPLATE
from castctl.models.loading import load_tokenizer
from castctl.recipe.model import ModelSettings
from castctl.recipe.verifier import VerifierSettings
from castctl.runs.run import open_run
from castctl.stages.score.rewards import rows_to_judge
from conftest import Cli

THINK = "{%- if add_generation_prompt -%}{{ '<think>\\n' }}{%- endif -%}"


def model(template: str) -> str:
    """A folder `model` of the embedded model with another chat template."""
    folder = Path(shutil.copytree(embedded.ensure().model, "model"))
    (folder / "chat_template.jinja").write_text(template)
    return str(folder)


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_a_box_in_thoughts_that_the_template_opened_earns_nothing(castctl: Cli) -> None:
    name = model(CHAT_TEMPLATE + THINK)
    castctl("eval", "embedded", "--model", name, "--limit", "4", "-k", "2", "--run", "thinking")
    folder = next(Path("runs/thinking/eval").glob("*/step-00000"))
    completions = pq.read_table(folder / "rollouts")["completion"].to_pylist()
    assert any(r"\boxed{" in text for text in completions), "no box, so nothing is tested"
    assert not any("</think>" in text for text in completions)
    verdicts = set(pq.read_table(folder / "rewards")["verdict"].to_pylist())
    assert verdicts <= {"no_answer", "truncated"}
    [again] = json.loads(castctl("eval", "--rescore", str(folder), "--json").stdout)["parts"]
    assert {move["new"] for move in again["moves"]} <= {"no_answer", "truncated"}

    few = ("--set", "train.steps=1", "--set", "train.prompts_per_step=2", "--set", "data.limit=4")
    castctl("rollout", "--model", name, "--data", "embedded", "--run", "trained", *few)
    castctl("score", "--run", "trained", "--model", name)
    rewards = open_run("trained").step(0).table("rewards")
    assert set(rewards["verdict"].to_pylist()) <= {"no_answer", "truncated"}


@pytest.mark.parametrize("special", [False, True])
def test_thoughts_that_end_unseen_are_known_by_their_token(special: bool) -> None:
    """A special token is left out of the completion's text."""
    tokenizer = load_tokenizer(embedded.ensure().model, ModelSettings())
    tokenizer.add_tokens(["<think>", "</think>"], special_tokens=special)
    texts = ["2", "hm</think>2"]
    ids = [tokenizer(text, add_special_tokens=False).input_ids for text in texts]
    prompt = tokenizer("2+2?<think>\n", add_special_tokens=False).input_ids
    table = pa.table(
        {
            "problem": ["2+2?"] * 2, "answer": ["4"] * 2, "finish_reason": ["stop"] * 2,
            "completion": [tokenizer.decode(each, skip_special_tokens=True) for each in ids],
            "prompt_token_ids": pa.array([prompt] * 2, pa.list_(pa.int32())),
            "completion_token_ids": pa.array(ids, pa.list_(pa.int32())),
        }
    )  # fmt: skip
    assert [row.thinking for row in rows_to_judge(table, tokenizer, VerifierSettings())] == [
        True,
        not special,
    ]


TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hi!"},
    {"role": "assistant", "content": "Hello."},
]
TOLD = "<|im_start|>{}\n{}<|im_end|>\n"
BEFORE = "".join(TOLD.format(turn["role"], turn["content"]) for turn in TALK)


def talks() -> str:
    """A file of two conversations and a problem alone."""
    rows = [
        {"prompt": [*TALK, {"role": "user", "content": "2+2?"}], "answer": "4"},
        {"prompt": [*TALK[1:], {"role": "user", "content": "2+2?"}], "answer": "4"},
        {"prompt": "2+2?", "answer": "4"},
    ]
    Path("talks.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return "talks.jsonl"


def prompts_in(table: pa.Table, column: str) -> set[str]:
    tokenizer = load_tokenizer(embedded.ensure().model, ModelSettings())
    return {tokenizer.decode(ids) for ids in table[column].to_pylist()}


def test_student_teacher_and_evaluation_are_asked_the_whole_conversation(castctl: Cli) -> None:
    few = ("--set", "train.steps=1", "--set", "sampling.n=2", "--set", "sampling.max_tokens=4",
           "--set", "data.prompt_template={{ problem }}",
           "--set", "data.teacher_template={{ prompt }} It is {{ answer }}.")  # fmt: skip
    castctl("rollout", "--method", "rlsd", "--data", talks(), "--run", "r", *few)
    castctl("score", "--run", "r")
    step = open_run("r").step(0)
    rollouts, signals = step.table("rollouts"), step.table("signals")
    before = {BEFORE, BEFORE.removeprefix(TOLD.format("system", "Be brief.")), ""}

    def asked(text: str) -> set[str]:
        return {b + TOLD.format("user", text) + "<|im_start|>assistant\n" for b in before}

    assert prompts_in(rollouts, "prompt_token_ids") == asked("2+2?")
    assert prompts_in(signals, "teacher_prompt_token_ids") == asked("2+2? It is 4.")
    castctl("eval", "--data", "talks.jsonl", "-k", "2", "--max-tokens", "4", "--run", "r")
    evaluated = next(Path("runs/r/eval").glob("talks*/step-00000/rollouts"))
    assert prompts_in(pq.read_table(evaluated), "prompt_token_ids") == asked("2+2?")


def test_conversations_need_a_template_that_holds_them(castctl: Cli) -> None:
    drops = CHAT_TEMPLATE.replace("for message in messages", "for message in messages[-1:]")
    for arguments, words in (
        (("--model", model(drops)), "leaves out, moves or changes the system message"),
        (("--set", "data.chat=false"), "set data.chat=true"),
    ):
        done = castctl("rollout", "--data", talks(), *arguments, code=2)
        assert words in done.stderr.splitlines()[-1]


DATED = "{{- 'Today: ' + strftime_now('%Y-%m-%d') }}" + CHAT_TEMPLATE


def test_the_date_of_a_prompt_is_recorded_and_told(castctl: Cli) -> None:
    name, few = model(DATED), ("--limit", "2", "-k", "2", "--max-tokens", "4")
    castctl("eval", "embedded", "--model", name, *few, "--run", "one")
    castctl(
        "eval", "embedded", "--model", name, *few, "--set", "data.date=2025-06-07", "--run", "other"
    )
    castctl("eval", "--model", "embedded", *few, "--run", "none")
    files = {run: next(Path("runs", run).glob("eval/*/*/results.json")) for run in
             ("one", "other", "none")}  # fmt: skip
    dates = [json.loads(file.read_text())["date"] for file in files.values()]
    assert dates == ["2026-01-01", "2025-06-07", None]
    assert "date: '2026-01-01'" in Path("runs/one/recipe.yaml").read_text()
    ids = pq.read_table(files["other"].parent / "rollouts")["prompt_token_ids"][0].as_py()
    tokenizer = load_tokenizer(embedded.ensure().model, ModelSettings())
    assert tokenizer.decode(ids).startswith("Today: 2025-06-07<|im_start|>user")
    said = " ".join(castctl("compare", "runs/one", "runs/other").stdout.split())
    assert "date in the prompt: one 2026-01-01, other 2025-06-07" in said


def test_another_date_is_another_prompt_only_where_the_template_writes_it(castctl: Cli) -> None:
    few = ("--limit", "2", "--set", "train.steps=1", "--set", "sampling.max_tokens=4")
    other = ("--set", "data.date=2025-06-07", "--overwrite")
    castctl("rollout", "--model", model(DATED), "--data", "embedded", "--run", "dated", *few)
    refused = castctl("rollout", "--run", "dated", *other, code=2).stderr
    assert "has its prompts already" in refused and "another templates.prompt" in refused
    castctl("rollout", "--run", "plain", *few)
    castctl("rollout", "--run", "plain", *other)
