"""A teacher that is told a correct completion of the same prompt: who, what, and who has none."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from castctl.data.teacher_template import TeacherTemplate
from castctl.data.templates import PromptTemplate
from castctl.errors import UserError
from castctl.methods.method import MethodSettings
from castctl.methods.teacher import Teacher
from castctl.progress import Silent
from castctl.recipe.recipe import DataSettings
from castctl.runs.run import Run, create_run
from castctl.shards.part import content_hash, write_part
from castctl.shards.stage import StepFolder
from castctl.stages.measures import measure_step
from castctl.stages.one_step import rollout_stage, score_stage, teacher_at, train_stage
from castctl.stages.policies import budget_of, make_scorers, policy_at
from castctl.stages.score.peers import draw_peers, peer_prompts
from castctl.stages.score.signals import score_signals
from castctl.stages.shape import shape_step
from castctl.stages.train.batch import read_batch
from conftest import Cli
from runs import small_recipe

CORRECT = [{0, 1, 3}, {2}, set(), {0, 1}]
"""The correct samples of each of the four prompts, two a part."""
PEERLESS = {(1, 2), (2, 0), (2, 1), (2, 2), (2, 3)}
"""Prompt and sample of the completions that have no peer."""


# The choice


@st.composite
def groups(draw: Any) -> tuple[list[str], list[int], np.ndarray]:
    sizes = draw(st.lists(st.integers(1, 5), min_size=1, max_size=4))
    ids = [f"p{n}" for n, size in enumerate(sizes) for _ in range(size)]
    samples = [sample for size in sizes for sample in range(size)]
    flags = draw(st.lists(st.booleans(), min_size=len(ids), max_size=len(ids)))
    return ids, samples, np.array(flags, np.bool_)


@given(groups(), st.integers(0, 2**31), st.integers(0, 500))
def test_a_peer_is_another_correct_completion_of_the_prompt(
    rows: tuple[list[str], list[int], np.ndarray], seed: int, step: int
) -> None:
    """Spelled out once more, as a reader of the shards would choose again."""
    ids, samples, correct = rows
    peers = draw_peers(ids, samples, correct, seed, step)
    for row, peer in enumerate(peers):
        others = [s for id, s, right in zip(ids, samples, correct, strict=True)
                  if right and id == ids[row] and s != samples[row]]  # fmt: skip
        if not others:
            assert peer is None
            continue
        key = f"{seed}/{step}/{ids[row]}/{samples[row]}/peer".encode()
        number = int.from_bytes(hashlib.sha256(key).digest()[:8], "little")
        assert peer is not None and ids[peer] == ids[row]
        assert samples[peer] == sorted(others)[number % len(others)]


@given(groups(), st.randoms())
def test_the_choice_does_not_depend_on_the_order_of_rows(
    rows: tuple[list[str], list[int], np.ndarray], random: Any
) -> None:
    ids, samples, correct = rows
    order = list(range(len(ids)))
    random.shuffle(order)
    there = draw_peers(ids, samples, correct, 3, 7)
    moved = draw_peers([ids[i] for i in order], [samples[i] for i in order], correct[order], 3, 7)
    assert [None if p is None else order[p] for p in moved] == [there[i] for i in order]


def test_every_other_correct_completion_is_drawn_by_some_seed() -> None:
    ids, samples, correct = ["p"] * 5, list(range(5)), np.array([1, 1, 0, 1, 1], np.bool_)
    drawn = {draw_peers(ids, samples, correct, seed, 0)[0] for seed in range(60)}
    assert drawn == {1, 3, 4}


# Templates


@pytest.mark.parametrize(
    ("teacher", "said"),
    [
        ({"template": "{{ problem }}"}, r"leaves out what .*context=peer tells; write {{ peer }}"),
        ({"template": "{{ problem }} {{ answer }} {{ peer }}"},
         r"uses answer, which method.teacher.context=peer does not tell; set it to answer,"),
        ({"context": "answer", "template": "{{ problem }} {{ answer }} {{ peer }}"},
         r"uses peer, .*context=answer does not tell; set it to peer"),
        ({"context": "none", "template": "{{ problem }} {{ peer }}"}, r"set it to peer"),
        ({"template": "{{ peer }}"}, r"leaves the problem out"),
    ],
)  # fmt: skip
def test_a_template_that_does_not_fit_peers(
    tokenizer: Any, teacher: dict[str, Any], said: str
) -> None:
    with pytest.raises(UserError, match=said):
        TeacherTemplate(tokenizer, DataSettings(), Teacher(**{"context": "peer", **teacher}))


@pytest.fixture(scope="module")
def tokenizer(rolled: Run) -> Any:
    return policy_at(rolled, 0).load(rolled.recipe.model).model.tokenizer


# Scoring


@pytest.fixture(scope="module")
def rolled(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Four prompts of four completions, judged as `CORRECT` says and not scored."""
    recipe = small_recipe("rlrt", "sampling.max_tokens=40")
    run = create_run(recipe, str(tmp_path_factory.mktemp("peers") / "run"), "test")
    rollout_stage(run, 0, policy_at(run, 0), progress=Silent())
    score_stage(run, 0, policy_at(run, 0), {"policy_logprobs"}, progress=Silent())
    shutil.rmtree(run.step(0).path / "signals")
    judge(run.step(0), lambda prompt, sample: sample in CORRECT[prompt])
    return run


def judge(folder: StepFolder, right: Callable[[int, int], bool]) -> None:
    """Other verdicts, by the prompt's place and the sample."""
    places = list(dict.fromkeys(folder.table("rollouts")["prompt_id"].to_pylist()))
    for part in folder.parts("rewards"):
        table, metadata = folder.read("rewards", part).table, folder.read("rewards", part).metadata
        rows = [
            {**row, "verdict": "correct" if good else "wrong", "reward": float(good)}
            for row in table.to_pylist()
            for good in [right(places.index(row["prompt_id"]), row["sample"])]
        ]
        table = pa.Table.from_pylist(rows, schema=table.schema)
        write_part(folder.part_path("rewards", part), "rewards", table, metadata or {})


def copied(run: Run, path: Path, method: MethodSettings | None = None) -> Run:
    shutil.copytree(run.path, path)
    method = method or run.recipe.method
    return Run(path, run.recipe.model_copy(update={"method": method}))


def scored(run: Run, overwrite: bool = False) -> list[dict[str, Any]]:
    """The signals of the method, from the verdicts that are there."""
    recipe, source = run.recipe, policy_at(run, 0)
    policy = source.load(recipe.model)
    scorers = make_scorers(recipe, source.fingerprint, policy, teacher_at(run, 0, source, policy))
    score_signals(
        run.step(0), recipe.method.needs, scorers, temperature=1.0, budget=budget_of(recipe),
        progress=Silent(), overwrite=overwrite,
    )  # fmt: skip
    return rows_of(run)


def rows_of(run: Run) -> list[dict[str, Any]]:
    """Rollouts and signals in one, each with the place of its prompt."""
    folder = run.step(0)
    rows = zip(*(folder.table(stage).to_pylist() for stage in ("rollouts", "signals")), strict=True)
    merged = [{**rollout, **signal} for rollout, signal in rows]
    places = list(dict.fromkeys(row["prompt_id"] for row in merged))
    return [{**row, "place": places.index(row["prompt_id"])} for row in merged]


@pytest.fixture(scope="module")
def taught(rolled: Run, tmp_path_factory: pytest.TempPathFactory) -> Run:
    run = copied(rolled, tmp_path_factory.mktemp("taught") / "run")
    scored(run)
    return run


def test_the_teacher_reads_another_correct_completion_or_nothing(
    taught: Run, tokenizer: Any
) -> None:
    """Prompts rendered by hand, and log-probs against transformers' own forward pass."""
    model = policy_at(taught, 0).load(taught.recipe.model).model.model
    student = PromptTemplate(tokenizer, taught.recipe.data)
    rows = rows_of(taught)
    texts = {(row["place"], row["sample"]): row["completion"] for row in rows}
    without = set()
    for row in rows:
        place, sample, peer = row["place"], row["sample"], row["teacher_peer"]
        if peer is None:
            assert row["teacher_prompt_token_ids"] is None and row["teacher_logprobs"] is None
            without.add((place, sample))
            continue
        assert peer in CORRECT[place] - {sample}
        told = f"{student.user_text(row['problem'])}\n\n[Correct rollout]\n{texts[place, peer]}\n"
        asked = row["teacher_prompt_token_ids"]
        assert asked == student.format.ids(told)
        completion = row["completion_token_ids"]
        with torch.no_grad():
            logits = model(torch.tensor([asked + completion])).logits[0].double()
        expected = torch.log_softmax(logits, -1)[len(asked) - 1 : -1][
            range(len(completion)), completion
        ]
        np.testing.assert_allclose(row["teacher_logprobs"], expected, atol=2e-4)
    assert without == PEERLESS


def test_the_choice_can_be_made_again_from_the_shards(taught: Run) -> None:
    folder = taught.step(0)
    for part in folder.parts("signals"):
        signals, rewards = folder.read("signals", part), folder.read("rewards", part)
        made = signals.metadata["signals"]
        assert made["teacher_peer"]["rewards"] == content_hash(rewards.table)
        for name in ("teacher_logprobs", "teacher_prompt_token_ids"):
            assert made[name]["context"] == "peer"
            assert made[name]["rewards"] == made["teacher_peer"]["rewards"]
            assert made[name]["seed"] == made["teacher_peer"]["seed"]
        ids, samples = (rewards.table[name].to_pylist() for name in ("prompt_id", "sample"))
        correct = np.array(rewards.table["verdict"].to_pylist()) == "correct"
        seed, step = made["teacher_peer"]["seed"], signals.metadata["step"]
        again = draw_peers(ids, samples, correct, seed, step)
        assert signals.table["teacher_peer"].to_pylist() == [
            None if peer is None else samples[peer] for peer in again
        ]


def test_other_verdicts_are_other_peers(taught: Run, tmp_path: Path) -> None:
    run = copied(taught, tmp_path / "run")
    before = {(r["place"], r["sample"]): r["teacher_peer"] for r in rows_of(run)}
    scored(run)  # what is there is kept
    judge(run.step(0), lambda prompt, sample: sample == 3)
    with pytest.raises(UserError, match=r"is there with another rewards.*--overwrite"):
        scored(run)
    after = {(r["place"], r["sample"]): r["teacher_peer"] for r in scored(run, overwrite=True)}
    assert after != before
    assert all(peer == (None if sample == 3 else 3) for (_, sample), peer in after.items())


def test_another_seed_draws_other_peers_and_is_told(taught: Run, tmp_path: Path) -> None:
    run = copied(taught, tmp_path / "run")
    other = Run(run.path, run.recipe.model_copy(update={"seed": 5}))
    with pytest.raises(UserError, match=r"teacher_logprobs is there with another seed"):
        scored(other)


def test_another_context_forgets_the_peers(taught: Run, tmp_path: Path) -> None:
    run = copied(taught, tmp_path / "run", small_recipe("rlsd").method)
    with pytest.raises(UserError, match=r"teacher_logprobs is there with another teacher.context"):
        scored(run)
    rows = scored(run, overwrite=True)
    assert all(row["teacher_peer"] is None and row["teacher_logprobs"] for row in rows)
    made = run.step(0).read("signals", 0).metadata["signals"]
    assert "teacher_peer" not in made


# Prompts that are too long


def test_a_prompt_that_is_too_long_leaves_no_teacher_and_is_counted(
    taught: Run, tmp_path: Path
) -> None:
    rows = rows_of(taught)
    lengths = sorted(
        len(r["teacher_prompt_token_ids"]) for r in rows if r["teacher_peer"] is not None
    )
    most = lengths[0]
    teacher = taught.recipe.method.teacher.model_copy(update={"max_prompt_tokens": most})
    method = taught.recipe.method.model_copy(update={"teacher": teacher})
    run = copied(taught, tmp_path / "run", method)
    with pytest.raises(UserError, match=r"another teacher.max_prompt_tokens \(8192, now \d+\)"):
        scored(run)
    shorter = scored(run, overwrite=True)
    for row, whole in zip(shorter, rows, strict=True):
        assert row["teacher_peer"] == whole["teacher_peer"]
        fits = whole["teacher_peer"] is not None and len(whole["teacher_prompt_token_ids"]) <= most
        assert (row["teacher_prompt_token_ids"] is not None) == fits
        assert (row["teacher_logprobs"] is not None) == fits
    measures = measure_step(run.step(0))
    assert measures["peer_share"] == 11 / 16
    assert measures["peer_too_long_share"] == sum(n > most for n in lengths) / 16 > 0


@pytest.mark.parametrize("spare", [0, -1])
def test_prompt_and_completion_share_the_context(taught: Run, tokenizer: Any, spare: int) -> None:
    """The last token of a completion has its place in the context, or the row has no teacher."""
    rollouts = taught.step(0).table("rollouts").slice(0, 4)
    completions = [np.array(ids, np.int32) for ids in rollouts["completion_token_ids"].to_pylist()]
    template = TeacherTemplate(tokenizer, taught.recipe.data, taught.recipe.method.teacher)
    peers = [1, None, None, None]
    whole = peer_prompts(template, rollouts, peers, completions, 4096)
    assert whole[0] is not None and whole[1:] == [None] * 3
    room = len(whole[0]) + len(completions[0]) + spare
    found = peer_prompts(template, rollouts, peers, completions, room)[0]
    assert (found is None) == (spare < 0)


# Shaping and training


def shaped(run: Run) -> list[dict[str, Any]]:
    shape_step(run.step(0), run.recipe.method, longest=40, progress=Silent(), overwrite=True)
    rows = rows_of(run)
    advantages = run.step(0).table("advantages").to_pylist()
    return [{**row, **each} for row, each in zip(rows, advantages, strict=True)]


def peerless(row: dict[str, Any]) -> bool:
    return (row["place"], row["sample"]) in PEERLESS


def test_a_completion_without_a_peer_keeps_its_base(taught: Run, tmp_path: Path) -> None:
    rows = shaped(copied(taught, tmp_path / "run"))
    moved = 0
    for row in rows:
        if peerless(row):
            assert set(row["weights"]) == {1.0}
            assert set(row["advantages"]) == {row["base"]}
        elif row["base"] > 0:
            moved += any(weight != 1 for weight in row["weights"])
    assert moved


def test_a_part_in_which_nobody_has_a_peer_is_shaped_and_diagnosed(
    taught: Run, tmp_path: Path, castctl: Cli
) -> None:
    run = copied(taught, tmp_path / "runs/r")
    judge(run.step(0), lambda prompt, sample: sample in CORRECT[prompt] and prompt < 2)
    scored(run, overwrite=True)
    assert run.step(0).read("signals", 1).table["teacher_logprobs"].null_count == 8
    rows = shaped(run)
    assert all(set(row["weights"]) == {1.0} for row in rows[8:])
    found = castctl("diagnose", "opsd-gaps", "runs/r", "--json").stdout
    numbers = json.loads(found)
    [step] = numbers["steps"]
    assert (step["teacher_context"], step["parts"], step["of_parts"]) == ("peer", 2, 2)
    assert not step["computed"]


@pytest.mark.parametrize("name", ["rlrt", "sdpo"])
def test_a_part_made_elsewhere_without_a_teacher_is_refused_where_there_are_peers(
    taught: Run, tmp_path: Path, name: str
) -> None:
    """Nobody says whether a teacher was asked: the verdicts tell whether it had to answer."""
    run = copied(taught, tmp_path / "run", small_recipe(name).method)
    for number in run.step(0).parts("signals"):
        part = run.step(0).read("signals", number)
        rows = [{k: v for k, v in row.items() if not k.startswith("teacher_")}
                for row in part.table.to_pylist()]  # fmt: skip
        write_part(part.path, "signals", pa.Table.from_pylist(rows, part.table.schema), {})
    with pytest.raises(UserError, match=rf"{name} needs teacher_.*does not have.*castctl score"):
        shaped(run)
    judge(run.step(0), lambda prompt, sample: False)
    for row in shaped(run):
        assert set(row["advantages"]) == {row["base"]}
        assert set(row["distill_weights"] or [0.0]) == {0.0}


@pytest.mark.parametrize("tokens", ["top_k_tail", "sampled"])
def test_distillation_leaves_out_who_has_no_teacher(
    taught: Run, tmp_path: Path, tokens: str
) -> None:
    """Their weights are 0 and their tokens stay in the denominators."""
    recipe = small_recipe(
        "sdpo", "sampling.max_tokens=40", "method.teacher.kind=current",
        f"method.distillation.tokens={tokens}",
        *(["method.distillation.kind=reverse_kl"] if tokens == "sampled" else []),
    )  # fmt: skip
    run = copied(taught, tmp_path / "run")
    run = Run(run.path, recipe)
    rows = shaped(run)
    for row in rows:
        assert set(row["distill_weights"]) == {0.0 if peerless(row) else 1.0}
    batch = read_batch(run.step(0), recipe.method)
    assert batch.kept_R.all()
    for row, ids in zip(rows, batch.teacher_prompts, strict=True):
        assert ids.tolist() == row["teacher_prompt_token_ids"] or peerless(row)
    _, stats = train_stage(run, 0, policy_at(run, 0), overwrite=False)
    assert stats is not None
    with_peers = sum(len(row["completion_token_ids"]) for row in rows if not peerless(row))
    assert stats.distilled_tokens == with_peers
    if tokens != "sampled":
        every = sum(len(row["completion_token_ids"]) for row in rows)
        assert stats.losses[0] == pytest.approx(stats.divergence / every, rel=1e-5)


def test_a_distilled_completion_without_a_teacher_is_refused(taught: Run, tmp_path: Path) -> None:
    """Else the bare prompt would be taken for the teacher's, without a word."""
    recipe = small_recipe("sdpo", "sampling.max_tokens=40")
    run = Run(copied(taught, tmp_path / "run").path, recipe)
    shaped(run)
    folder = run.step(0)
    part = folder.read("advantages", 1)
    rows = [{**row, "distill_weights": [1.0] * len(row["advantages"])}
            for row in part.table.to_pylist()]  # fmt: skip
    table = pa.Table.from_pylist(rows, schema=part.table.schema)
    write_part(part.path, "advantages", table, part.metadata)
    with pytest.raises(UserError, match=r"without a peer.*that the advantages distil; run"):
        read_batch(folder, recipe.method)


# What makes no sense


def test_a_group_of_one_has_no_peers(taught: Run, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"context=peer tells.*set sampling.n \(-n\) to 2 or more"):
        small_recipe("sdpo", "sampling.n=1").check_training()
    small_recipe("opsd", "sampling.n=1").check_training()
    run = copied(taught, tmp_path / "run", small_recipe("sdpo").method)
    folder = run.step(0)
    for stage in ("rollouts", "rewards", "signals"):
        for number in folder.parts(stage):
            part = folder.read(stage, number)
            table = part.table.filter(pa.array([s == 0 for s in part.table["sample"].to_pylist()]))
            write_part(part.path, stage, table, {})
    with pytest.raises(UserError, match=r"every prompt of .* has one; roll out with -n 2 or more"):
        shape_step(replace(folder), run.recipe.method, longest=40, progress=Silent())


def test_problems_need_no_answer_for_peers(castctl: Cli, tmp_path: Path) -> None:
    (tmp_path / "plain.jsonl").write_text(
        '{"problem": "47 + 38 = ?"}\n{"problem": "48 + 27 = ?"}\n'
    )
    (tmp_path / "rules.py").write_text(
        "def check(problem, completion, answer):\n    return len(completion) % 2\n"
    )
    done = castctl(
        "rollout", "--method", "rlrt", "--data", "plain.jsonl", "--run", "r", "-n", "2",
        "--set", "verifier.function=rules.py:check", "--set", "sampling.max_tokens=8",
    )  # fmt: skip
    assert "left out" not in done.stderr
    castctl("inspect", "runs/r", "--prompts")


def test_prompts_with_peers_are_shown_as_such(taught: Run, tmp_path: Path, castctl: Cli) -> None:
    copied(taught, tmp_path / "runs/r")
    page = castctl("inspect", "runs/r", "--prompts").stdout
    assert "[Correct rollout]" in page and "no teacher read it" in page
    assert "read the student's own prompt" not in page
