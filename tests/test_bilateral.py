"""Bilateral context conditioning: whose completions a ratio reads, and that nothing else does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from castctl import embedded
from castctl.data.bilateral import BilateralTemplate
from castctl.data.conversation import Message
from castctl.data.templates import PromptTemplate
from castctl.methods.conditioning import Bilateral
from castctl.models.loading import load_tokenizer
from castctl.progress import Silent
from castctl.recipe.model import ModelSettings
from castctl.recipe.recipe import DataSettings
from castctl.runs.run import Run, create_run
from castctl.shards.part import write_part
from castctl.stages.evaluate.stage import evaluate_tasks
from castctl.stages.one_step import rollout_stage, score_stage, train_stage
from castctl.stages.policies import policy_at
from castctl.stages.shape import shape_step
from castctl.stages.train.batch import read_batch
from conftest import Cli
from runs import small_recipe

DATA = DataSettings(prompt_template="{{ problem }}")


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return load_tokenizer(embedded.ensure().model, ModelSettings())


def template(tokenizer: Any, context: int, share: float = 0.4) -> BilateralTemplate:
    return BilateralTemplate(tokenizer, DATA, Bilateral(share=share), context)


def test_opposite_completions_stand_in_sample_order(tokenizer: Any) -> None:
    bare = PromptTemplate(tokenizer, DATA).render("1 + 2 = ?")
    asked = template(tokenizer, 4096).render("1 + 2 = ?", bare, 9, True, ["first 7", "second 8"])
    text = tokenizer.decode(asked)
    places = [
        text.index(s)
        for s in ("1 + 2", "wrong answer", "Attempt 1", "first 7", "Attempt 2", "second 8")
    ]
    assert places == sorted(places)
    other = template(tokenizer, 4096).render("1 + 2 = ?", bare, 9, False, ["x"])
    assert "correct answer" in tokenizer.decode(other)


def test_an_empty_opposite_is_exactly_the_bare_prompt(tokenizer: Any) -> None:
    bare = PromptTemplate(tokenizer, DATA).render("1 + 2 = ?")
    assert template(tokenizer, 4096).render("1 + 2 = ?", bare, 9, True, []) == bare


@settings(max_examples=30)
@given(
    context=st.integers(40, 600),
    completion=st.integers(0, 60),
    share=st.sampled_from([0.1, 0.4, 0.9]),
    texts=st.lists(st.text("0123456789+-= é中", min_size=1, max_size=60), min_size=1, max_size=5),
)
def test_the_share_is_never_passed(
    context: int, completion: int, share: float, texts: list[str]
) -> None:
    tokenizer = load_tokenizer(embedded.ensure().model, ModelSettings())
    bare = PromptTemplate(tokenizer, DATA).render("1 + 2 = ?")
    made = template(tokenizer, context, share)
    asked = made.render("1 + 2 = ?", bare, completion, True, texts)
    budget = int(share * (context - len(bare) - completion))
    assert len(asked) - len(bare) <= max(budget, 0)
    if len(asked) == len(bare):
        assert asked == bare
    whole = template(tokenizer, 10**6, share).render("1 + 2 = ?", bare, completion, True, texts)
    if len(whole) - len(bare) <= budget:
        assert asked == whole


def test_what_was_said_before_the_problem_is_said_here_too(tokenizer: Any) -> None:
    earlier = (Message("user", "Hi!"), Message("assistant", "Hello."))
    bare = PromptTemplate(tokenizer, DATA).render("1 + 2 = ?", earlier)
    for attempt in ("first 7", "second 8 " * 500):  # whole, and cut
        asked = template(tokenizer, 2048).render("1 + 2 = ?", bare, 9, True, [attempt], earlier)
        said = tokenizer.decode(asked)
        assert said.startswith(tokenizer.decode(bare).split("1 + 2")[0]) and "Hello." in said
        assert attempt[:6] in said
    alone = PromptTemplate(tokenizer, DATA).render("1 + 2 = ?")
    other = template(tokenizer, 2048).render("1 + 2 = ?", alone, 9, True, ["first 7"])
    assert "Hello." not in tokenizer.decode(other)


def test_the_last_one_is_cut_at_its_end(tokenizer: Any) -> None:
    bare = PromptTemplate(tokenizer, DATA).render("1 + 2 = ?")
    texts = ["7" * 20, "8" * 200, "9"]
    for room in (120, 160, 200):
        context = int((len(bare) + 10) + room / 0.4)
        text = tokenizer.decode(
            template(tokenizer, context).render("1 + 2 = ?", bare, 10, True, texts)
        )
        assert "7" * 20 in text and "9" not in text
        assert 0 <= text.count("8") < 200
    assert text.count("8") > 0


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A shaped step of BICC, among its groups a mixed one."""
    recipe = small_recipe("bicc", "sampling.max_tokens=64")
    made = create_run(recipe, str(tmp_path_factory.mktemp("bicc") / "run"), "test")
    source = policy_at(made, 0)
    rollout_stage(made, 0, source, progress=Silent())
    score_stage(made, 0, source, None, progress=Silent())
    shape_step(made.step(0), recipe.method, progress=Silent())
    return made


def test_a_ratio_reads_the_group_s_opposite(run: Run) -> None:
    folder = run.step(0)
    tokenizer = policy_at(run, 0).load(run.recipe.model).model.tokenizer
    rollouts, rewards, signals = (
        folder.table(stage).to_pylist() for stage in ("rollouts", "rewards", "signals")
    )
    mixed = 0
    for rollout, reward, signal in zip(rollouts, rewards, signals, strict=True):
        opposite = [
            other["completion"]
            for other, theirs in zip(rollouts, rewards, strict=True)
            if other["prompt_id"] == rollout["prompt_id"]
            and theirs["reward"] == 1 - reward["reward"]
        ]
        asked = signal["bilateral_prompt_token_ids"]
        assert (asked is not None) == bool(opposite)
        if asked is None:
            assert signal["bilateral_logprobs"] == signal["policy_logprobs"]
            continue
        mixed += 1
        text = tokenizer.decode(asked)
        assert all(other in text for other in opposite)
        assert rollout["completion"] in opposite or rollout["completion"] not in text
        assert signal["bilateral_logprobs"] != signal["policy_logprobs"]
    assert mixed


def test_old_and_new_read_the_same_context(run: Run, tmp_path: Path) -> None:
    """The first pass of an update has a ratio of 1 at every token."""
    batch = read_batch(run.step(0), run.recipe.method)
    assert any(len(p) > 60 for p in batch.prompts)
    _, stats = train_stage(run, 0, policy_at(run, 0), overwrite=True)
    assert stats is not None
    assert stats.row()["ratio_mean"] == pytest.approx(1, abs=1e-5)
    assert stats.row()["kl_old_new"] == pytest.approx(0, abs=1e-8)


def test_advantages_are_those_of_grpo(run: Run) -> None:
    rows = run.step(0).table("advantages").to_pylist()
    rewards = run.step(0).table("rewards").to_pylist()
    for row, reward in zip(rows, rewards, strict=True):
        group = [r["reward"] for r in rewards if r["prompt_id"] == reward["prompt_id"]]
        deviation = float(np.std(group))
        expected = (reward["reward"] - np.mean(group)) / (deviation + 1e-6) if deviation else 0
        np.testing.assert_allclose(row["advantages"], expected, atol=1e-5)


def test_sampling_never_sees_the_context(run: Run) -> None:
    """The same prompts and completions as GRPO's rollouts, and no longer prompt in any of them."""
    plain = run.recipe.model_copy(update={"method": small_recipe("grpo").method})
    other = create_run(plain, str(run.path.with_name("plain")), "test")
    rollout_stage(other, 0, policy_at(other, 0), progress=Silent())
    assert other.step(0).table("rollouts").equals(run.step(0).table("rollouts"))


def test_evaluation_never_sees_the_context(run: Run) -> None:
    [done] = evaluate_tasks(run, 0, {run.recipe.eval.task: None}, progress=Silent())
    template = PromptTemplate(
        policy_at(run, 0).load(run.recipe.model).model.tokenizer, run.recipe.data
    )
    for row in done.folder.table("rollouts").to_pylist():
        assert row["prompt_token_ids"] == template.render(row["problem"])


def test_rows_without_the_context_are_refused(run: Run, castctl: Cli, tmp_path: Path) -> None:
    plain = run.path.with_name("unscored")
    recipe = run.recipe.model_copy(update={"method": small_recipe("grpo").method})
    other = create_run(recipe, str(plain), "test")
    for stage in ("rollouts", "rewards", "signals"):
        table = run.step(0).table(stage)
        if stage == "signals":
            for name in ("bilateral_logprobs", "bilateral_prompt_token_ids"):
                place = table.schema.get_field_index(name)
                empty = pa.nulls(table.num_rows, table.schema.field(name).type)
                table = table.set_column(place, name, empty)
        write_part(other.step(0).part_path(stage, 0), stage, table, {})
    done = castctl("shape", "--run", str(plain), "--method", "bicc", code=2)
    assert "bicc needs bilateral_logprobs" in done.stderr
    assert f"castctl score --run {other.step(0).path} --method bicc" in done.stderr


def test_other_rewards_are_other_contexts(run: Run) -> None:
    """The opposite of one verdict is not that of another: signals of old rewards are refused."""
    folder = run.step(0)
    made = folder.read("signals", 0).metadata["signals"]
    assert made["bilateral_logprobs"]["rewards"] == made["bilateral_prompt_token_ids"]["rewards"]
    assert made["bilateral_logprobs"]["template"]
