"""Prompts as token ids, through a real tokenizer of single bytes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from castctl.data.templates import PromptTemplate
from castctl.errors import UserError
from castctl.recipe.recipe import DataSettings

CHAT = (
    "{% for message in messages %}"
    "{% if message.role == 'system' and no_system is defined %}"
    "{{ raise_exception('no system messages here') }}{% endif %}"
    "<{{ message.role }}>{{ message.content }}</>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% if not enable_thinking %}<quiet>{% endif %}"
    "{% endif %}"
)


def byte_tokenizer(chat_template: str | None = CHAT) -> PreTrainedTokenizerBase:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {"<bos>": 0, **{char: number for number, char in enumerate(alphabet, 1)}}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<bos>"])
    tokenizer.post_processor = processors.TemplateProcessing("<bos> $A", None, [("<bos>", 0)])
    made = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<bos>")
    made.chat_template = chat_template
    return made


TOKENIZER = byte_tokenizer()


def template(**settings: object) -> PromptTemplate:
    return PromptTemplate(TOKENIZER, DataSettings.model_validate(settings))


def test_chat_prompt_ends_where_the_answer_begins() -> None:
    prompt = template(
        prompt_template="Solve: {{ problem }}",
        system_prompt="Be brief.",
        chat_template_options={"enable_thinking": True},
    )
    expected = "<system>Be brief.</><user>Solve: 1+1</><assistant>"
    assert prompt.text("1+1") == expected
    ids = prompt.render("1+1")
    assert isinstance(ids, list)
    assert TOKENIZER.decode(ids) == expected


def test_options_reach_the_chat_template() -> None:
    assert template(chat_template_options={"enable_thinking": False}).text("x").endswith("<quiet>")


def test_plain_prompt_is_the_user_text_with_the_tokenizers_own_special_tokens() -> None:
    prompt = template(chat=False, prompt_template="Q: {{ problem }}\nA:\n")
    assert prompt.text("1+1") == "Q: 1+1\nA:\n"
    ids = prompt.render("1+1")
    assert ids[0] == TOKENIZER.bos_token_id
    assert TOKENIZER.decode(ids[1:]) == "Q: 1+1\nA:\n"


@given(st.text() | st.sampled_from(["{{ 7 * 7 }}", "{% raw %}", "{# note #}", "<b>&amp;</b>"]))
def test_a_problem_is_inert_text(problem: str) -> None:
    prompt = template(chat=False, prompt_template="{{ problem }}|{{ problem }}")
    assert prompt.text(problem) == f"{problem}|{problem}"
    assert f"<user>{problem}|{problem}</>" in template(
        prompt_template="{{ problem }}|{{ problem }}"
    ).text(problem)


def test_templates_may_use_jinjas_own_functions() -> None:
    text = "{% for i in range(2) %}{{ problem }}{% endfor %}"
    assert template(chat=False, prompt_template=text).text("ab") == "abab"


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("{{ problem", "not a working Jinja template"),
        ("{{ problem | nonesuch }}", "nonesuch"),
        ("{{ problem }} {{ answer }}", "uses answer; it can only use problem"),
        ("What is it?", "leaves the problem out"),
        ("{{ problem.__class__.__mro__ }}", "unsafe"),
        ("{{ problem.nonesuch }}", "nonesuch"),
        ("{{ problem }}{{ 1 // 0 }}", "zero"),
    ],
)
def test_a_broken_template_is_the_users_mistake(text: str, complaint: str) -> None:
    with pytest.raises(UserError, match=complaint) as error:
        template(prompt_template=text).render("1+1")
    assert "data.prompt_template" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["tokenize", "truncation", "messages"])
def test_options_cannot_take_over_the_rendering(name: str) -> None:
    with pytest.raises(UserError, match=f"data.chat_template_options cannot set {name}"):
        template(chat_template_options={name: True})


def test_a_refusal_of_the_chat_template_is_told() -> None:
    prompt = template(system_prompt="Be brief.", chat_template_options={"no_system": True})
    with pytest.raises(UserError, match=r"no system messages here.*data\.system_prompt"):
        prompt.render("1+1")


def test_a_tokenizer_without_chat_template_needs_chat_off() -> None:
    bare = byte_tokenizer(chat_template=None)
    with pytest.raises(UserError, match=r"set data\.chat=false"):
        PromptTemplate(bare, DataSettings())
    assert PromptTemplate(bare, DataSettings(chat=False)).text("1+1").startswith("1+1")


def test_a_system_prompt_needs_chat() -> None:
    with pytest.raises(UserError, match=r"set data\.chat=true"):
        template(chat=False, system_prompt="Be brief.")


def test_version_names_all_that_shapes_the_prompt_and_nothing_else() -> None:
    shapes = [
        template(),
        template(prompt_template="{{ problem }}"),
        template(system_prompt="Be brief."),
        template(chat_template_options={"enable_thinking": True}),
        template(chat=False),
        PromptTemplate(byte_tokenizer(CHAT + "!"), DataSettings()),
    ]
    versions = [shape.version for shape in shapes]
    assert len(set(versions)) == len(shapes)
    assert all(len(bytes.fromhex(version)) == 8 for version in versions)
    assert template(path="other.jsonl", limit=3, max_prompt_tokens=7).version == versions[0]
    plain = PromptTemplate(byte_tokenizer(CHAT + "!"), DataSettings(chat=False))
    assert plain.version == template(chat=False).version
