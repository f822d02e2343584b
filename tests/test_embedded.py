"""The embedded task and model: right answers, honest slips, a folder that is whole or absent."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import subprocess
import sys
import time
from itertools import islice
from pathlib import Path

import jinja2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from castctl import embedded
from castctl.embedded import console, task
from castctl.errors import UserError

seeds = st.integers(0, 2**32)


def some(seed: int, count: int = 20) -> list[task.Problem]:
    return list(islice(task.problems(seed), count))


def read_by_a_stranger(text: str) -> int:
    """The answer, from the words of the problem alone."""
    if "has" in text:
        text = text.replace("gets", "+").replace("gives", "-")
    return sum(int(term.replace(" ", "")) for term in re.findall(r"(?:[+-] )?\d+", text))


def sums(text: str) -> list[str]:
    return re.findall(r"[\d+-]+=\d+", text)


def boxed(text: str) -> int:
    return int(re.search(r"\n\\boxed\{(\d+)\}$", text)[1])


@given(seeds)
def test_answers_are_right_and_solutions_end_with_them(seed):
    for problem in some(seed):
        assert problem.answer == read_by_a_stranger(problem.text)
        worked = task.solution(problem)
        assert boxed(worked) == problem.answer
        assert len(sums(worked)) == 2 * len(problem.changes)


def test_every_kind_of_problem_comes_up():
    problems = some(0, 600)
    kinds = {(p.text[0], len(p.changes)) for p in problems}
    assert {count for _, count in kinds} == {1, 2, 3}
    assert {first for first, _ in kinds} >= set("AMTC123456789")
    carrying = sum("+1=" in task.solution(p) or "-1=" in task.solution(p) for p in problems)
    assert carrying / 600 > 0.7


@given(seeds, st.randoms(use_true_random=False))
def test_a_slip_forgets_one_carry_and_nothing_else(seed, random):
    for problem in some(seed):
        asked: list[bool] = []

        def slip(asked: list[bool] = asked) -> bool:
            asked.append(random.random() < 0.5)
            return asked[-1]

        worked = task.solution(problem, slip)
        off = boxed(worked) - problem.answer
        assert off % 10 == 0 and abs(off) <= 10 * sum(asked)
        if sum(asked) == 1:
            assert abs(off) == 10
        if not any(asked):
            assert worked == task.solution(problem)
        for line in worked.splitlines()[:-1]:
            assert re.match(r"\d\d[+-]\d\d: ", line)  # two digits, also after slips
        for written in sums(worked):
            left, right = written.split("=")
            assert sum(map(int, re.findall(r"[+-]?\d+", left))) == int(right)


@given(seeds)
def test_a_hinted_problem_is_what_a_template_makes_of_problem_and_answer(seed):
    template = jinja2.Template("{{ problem }} ({{ answer }})")
    for problem in some(seed):
        row = {"problem": problem.text, "answer": str(read_by_a_stranger(problem.text))}
        assert task.hinted(problem) == template.render(row)


@given(seeds)
def test_problems_follow_from_the_seed(seed):
    assert some(seed) == some(seed) != some(seed + 1)


@given(seeds)
def test_the_text_alone_decides_what_is_held_out(seed):
    for problem in some(seed):
        assert dataclasses.replace(problem, start=1, changes=()).heldout == problem.heldout


def test_a_sixteenth_is_held_out():
    assert 0.05 < sum(p.heldout for p in some(0, 4000)) / 4000 < 0.075


@pytest.mark.parametrize(
    ("variable", "below"), [("CASTCTL_CACHE", ""), ("XDG_CACHE_HOME", "castctl"), ("HOME", None)]
)
def test_the_cache_is_where_the_environment_says(variable, below, tmp_path, monkeypatch):
    for name in ("CASTCTL_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(variable, str(tmp_path))
    cache = tmp_path / (".cache/castctl" if below is None else below)
    whole = cache / f"embedded-{embedded.VERSION}"
    whole.mkdir(parents=True)
    assert embedded.ensure().model == whole / "model"


def test_a_cache_that_cannot_be_written_is_the_users_to_mend(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("CASTCTL_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(UserError, match=r"file.cache.*CASTCTL_CACHE") as caught:
        embedded.ensure()
    assert "\n" not in str(caught.value)


@pytest.fixture(scope="module")
def tokenizer():
    from castctl.embedded.model import make_tokenizer

    return make_tokenizer()


@pytest.mark.slow
@given(text=st.text())
def test_any_text_survives_the_tokenizer(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.slow
def test_every_digit_is_a_token(tokenizer):
    for text in ("2026", "47+38: 7+8=15", "a1b22"):
        tokens = [tokenizer.decode([token]) for token in tokenizer.encode(text)]
        assert [t for t in tokens if any(map(str.isdigit, t))] == re.findall(r"\d", text)


@pytest.mark.slow
def test_a_hint_is_at_most_five_tokens(tokenizer):
    for problem in some(0, 200):
        hinted = tokenizer.encode(task.hinted(problem))
        assert len(hinted) <= len(tokenizer.encode(problem.text)) + 5
        assert tokenizer.decode(hinted) == task.hinted(problem)


@pytest.mark.slow
@pytest.mark.parametrize("user", ["47 + 38 = ?", "47 + 38 = ? (85)"])
def test_prompts_and_completions_are_cut_where_they_meet(tokenizer, user):
    chat = [{"role": "user", "content": user}]
    prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
    assert prompt == f"<|im_start|>user\n{user}<|im_end|>\n<|im_start|>assistant\n"
    worked = task.solution(some(0)[0])
    assert tokenizer.encode(prompt + worked) == [
        *tokenizer.encode(prompt),
        *tokenizer.encode(worked),
    ]
    assert tokenizer.decode(tokenizer.encode(prompt), skip_special_tokens=True).startswith("user")


@pytest.fixture(scope="module")
def lessons(tokenizer) -> list[tuple[str, str | None, str]]:
    """Problem, hint and worked solution of the warm-up's first lessons, read from their tokens."""
    from castctl.embedded.model import SLIP_SHARE, lessons

    read = []
    for prompt, completion in islice(lessons(tokenizer, SLIP_SHARE), 2000):
        assert completion[-1] == tokenizer.eos_token_id
        text = tokenizer.decode(prompt, skip_special_tokens=True)
        user = text.removeprefix("user\n").removesuffix("\nassistant\n")
        problem, hint = re.fullmatch(r"(.*?)(?: \((\d+)\))?", user).groups()
        read.append((problem, hint, tokenizer.decode(completion, skip_special_tokens=True)))
    return read


def kept_and_forgotten(worked: str) -> tuple[int, int]:
    """How many carries and borrows a worked solution writes down, and how many it leaves out."""
    counts = [0, 0]
    for line in worked.splitlines()[:-1]:
        ones, tens = line.split(": ")[1].split(", ")
        if re.search(r"=1\d$|^1\d-", ones):
            counts[tens.count("+") + tens.count("-") == 1] += 1
    return counts[0], counts[1]


@pytest.mark.slow
def test_the_warm_up_sees_nothing_held_out(lessons):
    heldout = {p.text for p in some(3, 20000) if p.heldout}
    assert heldout.isdisjoint(problem for problem, _, _ in lessons)


@pytest.mark.slow
def test_without_a_hint_the_warm_up_slips_as_planted(lessons):
    counts = [kept_and_forgotten(worked) for _, hint, worked in lessons if hint is None]
    kept, forgotten = map(sum, zip(*counts, strict=True))
    assert kept + forgotten > 1000
    assert 0.61 < forgotten / (kept + forgotten) < 0.69


@pytest.mark.slow
def test_a_quarter_of_the_lessons_has_a_hint_that_is_right_and_no_slip(lessons):
    hinted = [lesson for lesson in lessons if lesson[1] is not None]
    assert 0.22 < len(hinted) / len(lessons) < 0.28
    carries = 0
    for problem, hint, worked in hinted:
        kept, forgotten = kept_and_forgotten(worked)
        assert not forgotten
        assert int(hint) == boxed(worked) == read_by_a_stranger(problem)
        carries += kept
    assert carries > 300


@pytest.mark.slow
def test_what_is_made_is_whole_and_made_once(tmp_path, monkeypatch):
    monkeypatch.setenv("CASTCTL_CACHE", str(tmp_path / "one"))
    told: list[tuple[str, int, int]] = []
    paths = embedded.ensure(lambda *news: told.append(news), steps=3)
    assert [news[1:] for news in told] == [(0, 3), (1, 3), (2, 3), (3, 3)]
    assert "once" in told[0][0]

    problems = {
        name: [json.loads(line) for line in file.read_text().splitlines()]
        for name, file in (("train", paths.train), ("heldout", paths.heldout))
    }
    texts = {name: {row["problem"] for row in rows} for name, rows in problems.items()}
    assert (len(texts["train"]), len(texts["heldout"])) == (4096, 256)
    assert texts["train"].isdisjoint(texts["heldout"])
    for row in problems["train"][:100]:
        assert (
            row["answer"] == str(read_by_a_stranger(row["problem"])) == str(boxed(row["solution"]))
        )

    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(paths.model)
    model = AutoModelForCausalLM.from_pretrained(paths.model)
    assert model.config.model_type == "qwen3"
    assert 350_000 < model.num_parameters() < 360_000
    assert tokenizer.decode(model.generation_config.eos_token_id) == "<|im_end|>"
    assert model.generation_config.top_k == 0
    assert tokenizer.chat_template

    assert embedded.ensure(lambda *news: told.append(news)) == paths
    assert len(told) == 4

    monkeypatch.setenv("CASTCTL_CACHE", str(tmp_path / "two"))
    again = embedded.ensure(lambda *news: None, steps=3)
    for name in ("train", "heldout", "model/model.safetensors", "model/tokenizer.json"):
        name = name if "/" in name else f"{name}.jsonl"
        assert (again.train.parent / name).read_bytes() == (paths.train.parent / name).read_bytes()


def start(cache: Path, call: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", f"from castctl.embedded import ensure; {call}"],
        env={**os.environ, "CASTCTL_CACHE": str(cache)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_who_reads_a_file_is_told_how_far_it_is_and_how_long_it_took(monkeypatch, capsys):
    monkeypatch.setattr(console, "LINE_EVERY", 0.0)
    with console.telling("Making it") as report:
        for done in range(3):
            report(done, 2)
    first, *lines, last = capsys.readouterr().err.splitlines()
    assert first == "Making it."
    assert [line.split(",")[0] for line in lines] == [
        "embedded model: 1 of 2 steps", "embedded model: 2 of 2 steps",
    ]  # fmt: skip
    assert all(re.search(r", \d+ s left$", line) for line in lines)
    assert re.fullmatch(r"The embedded model is made, in \d+ s\. It is kept\.", last)


@pytest.mark.slow
def test_killed_at_work_it_leaves_nothing_half_made(tmp_path, monkeypatch):
    maker = start(tmp_path, "ensure(steps=10**6)")
    unfinished = tmp_path / f"embedded-{embedded.VERSION}.unfinished"
    deadline = time.monotonic() + 120
    while not (unfinished / "heldout.jsonl").exists() and time.monotonic() < deadline:
        assert maker.poll() is None, maker.communicate()
        time.sleep(0.05)
    time.sleep(1)
    maker.kill()
    _, said = maker.communicate()
    assert said.count("\n") == 1 and "once" in said
    assert not (tmp_path / f"embedded-{embedded.VERSION}").exists()

    monkeypatch.setenv("CASTCTL_CACHE", str(tmp_path))
    paths = embedded.ensure(lambda *news: None, steps=1)
    assert (paths.model / "model.safetensors").exists()
    assert not unfinished.exists()


@pytest.mark.slow
def test_two_processes_at_once_make_it_once(tmp_path):
    both = [start(tmp_path, "print(ensure(lambda *news: print('step'), steps=2))") for _ in "ab"]
    answers = [process.communicate(timeout=240) for process in both]
    assert [process.returncode for process in both] == [0, 0], answers
    assert sorted(out.count("step") for out, _ in answers) == [0, 3]
    assert len({out.splitlines()[-1] for out, _ in answers}) == 1
