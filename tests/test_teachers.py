"""What a teacher is told, under which prompt it reads, and who it is."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoTokenizer, Qwen3Config, Qwen3ForCausalLM

from castctl import embedded
from castctl.data.conversation import Message
from castctl.data.teacher_template import TeacherTemplate
from castctl.data.templates import PromptTemplate
from castctl.errors import UserError
from castctl.methods import MethodSettings
from castctl.methods.teacher import Teacher
from castctl.models.loading import load_language_model
from castctl.models.teacher import load_other_teacher
from castctl.progress import Silent
from castctl.recipe.model import ModelSettings
from castctl.recipe.recipe import DataSettings
from castctl.runs.run import Run, create_run
from castctl.shards.part import read_part, write_part
from castctl.stages.one_step import rollout_stage, score_stage
from castctl.stages.policies import policy_at
from castctl.stages.signals import require_signals
from conftest import Cli
from runs import small_recipe, train_small

THINKING = (
    "{%- for m in messages -%}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}"
    "{%- endfor -%}{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}"
    "{%- if enable_thinking is false -%}{{ '<think>\\n\\n</think>\\n\\n' }}{%- endif -%}"
    "{%- endif -%}"
)
"""A chat template with Qwen3's option."""

DATA = DataSettings(prompt_template="{{ problem }}", teacher_template="{{ prompt }} ({{ answer }})")


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    model = embedded.ensure().model
    loaded = load_language_model(model, ModelSettings()).tokenizer
    loaded.chat_template = THINKING
    return loaded


def text(tokenizer: Any, ids: list[int]) -> str:
    return tokenizer.decode(ids)


# Templates


@pytest.mark.parametrize("context", ["answer", "solution", "solution_or_answer"])
def test_a_privileged_prompt_tells_what_its_context_says(tokenizer: Any, context: str) -> None:
    data = DATA.model_copy(update={"teacher_template": DataSettings().teacher_template})
    teacher = TeacherTemplate(tokenizer, data, Teacher(kind="current", context=context))
    asked = text(tokenizer, teacher.render("1 + 2 = ?", "3", "one, two, three"))
    assert "1 + 2 = ?" in asked and "answer is 3." in asked
    assert ("one, two, three" in asked) == (context != "answer")


def test_a_solution_is_told_where_there_is_one_else_the_answer(tokenizer: Any) -> None:
    data = DATA.model_copy(update={"teacher_template": DataSettings().teacher_template})
    both = TeacherTemplate(tokenizer, data, Teacher(kind="current", context="solution_or_answer"))
    assert "orrect solution" not in text(tokenizer, both.render("p", "3", None))
    assert "answer is" not in text(tokenizer, both.render("p", None, "steps"))
    assert both.lacks(None, None) == "answer or solution" and both.lacks("", "s") is None
    only = TeacherTemplate(tokenizer, data, Teacher(kind="current", context="solution"))
    with pytest.raises(UserError, match=r"needs the solution.*set method.teacher.context"):
        only.render("p", "3", None)


def test_without_a_context_the_prompt_is_the_students(tokenizer: Any) -> None:
    teacher = TeacherTemplate(tokenizer, DATA, Teacher(kind="snapshot"))
    assert teacher.render("1 + 2 = ?", "3", "s") == PromptTemplate(tokenizer, DATA).render(
        "1 + 2 = ?"
    )
    assert teacher.endings is None


def test_an_instruction_without_an_answer_changes_the_prompt(tokenizer: Any) -> None:
    settings = Teacher(kind="snapshot", template="Think twice. {{ problem }}")
    assert settings.own_prompt and not settings.privileged
    teacher = TeacherTemplate(tokenizer, DATA, settings)
    assert "Think twice. 1 + 2" in text(tokenizer, teacher.render("1 + 2", "3", None))


@pytest.mark.parametrize(
    ("teacher", "said"),
    [
        ({"template": "{{ problem }} {{ answer }}"}, "context=none does not tell"),
        ({"context": "answer", "template": "{{ problem }}"}, "leaves out what"),
        ({"context": "answer", "template": "{{ problem }} {{ hint }}"}, "uses hint"),
        ({"context": "answer", "template": "{{ problem"}, "not a working Jinja template"),
        ({"context": "answer", "template": "{{ answer }}"}, "leaves the problem out"),
        (
            {"chat_template_options": {"tokenize": False}},
            "teacher.chat_template_options cannot set",
        ),
    ],
)
def test_a_wrong_template_is_refused(tokenizer: Any, teacher: dict, said: str) -> None:
    with pytest.raises(UserError, match=said):
        TeacherTemplate(tokenizer, DATA, Teacher(kind="current", **teacher))


def test_another_chat_template_option_is_seen(tokenizer: Any) -> None:
    student = DATA.model_copy(update={"chat_template_options": {"enable_thinking": False}})
    thinking = Teacher(kind="current", chat_template_options={"enable_thinking": True})
    teacher = TeacherTemplate(tokenizer, student, thinking)
    assert teacher.endings is not None
    ends = [text(tokenizer, t.render(*a))[-20:] for t, a in (
        (PromptTemplate(tokenizer, student), ["p"]), (teacher, ["p", None, None]))]  # fmt: skip
    assert ends[0].endswith("</think>\n\n") and ends[1].endswith("assistant\n")


def test_versions_tell_templates_apart(tokenizer: Any) -> None:
    versions = {
        TeacherTemplate(tokenizer, DATA, Teacher(kind="current", **settings)).version
        for settings in (
            {}, {"context": "answer"}, {"context": "solution_or_answer"},
            {"chat_template_options": {"enable_thinking": True}}, {"template": "{{ problem }}!"},
            {"chat": False}, {"chat": False, "template": "{{ problem }}!"},
        )
    }  # fmt: skip
    assert len(versions) == 7


# Plain text

RESPONSE = "{{ prompt }}\n\n[Student response]\n"
PLAIN = Teacher(kind="snapshot", chat=False, template=RESPONSE)


def test_a_plain_prompt_is_the_rendered_text_alone(tokenizer: Any) -> None:
    """`prompt` is what the student's user says, and nothing stands around it: no chat, no system
    prompt, no token that the tokenizer would add."""
    data = DataSettings(prompt_template="Say: {{ problem }}", system_prompt="Be brief.")
    teacher = TeacherTemplate(tokenizer, data, PLAIN)
    said = "Say: 1 + 2 = ?\n\n[Student response]\n"
    assert teacher.render("1 + 2 = ?", "3", None) == tokenizer.encode(
        said, add_special_tokens=False
    )
    bare = TeacherTemplate(tokenizer, data, Teacher(kind="snapshot", chat=False))
    assert bare.render("1 + 2 = ?", None, None) == encoded(tokenizer, "Say: 1 + 2 = ?")


def encoded(tokenizer: Any, text: str) -> list[int]:
    return tokenizer.encode(text, add_special_tokens=False)


class AddsAToken:
    """A tokenizer that begins every text with a token of its own, as Llama's does."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)

    def __call__(self, text: str, add_special_tokens: bool = True, **how: Any) -> Any:
        found = self._tokenizer(text, add_special_tokens=False, **how)
        found["input_ids"] = [0] * add_special_tokens + found["input_ids"]
        return found


def test_no_special_token_begins_a_plain_prompt(tokenizer: Any) -> None:
    adding = AddsAToken(tokenizer)
    data = DATA.model_copy(update={"chat": False})
    student = PromptTemplate(adding, data).render("1 + 2")
    teacher = Teacher(kind="current", chat=False)
    assert student == [0, *TeacherTemplate(adding, data, teacher).render("1 + 2", None, None)]


def test_endings_of_plain_prompts_are_their_last_words(tokenizer: Any) -> None:
    def endings(data: DataSettings, template: str | None) -> tuple[str, str] | None:
        settings = Teacher(kind="snapshot", chat=False, template=template)
        return TeacherTemplate(tokenizer, data, settings).endings

    asked = DataSettings(prompt_template="{{ problem }} Think.", chat=False)
    assert endings(asked, None) is None and endings(asked, "Hm. {{ prompt }}") is None
    assert endings(asked, RESPONSE) == (" Think.", " Think.\n\n[Student response]\n")
    answers = "<|im_end|>\n<|im_start|>assistant\n"
    assert endings(DATA, RESPONSE) == (answers, "\n\n[Student response]\n")


def test_a_plain_prompt_has_no_place_for_a_conversation(tokenizer: Any) -> None:
    teacher = TeacherTemplate(tokenizer, DATA, PLAIN)
    with pytest.raises(UserError, match=r"method\.teacher\.chat=false has no place for.*to true"):
        teacher.render("1 + 2", None, None, (Message("user", "Hello"),))


def test_a_plain_prompt_without_a_token_is_refused(tokenizer: Any) -> None:
    settings = Teacher(kind="current", chat=False, template="{% if not problem %}.{% endif %}")
    with pytest.raises(UserError, match=r"renders to no token at all.*method\.teacher\.template"):
        TeacherTemplate(tokenizer, DATA, settings).render("1 + 2", None, None)


def test_plain_text_takes_no_options_of_the_chat_template() -> None:
    with pytest.raises(ValueError, match=r"chat=false has no chat template to hand options to"):
        Teacher(kind="current", chat=False, chat_template_options={"enable_thinking": True})


# Scoring


@pytest.fixture(scope="module")
def rolled(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Rollouts at T = 0.7, not scored yet."""
    recipe = small_recipe(
        "rlsd", "sampling.temperature=0.7", "train.score_rows=all", "train.prompts_per_step=2"
    )
    run = create_run(recipe, str(tmp_path_factory.mktemp("rolled") / "run"), "test")
    rollout_stage(run, 0, policy_at(run, 0), progress=Silent())
    score_stage(run, 0, policy_at(run, 0), None, progress=Silent())
    return run


def test_student_and_teacher_are_read_at_the_sampling_temperature(rolled: Run) -> None:
    """Both against all logits of transformers' own forward pass, over T = 0.7."""
    model = policy_at(rolled, 0).load(rolled.recipe.model).model
    folder = rolled.step(0)
    rollouts, signals = (folder.table(s).to_pylist() for s in ("rollouts", "signals"))
    for rollout, signal in zip(rollouts[:3], signals[:3], strict=True):
        completion = rollout["completion_token_ids"]
        asked = {
            "policy_logprobs": rollout["prompt_token_ids"],
            "teacher_logprobs": signal["teacher_prompt_token_ids"],
        }
        assert asked["teacher_logprobs"] != asked["policy_logprobs"]
        for name, prompt in asked.items():
            with torch.no_grad():
                logits = model.model(torch.tensor([prompt + completion])).logits[0].double()
            logprobs = torch.log_softmax(logits / 0.7, -1)[len(prompt) - 1 : -1]
            expected = logprobs[range(len(completion)), completion]
            np.testing.assert_allclose(signal[name], expected, atol=2e-4)


def test_the_prompt_tells_the_answer_and_the_completion_stays(rolled: Run) -> None:
    tokenizer = policy_at(rolled, 0).load(rolled.recipe.model).model.tokenizer
    folder = rolled.step(0)
    metadata = folder.read("signals", 0).metadata["signals"]
    assert metadata["teacher_logprobs"]["context"] == "solution_or_answer"
    template = TeacherTemplate(tokenizer, rolled.recipe.data, rolled.recipe.method.teacher)
    assert metadata["teacher_prompt_token_ids"]["template"] == template.version
    rows = zip(
        folder.table("rollouts").to_pylist(), folder.table("signals").to_pylist(), strict=True
    )
    for rollout, signal in rows:
        prompt = tokenizer.decode(signal["teacher_prompt_token_ids"])
        assert f"{rollout['problem']} ({rollout['answer']})" in prompt
        assert len(signal["teacher_logprobs"]) == len(rollout["completion_token_ids"])


def test_what_is_there_is_kept_and_another_context_refused(rolled: Run) -> None:
    path = rolled.step(0).part_path("signals", 0)
    before = path.stat().st_mtime_ns
    score_stage(rolled, 0, policy_at(rolled, 0), None, progress=Silent())
    assert path.stat().st_mtime_ns == before
    method = rolled.recipe.method
    blind = method.model_copy(update={"teacher": Teacher(kind="current")})
    other = Run(rolled.path, rolled.recipe.model_copy(update={"method": blind}))
    with pytest.raises(UserError, match=r"teacher_logprobs is there with another.*--overwrite"):
        score_stage(other, 0, policy_at(other, 0), None, progress=Silent())


def test_an_answer_free_template_is_part_of_what_made_the_signals(
    rolled: Run, tmp_path: Path
) -> None:
    """Log-probs and prompts of one template, or of a chat, are not taken for another's, by scoring,
    by shaping and by the distillation that reads the prompts alone."""
    run = Run(tmp_path / "run", rolled.recipe)
    shutil.copytree(rolled.path, run.path)
    blind = {"kind": "current", "chat": False, "template": RESPONSE}

    def taught(name: str, **teacher: Any) -> MethodSettings:
        return MethodSettings.model_validate(
            {"name": name, "teacher": {"context": "none", **teacher}}
        )

    def of(method: MethodSettings) -> Run:
        return Run(run.path, run.recipe.model_copy(update={"method": method}))

    method, source = taught("rlsd", **blind), policy_at(run, 0)
    score_stage(of(method), 0, source, None, progress=Silent(), overwrite=True)
    signals = run.step(0).read("signals", 0)
    made = signals.metadata["signals"]
    assert made["teacher_logprobs"]["teacher"]["template"] == RESPONSE
    assert made["teacher_prompt_token_ids"]["teacher"]["chat"] is False
    require_signals(signals, method)
    require_signals(signals, taught("grpo+opsd", **blind))
    for other, said in (
        ({"chat": True}, r"another chat \(False, now True\)"),
        ({"template": "{{ prompt }}"}, r"another template"),
    ):
        for name in ("rlsd", "grpo+opsd"):
            with pytest.raises(UserError, match=said + r".*--overwrite"):
                require_signals(signals, taught(name, **blind | other))
        with pytest.raises(UserError, match=r"teacher_logprobs is there with another"):
            score_stage(of(taught("rlsd", **blind | other)), 0, source, None, progress=Silent())


def test_signals_of_before_plain_text_are_of_a_chat(rolled: Run, tmp_path: Path) -> None:
    signals = rolled.step(0).read("signals", 0)
    metadata = json.loads(json.dumps(signals.metadata))
    del metadata["signals"]["teacher_logprobs"]["teacher"]["chat"]
    write_part(tmp_path / "older.parquet", "signals", signals.table, metadata)
    older = read_part(tmp_path / "older.parquet", "signals")
    assert older.metadata["signals"] == signals.metadata["signals"]


def test_shaping_refuses_a_teacher_that_was_told_something_else(rolled: Run, castctl: Cli) -> None:
    done = castctl("shape", "--run", str(rolled.path), "--method", "cast", code=2)
    assert "a teacher with another kind ('current', now 'snapshot')" in done.stderr
    assert "--method cast --overwrite" in done.stderr


def test_prompts_are_shown_side_by_side(rolled: Run, castctl: Cli) -> None:
    shown = castctl("inspect", str(rolled.path), "--prompts", "--json").stdout
    assert '"teacher":' in shown and "warning" in shown
    page = castctl("inspect", str(rolled.path), "--prompts").stdout
    assert "student" in page and "teacher" in page


# Data


def test_problems_without_what_is_told_are_dropped_or_refused(castctl: Cli, tmp_path: Path) -> None:
    file = tmp_path / "data.jsonl"
    rows = ['{"problem": "47 + 38 = ?", "answer": "85"}'] * 1
    file.write_text("\n".join(rows) + "\n")
    template = "data.teacher_template={{ problem }} {{ solution }}"
    arguments = ("--method", "rlsd", "--data", str(file), "--set", "train.prompts_per_step=1")
    done = castctl("rollout", *arguments, "--set", "method.teacher.context=solution", code=2)
    assert "leaves out what method.teacher.context=solution tells" in done.stderr
    arguments += ("--set", template)
    done = castctl("rollout", *arguments, "--set", "method.teacher.context=solution", code=2)
    assert "needs the solution" in done.stderr and "data.solution_column" in done.stderr
    file.write_text(rows[0] + '\n{"problem": "47 + 39 = ?", "answer": "86", "solution": "carry"}\n')
    done = castctl("rollout", *arguments, "--set", "method.teacher.context=solution", "-n", "2")
    assert "1 nothing to tell the teacher" in done.stderr


# Another model


def test_a_model_of_the_same_vocabulary_teaches(tmp_path: Path) -> None:
    path = embedded.ensure().model
    recipe = small_recipe(
        "opsd", "method.teacher.kind=model", f"method.teacher.path={path}", "train.steps=1",
        "eval.limit=2", "train.prompts_per_step=2",
    )  # fmt: skip
    run, _ = train_small(tmp_path / "run", recipe)
    row = pq.read_table(run.path / "metrics.parquet").to_pylist()[-1]
    assert row["divergence_mean"] > 0 and row["distilled_tokens"] > 0
    assert not (run.checkpoint(1) / "teacher").exists(), "a frozen model needs no copy"


def test_a_larger_model_teaches_by_the_reverse_kl(tmp_path: Path) -> None:
    """Against KL(p || q) of all logits, by transformers' own forward passes: wider and deeper than
    the policy, asked what the policy is asked."""
    own = embedded.ensure().model
    shape = Qwen3Config.from_pretrained(own)
    shape.hidden_size, shape.intermediate_size, shape.num_hidden_layers = 160, 320, 4
    shape.layer_types = ["full_attention"] * 4
    torch.manual_seed(0)
    teacher = Qwen3ForCausalLM(shape)
    teacher.save_pretrained(tmp_path / "larger")
    AutoTokenizer.from_pretrained(own).save_pretrained(tmp_path / "larger")
    path = f"method.teacher.path={tmp_path / 'larger'}"
    recipe = small_recipe("opd", path, "train.steps=1", "sampling.n=1", "eval.limit=2")
    run, _ = train_small(tmp_path / "run", recipe)
    row = pq.read_table(run.path / "metrics.parquet").to_pylist()[-1]
    student = policy_at(run, 0).load(recipe.model).model.model
    total, tokens = 0.0, 0
    for rollout in run.step(0).table("rollouts").to_pylist():
        prompt, completion = rollout["prompt_token_ids"], rollout["completion_token_ids"]
        with torch.no_grad():
            p, q = (
                model(torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1]
                .double().log_softmax(-1)
                for model in (student, teacher.eval())
            )  # fmt: skip
        total += float((p.exp() * (p - q)).sum())
        tokens += len(completion)
    assert row["distilled_tokens"] == tokens and total / tokens > 0.5
    assert row["divergence_mean"] == pytest.approx(total / tokens, rel=1e-4)
    assert row["loss"] == pytest.approx(total / tokens, rel=1e-4)


def test_a_quantised_model_is_refused(tmp_path: Path) -> None:
    shutil.copytree(embedded.ensure().model, tmp_path / "model")
    file = tmp_path / "model/config.json"
    made = {**json.loads(file.read_text()), "quantization_config": {"quant_method": "gptq"}}
    file.write_text(json.dumps(made))
    recipe = small_recipe("opd", f"method.teacher.path={tmp_path / 'model'}")
    policy = policy_at(create_run(recipe, str(tmp_path / "run"), "test"), 0).load(recipe.model)
    with pytest.raises(UserError, match=r"holds quantised weights \(gptq\).* name the model in"):
        load_other_teacher(recipe.method.teacher, recipe.model, policy.model)


def test_a_model_of_another_vocabulary_is_refused(castctl: Cli, tmp_path: Path) -> None:
    import models

    models.tiny().model.save_pretrained(tmp_path / "other")
    models.tokenizer().save_pretrained(tmp_path / "other")
    done = castctl(
        "train", "--method", "opsd", "--set", "method.teacher.kind=model",
        "--set", f"method.teacher.path={tmp_path / 'other'}", "--steps", "1", code=2,
    )  # fmt: skip
    assert "has another vocabulary" in done.stderr


def test_the_gap_of_the_first_tokens_can_be_left_out(rolled: Run, castctl: Cli) -> None:
    run = str(rolled.path)
    castctl("shape", "--run", run)
    folder = rolled.step(0)
    heard = [row["weights"] for row in folder.table("advantages").to_pylist()]
    castctl("shape", "--run", run, "--set", "method.teacher.skip_tokens=3", "--overwrite")
    rows = folder.table("advantages").to_pylist()
    assert all(w == 1 for row in rows for w in row["weights"][:3])
    assert [row["weights"][3:] for row in rows] == [weights[3:] for weights in heard]
    from castctl.stages.measures import measure_step

    share = measure_step(folder)["gap_skipped_share"]
    signals = folder.table("signals").to_pylist()
    gaps = [
        [abs(t - p) for t, p in zip(s["teacher_logprobs"], s["policy_logprobs"], strict=True)]
        for s in signals
    ]
    expected = sum(map(sum, (g[:3] for g in gaps))) / sum(map(sum, gaps))
    assert math.isclose(share, expected, rel_tol=1e-5)
