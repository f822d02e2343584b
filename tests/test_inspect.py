"""`castctl inspect`: what it shows of runs, steps, parts and completions, and what it finds."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
import threading
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from castctl.errors import UserError
from castctl.inspection.run import view_run
from castctl.inspection.target import find_target
from castctl.inspection.tokens import TokenTexts, run_tokenizer
from castctl.report.marks import block, histogram, line, sparkline
from castctl.runs.run import Run, open_run
from castctl.shards.part import read_part, write_part
from castctl.shards.stage import StepFolder
from castctl.stages.measures import measure_step
from conftest import Cli
from runs import STAGES, small_recipe, train_small

HOSTILE = "\x1b[2J[bold red]evil[/]\nsecond\u202e line"


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A finished run of two steps, in the second of which the teacher has a gap."""
    recipe = small_recipe("cast", "train.steps=2", "method.shaping.tau_nats=1e-6")
    return train_small(tmp_path_factory.mktemp("inspect") / "runs/small", recipe)[0]


@pytest.fixture
def run(shared: Run, tmp_path: Path) -> Run:
    """A copy of the run to change, which a bare name finds."""
    return open_run(str(shutil.copytree(shared.path, tmp_path / "runs/small")))


def parsed(text: str) -> Any:
    """Strict JSON: no NaN and no infinities."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    return json.loads(text, parse_constant=refuse)


def rewrite(folder: StepFolder, stage: str, change: Callable[[dict], dict], part: int = 0) -> None:
    """Change each row of a part, keeping its metadata."""
    there = folder.read(stage, part)
    rows = [change(row) for row in there.table.to_pylist()]
    table = pa.Table.from_pylist(rows, schema=there.table.schema)
    write_part(folder.part_path(stage, part), stage, table, there.metadata or {})


def strip_metadata(folder: StepFolder) -> None:
    """Make every part of a step one made elsewhere."""
    for path in folder.path.rglob("*.parquet"):
        pq.write_table(pq.read_table(path).replace_schema_metadata(None), path)


def test_a_run_shows_where_it_stands_and_what_made_it(castctl: Cli, run: Run) -> None:
    run.record(origins={"sampling.n": "--set", "method.shaping.kind": "preset cast"})
    shown = castctl("inspect", "small").stdout
    for words in ("small  finished", "2 of 2 steps", "torch", "avg@2", "step 2 (", "with teacher"):
        assert words in shown
    lines = [line.strip() for line in shown.splitlines()]
    assert lines[lines.index("sampling.n = 4") + 1] == "from --set; default 8"
    shaping = next(k for k, line in enumerate(lines) if line.startswith("method.shaping.kind = "))
    assert lines[shaping + 1].startswith("from preset cast; default ")
    assert "sampling.top_p" not in shown
    seen = parsed(castctl("inspect", str(run.path), "--json").stdout)
    origins = {setting["key"]: setting["origin"] for setting in seen["settings"]}
    assert origins["sampling.n"] == "--set" and origins["sampling.top_p"] == "default"
    assert origins["train.steps"] is None  # changed, and the manifest does not say by what
    assert seen["steps_done"] == 2 and [step["parts"]["signals"] for step in seen["steps"]] == [
        2,
        2,
    ]


def test_the_newest_run_is_shown_when_none_is_named(castctl: Cli, run: Run) -> None:
    assert castctl("inspect").stdout == castctl("inspect", "small").stdout


def test_a_run_with_broken_files_is_still_shown(castctl: Cli, run: Run) -> None:
    (run.path / "metrics.parquet").write_bytes(b"nothing")
    run.step(0).part_path("rewards", 1).write_bytes(b"nothing")
    (run.path / "eval/embedded/step-00000/results.json").write_text("{")
    shown = castctl("inspect", "small").stdout
    assert "metrics.parquet is cut short, damaged" in shown and "results.json is no JSON" in shown
    assert "step 0:" in shown and "cut short" in shown


def test_a_step_shows_its_stages_and_the_spread_of_its_tokens(castctl: Cli, run: Run) -> None:
    seen = parsed(castctl("inspect", "small/step-1", "--json").stdout)
    assert [stage["stage"] for stage in seen["stages"]] == [
        "rollouts", "rewards", "signals", "advantages"
    ]  # fmt: skip
    made = {stage["stage"]: stage["made"] for stage in seen["stages"]}
    assert made["rollouts"]["sampling.n"] == 4 and made["advantages"]["settings.shaping.lam"] == 1
    signals = run.step(1).table("signals")
    policy, teacher = (
        signals[name].combine_chunks().flatten().to_numpy().astype(np.float64)
        for name in ("policy_logprobs", "teacher_logprobs")
    )
    gap, spread = teacher - policy, seen["spreads"]["gap"]
    assert spread["count"] == len(gap) == sum(spread["histogram"])
    assert spread["mean"] == pytest.approx(gap.mean()) and spread["std"] == pytest.approx(gap.std())
    assert [spread[name] for name in ("q05", "median", "q95")] == pytest.approx(
        np.quantile(gap, (0.05, 0.5, 0.95))
    )
    rewards = run.step(1).table("rewards")
    verdicts = [verdict for group in seen["groups"] for verdict in group["verdicts"]]
    assert verdicts == rewards["verdict"].to_pylist()
    shown = castctl("inspect", "small/step-00001", "--limit", "1")
    assert "median" in shown.stdout and "3 more prompts" in shown.stdout
    assert "--sample" in shown.stderr


def test_a_step_whose_values_are_no_numbers_is_still_strict_json(castctl: Cli, run: Run) -> None:
    def unscored(row: dict) -> dict:
        nan = [float("nan")] * len(row["policy_logprobs"])
        return {**row, "teacher_logprobs": nan}

    for part in (0, 1):
        rewrite(run.step(1), "signals", unscored, part)
    seen = parsed(castctl("inspect", "small/step-1", "--json").stdout)
    assert seen["measures"]["gap_rms"] is None and "gap" not in seen["spreads"]
    castctl("inspect", "small/step-1")


def test_a_part_shows_its_columns_and_metadata(castctl: Cli, run: Run) -> None:
    name = "small/step-00001/signals/part-00000.parquet"
    seen = parsed(castctl("inspect", name, "--json").stdout)
    table = read_part(run.step(1).part_path("signals", 0), "signals").table
    columns = {column["name"]: column for column in seen["columns"]}
    assert list(columns) == table.column_names and seen["rows"] == table.num_rows == 8
    assert columns["ref_logprobs"]["nulls"] == 8
    tokens = table["policy_logprobs"].combine_chunks().value_lengths().to_numpy().sum()
    assert columns["policy_logprobs"]["values"] == tokens
    assert seen["metadata"]["step"] == 1
    assert "list<element: float>" in castctl("inspect", name).stdout


def test_prompts_show_what_the_tokens_decode_to(castctl: Cli, run: Run) -> None:
    rollout = run.step(1).table("rollouts").to_pylist()[0]
    tokenizer = run_tokenizer(run)
    assert tokenizer is not None
    shown = castctl("inspect", "small", "--prompts", "--limit", "1").stdout
    assert tokenizer.decode(rollout["prompt_token_ids"]).strip() in shown
    assert "The teacher read the student's own prompt." in shown and "3 more prompts" in shown

    own = tokenizer("Look closely: 1 + 1").input_ids
    rewrite(run.step(1), "signals", lambda row: {**row, "teacher_prompt_token_ids": own})
    seen = parsed(castctl("inspect", "small", "--prompts", "--json").stdout)
    assert seen["scored"] and seen["prompts"][0]["teacher"] == "Look closely: 1 + 1"
    assert seen["prompts"][0]["student_ids"] == rollout["prompt_token_ids"]
    assert seen["prompts"][2]["teacher"] is None
    side_by_side = castctl("inspect", "small", "--prompts").stdout
    assert "student" in side_by_side and "Look closely: 1 + 1" in side_by_side


def sample_name(run: Run) -> str:
    """The first completion of step 1 that has a flipped token."""
    rows = run.step(1).table("advantages").to_pylist()
    row = next(row for row in rows if any(row["flipped"]))
    return f"{row['prompt_id']}/{row['sample']}"


@pytest.mark.parametrize("color", ["advantage", "gap", "weight"])
def test_without_colour_a_sample_is_a_line_a_token(castctl: Cli, run: Run, color: str) -> None:
    name = sample_name(run)
    arguments = ("inspect", "small", "--sample", name, "--color", color)
    seen = parsed(castctl(*arguments, "--json").stdout)
    shown = castctl(*arguments).stdout
    lines = [line for line in shown.splitlines() if line.endswith('"')]
    ids = [token["id"] for token in seen["tokens"]]
    assert [int(line.split()[1]) for line in lines] == ids
    values = [float(line.split()[2]) for line in lines]
    assert values == pytest.approx([token[color] for token in seen["tokens"]], rel=1e-4)
    assert sum("flipped" in line for line in lines) == sum(t["flipped"] for t in seen["tokens"]) > 0
    assert "\x1b" not in shown and seen["verdict"] in shown and seen["problem"] in shown
    assert "".join(token["text"] for token in seen["tokens"]).startswith(seen["completion"])


def test_on_a_terminal_a_sample_is_coloured(
    castctl: Cli, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = sample_name(run)
    for key, value in {"FORCE_COLOR": "1", "COLORTERM": "truecolor", "TERM": "xterm"}.items():
        monkeypatch.setenv(key, value)
    monkeypatch.delenv("NO_COLOR", raising=False)
    shown = castctl("inspect", "small", "--sample", name).stdout
    assert "48;2;" in shown and "and more" in shown  # true colours behind the tokens, and a legend
    assert "\x1b[4;" in shown and "flipped" in shown  # underlined
    assert "↵" in shown
    monkeypatch.setenv("NO_COLOR", "1")
    assert "48;2;" not in castctl("inspect", "small", "--sample", name).stdout


def test_a_prompt_may_be_named_by_its_beginning(castctl: Cli, run: Run) -> None:
    rename_prompts(run.step(1), "abc1", "abc2", "abc", "zzz")
    assert "zzz/3" in castctl("inspect", "small", "--sample", "z/3").stdout
    assert "abc/0, step 1" in castctl("inspect", "small", "--sample", "abc/0").stdout
    error = castctl("inspect", "small", "--sample", "ab/0", code=2).stderr
    assert "begins 3 prompts" in error and "abc1" in error


def rename_prompts(step: StepFolder, *names: str) -> None:
    """Give the prompts of a step other ids, as parts made elsewhere have them."""
    strip_metadata(step)
    known = dict.fromkeys(step.table("rollouts")["prompt_id"].to_pylist())
    new = dict(zip(known, names, strict=True))
    for stage in STAGES:
        for part in (0, 1):
            rewrite(step, stage, lambda row: {**row, "prompt_id": new[row["prompt_id"]]}, part)


NAMES = [
    (("abcdef01", "abcdef02", "bbbbbb03", "cccccc04"), "abcdef01"),
    (("bbbbbb03", "abcdef02", "cccccc04", "dddddd05"), "bbbbbb"),
    (("problem-1", "problem-10", "problem-11", "problem-2"), "problem-1"),
    (("problem-12", "problem-1", "problem-11", "problem-2"), "problem-12"),
    (("a", "b; rm x", "c", "d"), "a"),
    (("b; rm x", "a", "c", "d"), "b; rm "),
]


@pytest.mark.parametrize(("names", "beginning"), NAMES, ids=lambda value: str(value)[:40])
def test_the_completion_named_next_is_one_that_is_found(
    castctl: Cli, run: Run, names: tuple[str, ...], beginning: str
) -> None:
    def all_right(row: dict) -> dict:
        return {**row, "verdict": "correct", "reward": 1.0}

    rename_prompts(run.step(1), *names)
    for part in (0, 1):
        rewrite(run.step(1), "rewards", all_right, part)  # so that the first prompt is named
    *_, line = castctl("inspect", "small/step-1").stderr.splitlines()
    words = shlex.split(line.removeprefix("Next: castctl "))
    assert words[-1].startswith(f"{beginning}/") and words[-2] == "--sample"
    assert f"{names[0]}/0, step 1" in castctl(*words).stdout


@pytest.mark.parametrize("stage, name", [
    ("rollouts", "sampler_logprobs"), ("signals", "teacher_logprobs"), ("signals", "entropies"),
    ("advantages", "weights"), ("advantages", "flipped"),
])  # fmt: skip
def test_lists_that_do_not_fit_are_told_in_one_line(
    castctl: Cli, run: Run, stage: str, name: str
) -> None:
    strip_metadata(run.step(1))
    rewrite(run.step(1), stage, lambda row: {**row, name: [*row[name], *row[name][:1]]})
    with pytest.raises(UserError, match=f"{name} has not one value a completion token") as caught:
        measure_step(run.step(1))
    assert str(run.step(1).part_path(stage, 0)) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert f"{name} " in castctl("inspect", "small/step-1", code=2).stderr
    problem = " ".join(castctl("inspect", "small/step-1", "--verify", code=2).stdout.split())
    assert f"{name} has not one value a completion token" in problem


def test_foreign_rollouts_that_do_not_fit_are_refused_by_score(castctl: Cli, run: Run) -> None:
    strip_metadata(run.step(1))
    rewrite(run.step(1), "rollouts", lambda row: {**row, "sampler_logprobs": [0.0]})
    for stage in ("rewards", "signals", "advantages"):
        shutil.rmtree(run.step(1).path / stage)
    done = castctl("score", "--run", "small", "--step", "1", "--set", "verifier.workers=1", code=2)
    last = done.stderr.splitlines()[-1]
    assert last.startswith("castctl: ") and "sampler_logprobs" in last


def test_a_run_is_shown_while_its_files_come_and_go(run: Run) -> None:
    passing = [run.path / f"checkpoints/.draft-{number}.tmp" for number in range(20)]
    shown = threading.Event()

    def churn() -> None:
        while not shown.is_set():
            for folder in passing:
                folder.mkdir()
            for folder in passing:
                folder.rmdir()

    thread = threading.Thread(target=churn)
    thread.start()
    try:
        for _ in range(60):
            assert view_run(find_target(str(run.path))).bytes > 0
    finally:
        shown.set()
        thread.join()


@pytest.mark.parametrize("arguments", [(), ("small/step-1",)], ids=["run", "step"])
def test_numbers_stay_whole_on_80_columns(
    castctl: Cli, run: Run, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "80")
    shown = re.sub(r"\x1b\[[\d;]*m", "", castctl("inspect", *arguments).stdout)
    lines = [line.rstrip() for line in shown.splitlines()]
    assert max(map(len, lines)) <= 80
    heading = ["tokens", "mean", "std"] if arguments else ["step", "parts", "rows", "size"]
    [at] = [n for n, line in enumerate(lines) if line.split()[: len(heading)] == heading]
    first, second = (line.split() for line in lines[at + 2 : at + 4])
    assert [first[0], second[0]] == (["advantage", "gap"] if arguments else ["0", "1"])


@pytest.mark.slow
def test_untrusted_text_stays_text(castctl: Cli, run: Run) -> None:
    def poison(row: dict) -> dict:
        return {**row, "problem": HOSTILE, "answer": HOSTILE, "completion": HOSTILE}

    strip_metadata(run.step(1))
    rewrite(run.step(1), "rollouts", poison)
    rewrite(run.step(1), "rewards", lambda row: {**row, "extracted": HOSTILE})
    name = run.step(1).table("rollouts")["prompt_id"][0].as_py() + "/0"
    for arguments in (("--sample", name), (), ("--prompts",)):
        shown = castctl("inspect", "small/step-1", *arguments).stdout
        assert "\x1b" not in shown and "\u202e" not in shown
    shown = castctl("inspect", "small/step-1", "--sample", name).stdout
    lines = [line.strip() for line in shown.splitlines()]
    assert "second\\u202e line" in lines  # the line break kept
    assert "problem    \\x1b[2J[bold red]evil[/]" in lines  # and markup as it is


@pytest.mark.slow
def test_a_flood_of_text_is_capped(castctl: Cli, run: Run) -> None:
    strip_metadata(run.step(1))
    rewrite(run.step(1), "rollouts", lambda row: {**row, "problem": "x" * 1_000_000})
    many = [25] * 100_000
    rewrite(run.step(1), "signals", lambda row: {**row, "teacher_prompt_token_ids": many})
    name = run.step(1).table("rollouts")["prompt_id"][0].as_py() + "/0"
    left_out = {("--sample", name): "998,000", (): "999,940", ("--prompts",): "98,000"}
    for arguments, count in left_out.items():
        shown = castctl("inspect", "small/step-1", *arguments).stdout
        assert count in shown and len(shown) < 40_000


def test_bytes_that_are_no_character_are_shown_as_escapes(shared: Run) -> None:
    tokenizer = run_tokenizer(shared)
    assert tokenizer is not None
    texts = TokenTexts(tokenizer)
    ids = tokenizer("é7\n").input_ids
    assert [texts.text(id) for id in ids] == ["\\xc3", "\\xa9", "7", "\n"]
    assert texts.together(ids) == "é7\n"
    assert texts.text(10**6) == "<no token 1000000>" and texts.text(-1) == "<no token -1>"
    assert TokenTexts(None).text(5) is None


def test_a_whole_run_is_verified(castctl: Cli, run: Run) -> None:
    done = castctl("inspect", "small", "--verify")
    assert "whole" in done.stdout
    seen = parsed(castctl("inspect", "small", "--verify", "--json").stdout)
    assert seen["problems"] == [] and seen["foreign"] == []
    parquet = len(list(run.path.rglob("part-*.parquet")))
    assert seen["files"] == parquet + len(list(run.path.rglob("*.safetensors")))


def _double(file: Path) -> None:
    """Write a table of another program's with its first column twice."""
    table = pq.read_table(file)
    pq.write_table(
        table.append_column(table.column_names[0], table[0]).replace_schema_metadata(), file
    )


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


def _turn(path: Path) -> None:
    """Turn a bit in the middle of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


def _reverse(folder: StepFolder) -> None:
    there = folder.read("rewards", 0)
    backwards = there.table.take(list(reversed(range(there.table.num_rows))))
    write_part(folder.part_path("rewards", 0), "rewards", backwards, there.metadata or {})


def _shorten(row: dict) -> dict:
    return {**row, "teacher_logprobs": row["teacher_logprobs"][:-1]}


DAMAGE: dict[str, tuple[Callable[[Run], object], str]] = {
    "a part cut short": (
        lambda run: _cut(run.step(0).part_path("rewards", 1)),
        "rewards/part-00001.parquet is cut short",
    ),
    "a part gone": (
        lambda run: run.step(1).part_path("signals", 0).unlink(),
        "step-00001/signals lacks part 0",
    ),
    "rows in another order": (
        lambda run: _reverse(run.step(0)),
        "rewards/part-00000.parquet does not hold the rows",
    ),
    "a changed reward": (
        lambda run: rewrite(run.step(0), "rewards", lambda row: {**row, "reward": 0.5}),
        "advantages/part-00000.parquet was made from other rewards",
    ),
    "a changed problem": (
        lambda run: rewrite(run.prompts_folder, "prompts", lambda row: {**row, "problem": "?"}),
        "rollouts/part-00000.parquet was made from other prompts",
    ),
    "a list too short": (
        lambda run: rewrite(run.step(0), "signals", _shorten),
        "teacher_logprobs has not one value a completion token",
    ),
    "a step moved": (
        lambda run: run.step(1).path.rename(run.step(7).path),
        "rollouts/part-00001.parquet says that it is step 1",
    ),
    "a part moved": (
        lambda run: shutil.copy(run.step(0).part_path("rollouts", 0),
                                run.step(0).part_path("rollouts", 5)),
        "part-00005.parquet says that it is part 0",
    ),
    "tensors cut short": (
        lambda run: _cut(run.checkpoint(2) / "teacher/model.safetensors"),
        "teacher/model.safetensors does not load",
    ),
    "a bit of a tensor turned": (
        lambda run: _turn(run.checkpoint(2) / "optimizer.safetensors"),
        "step-00002/optimizer.safetensors is not as it was saved",
    ),
    "a bit of the metrics turned": (
        lambda run: _turn(run.path / "metrics.parquet"),
        "metrics.parquet is cut short, damaged or changed by another program",
    ),
    "a column of the metrics twice": (
        lambda run: _double(run.path / "metrics.parquet"),
        "metrics.parquet has column step 2 times",
    ),
    "a column of what was dropped twice": (
        lambda run: _double(run.path / "dropped.parquet"),
        "dropped.parquet has column row 2 times",
    ),
    "a tokenizer gone": (
        lambda run: (run.checkpoint(1) / "tokenizer.json").unlink(),
        "step-00001/tokenizer.json is gone",
    ),
    "an evaluation cut short": (
        lambda run: _cut(run.path / "eval/embedded/step-00002/rewards/part-00000.parquet"),
        "eval/embedded/step-00002/rewards/part-00000.parquet is cut short",
    ),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_found(castctl: Cli, run: Run, damage: str) -> None:
    inflict, words = DAMAGE[damage]
    inflict(run)
    done = castctl("inspect", "small", "--verify", "--json", code=2)
    problems = parsed(done.stdout)["problems"]
    assert any(words in problem for problem in problems), problems
    assert done.stderr.rstrip().endswith(f"not whole: {len(problems)} problem" + "s" *
                                         (len(problems) > 1))  # fmt: skip


def test_verify_of_a_step_or_part_reads_no_other(castctl: Cli, run: Run) -> None:
    _cut(run.step(0).part_path("rewards", 1))
    castctl("inspect", "small/step-1", "--verify")
    castctl("inspect", "small/step-0/rollouts/part-00000.parquet", "--verify")
    found = castctl("inspect", "small/step-0/rollouts/part-00001.parquet", "--verify", code=2)
    assert "rewards/part-00001.parquet is cut short" in " ".join(found.stdout.split())


@pytest.mark.slow
def test_shards_made_elsewhere_are_named_as_such(castctl: Cli, run: Run, tmp_path: Path) -> None:
    elsewhere = StepFolder(tmp_path / "by-hand/step-00001", 1)
    shutil.copytree(run.step(1).path, elsewhere.path)
    strip_metadata(elsewhere)
    assert "made elsewhere" in castctl("inspect", "by-hand").stdout
    assert "elsewhere" in castctl("inspect", "by-hand/step-1").stdout
    part = "by-hand/step-1/rewards/part-00000.parquet"
    assert "Made elsewhere" in castctl("inspect", part).stdout
    verified = parsed(castctl("inspect", "by-hand", "--verify", "--json").stdout)
    assert len(verified["foreign"]) == verified["files"] == 8
    # No run, no tokenizer: ids stand for texts.
    seen = parsed(castctl("inspect", "by-hand", "--sample", sample_name(run), "--json").stdout)
    assert {token["text"] for token in seen["tokens"]} == {None}
    lines = castctl("inspect", "by-hand", "--sample", sample_name(run)).stdout.splitlines()
    assert f'"{seen["tokens"][0]["id"]}"' in "".join(lines)
    assert castctl("inspect", "by-hand", "--prompts").stdout.startswith("prompt ")


def test_parts_scored_in_part_elsewhere_are_shown(castctl: Cli, tmp_path: Path) -> None:
    step = tmp_path / "by-hand/step-00000/signals"
    step.mkdir(parents=True)
    table = pa.table({"prompt_id": ["p", "q"], "sample": [0, 0], "entropies": [[0.5], [0.1, 0.2]]})
    pq.write_table(table, step / "part-00000.parquet")
    assert "elsewhere" in castctl("inspect", "by-hand/step-0").stdout


WRONG = [
    (("nobody",), "no run at runs/nobody; castctl runs lists those there are"),
    (("small/step-9",), "has no step 9; steps there: 0, 1"),
    (("small/step-1/rewards/part-00007.parquet",), "there is no part"),
    (("small/metrics.parquet",), "is no castctl part"),
    (("small/checkpoints/step-00002",), "holds no parts of any stage"),
    (("small/step-00001/rewards",), "is no run and no step"),
    (("small", "--sample", "x"), "write PROMPT/N"),
    (("small", "--sample", "nope/0"), "has no prompt nope; it has"),
    (("small", "--sample", "{id}/99"), "has no sample 99; it has 0 to 3"),
    (("small/step-0", "--sample", "{id}/0", "--color", "purple"), "purple"),
    (("small", "--prompts", "--verify"), "ask for one at a time"),
]


@pytest.mark.parametrize(("arguments", "words"), WRONG, ids=lambda value: str(value)[:50])
def test_wrong_input_gets_one_line(
    castctl: Cli, run: Run, arguments: tuple[str, ...], words: str
) -> None:
    prompt_id = run.step(1).table("rollouts")["prompt_id"][0].as_py()
    done = castctl("inspect", *(text.replace("{id}", prompt_id) for text in arguments), code=2)
    last = done.stderr.rstrip("\n").splitlines()[-1]
    assert last.startswith("castctl: ") and words in last


def test_a_step_without_the_values_to_colour_by_says_what_to_do(castctl: Cli, run: Run) -> None:
    name = sample_name(run)
    shutil.rmtree(run.step(1).path / "advantages")
    error = castctl("inspect", "small/step-1", "--sample", name, code=2).stderr
    assert "castctl shape" in error and "--color gap" in error
    assert castctl("inspect", "small/step-1", "--sample", name, "--color", "gap").stdout


def test_a_part_that_breaks_the_contract_is_refused(castctl: Cli, run: Run) -> None:
    path = run.step(1).part_path("rewards", 0)
    pq.write_table(pa.table({"prompt_id": ["p"]}), path)
    error = castctl("inspect", str(path), code=2).stderr
    assert "lacks column" in error
    assert "lacks column" in castctl("inspect", "small/step-1", code=2).stderr


def test_a_page_loads_no_torch(shared: Run) -> None:
    code = (
        "import sys; from castctl.cli.main import app\n"
        "for name in sys.argv[1:]: app(['inspect', name], standalone_mode=False)\n"
        "sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    )
    part = shared.step(1).part_path("rollouts", 0)
    names = (str(path) for path in (shared.path, shared.step(1).path, part))
    subprocess.run([sys.executable, "-c", code, *names], check=True, stdout=subprocess.DEVNULL)


@given(st.text(), st.integers(0, 40))
def test_pieces_of_untrusted_text_are_short_and_inert(text: str, limit: int) -> None:
    assert not any(unicodedata.category(char)[0] == "C" for char in line(text, limit))
    assert all(char == "\n" or unicodedata.category(char)[0] != "C" for char in block(text, limit))
    assert ("more characters" in line(text.replace("more", ""), limit)) == (
        len(text.replace("more", "")) > limit
    )


@given(st.lists(st.none() | st.just(float("nan")) | st.floats(-1e99, 1e99), max_size=200))
def test_a_sparkline_fits_and_reaches_both_ends(values: list[float | None]) -> None:
    spark = sparkline(values, 32)
    known = {value for value in values if value is not None and not np.isnan(value)}
    assert len(spark) <= 32 and bool(spark) == bool(known)
    if len(values) <= 32 and len(known) > 1:
        assert "▁" in spark and "█" in spark


@given(st.lists(st.integers(0, 10**6), min_size=1))
def test_a_histogram_hides_no_rare_bin(counts: list[int]) -> None:
    bars = histogram(counts)
    assert [bar == " " for bar in bars] == [count == 0 for count in counts]
