"""Prompts as token ids, through a real tokenizer of single bytes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from castctl.data.conversation import Earlier, Message
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


LINES = "{% for m in messages %}<{{ m.role }}>{{ CONTENT }}</>{% endfor %}"
ANSWER = "{% if add_generation_prompt %}<assistant>{% endif %}"
EARLIER = (
    Message("system", "Be brief."),
    Message("user", "Hi, <b> & all!"),
    Message("assistant", "Hello."),
)
WHOLE = "<system>Be brief.</><user>Hi, <b> & all!</><assistant>Hello.</><user>1 < 2?</><assistant>"


def lines(content: str, end: str = ANSWER) -> PreTrainedTokenizerBase:
    return byte_tokenizer(LINES.replace("CONTENT", content) + end)


def asked(tokenizer: PreTrainedTokenizerBase, **settings: object) -> PromptTemplate:
    data = DataSettings.model_validate({"prompt_template": "{{ problem }}", **settings})
    return PromptTemplate(tokenizer, data)


@pytest.mark.parametrize(
    "content",
    [
        "m.content",
        "m.content | trim",
        "m.content[0].text",
        "m.content | map(attribute='text') | join if m.content is not string else ''",
    ],
)
def test_a_conversation_stands_whole_in_the_prompt(content: str) -> None:
    prompt = asked(lines(content))
    assert prompt.text("1 < 2?", EARLIER) == WHOLE
    assert TOKENIZER.decode(prompt.render("1 < 2?", EARLIER)) == WHOLE
    assert prompt.text("1 < 2?") == "<user>1 < 2?</><assistant>"
    spaced = asked(lines(content), prompt_template=" {{ problem }}\n").text("1 < 2?")
    ends = ("", "") if "trim" in content else (" ", "\n")
    assert spaced == f"<user>{ends[0]}1 < 2?{ends[1]}</><assistant>"


CHANGED = {
    "m.content | upper": "leaves out, moves or changes the user message",
    "m.content | e": "leaves out, moves or changes the user message",
    "m.content | tojson": "leaves out, moves or changes the user message",
    "m.content | replace('3', '')": "changes the text of a message",
    "m.content + m.content": "repeats the user message",
    "m.content[:13]": "leaves out, moves or changes the user message",
    "m.content[:25]": "changes the text of a message",
    "m.content if m.role == 'system'": "leaves out, moves or changes the user message",
}


@pytest.mark.parametrize("content", CHANGED)
def test_a_template_that_changes_the_problem_is_refused(content: str) -> None:
    problem = "Is 1 < 2, and what of 2 < 3?"
    with pytest.raises(UserError, match=f"{CHANGED[content]}.*data.chat=false") as error:
        asked(lines(content)).render(problem)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("earlier", "template", "role"),
    [
        (EARLIER[:1], LINES.replace("for m in messages", "for m in messages[-1:]"), "system"),
        (EARLIER[1:], LINES.replace("for m in messages", "for m in messages[-1:]"), "user"),
        (EARLIER[:1], LINES.replace("CONTENT", "m.content if m.role != 'system'"), "system"),
        (EARLIER, LINES.replace("CONTENT", "m.content if m.role != 'assistant'"), "assistant"),
        (EARLIER, LINES.replace("for m in messages", "for m in messages | reverse"), "user"),
    ],
)
def test_a_template_that_drops_what_was_said_before_is_refused_where_there_is_some(
    earlier: Earlier, template: str, role: str
) -> None:
    prompt = asked(byte_tokenizer(template.replace("CONTENT", "m.content") + ANSWER))
    assert prompt.text("1 < 2?") == "<user>1 < 2?</><assistant>"
    with pytest.raises(UserError, match=f"leaves out, moves or changes the {role} message"):
        prompt.render("1 < 2?", earlier)


@pytest.mark.parametrize("end", ["", "{% if not add_generation_prompt %}<end>{% endif %}"])
def test_a_template_without_a_generation_prompt_is_refused(end: str) -> None:
    with pytest.raises(UserError, match="does not end the prompt where an answer begins"):
        asked(lines("m.content", end)).render("1 < 2?")


def test_thoughts_that_a_template_begins_have_no_words_yet() -> None:
    begun = ANSWER.replace("<assistant>", "<assistant><think>\n{{ WORDS }}")
    for words, fine in (("''", True), ("'</think>Hm'", True), ("'Okay, '", False)):
        prompt = asked(lines("m.content", begun.replace("WORDS", words)))
        if fine:
            assert prompt.text("Is <think> one?").startswith("<user>Is <think> one?</>")
            continue
        with pytest.raises(UserError, match="words of thought after its <think>"):
            prompt.render("1 < 2?")


def test_an_answer_may_follow_the_problem_at_once() -> None:
    mistral = (
        "{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
        "{% else %} {{ m.content }}</s>{% endif %}{% endfor %}"
    )
    assert asked(byte_tokenizer(mistral)).text("1 < 2?") == "[INST] 1 < 2? [/INST]"


def test_a_conversation_may_end_with_a_token_of_its_own() -> None:
    phi = lines("m.content", ANSWER.replace("{% endif %}", "{% else %}<bos>{% endif %}"))
    assert asked(phi).text("1 < 2?", EARLIER) == WHOLE


def test_a_system_message_may_stand_before_the_problem() -> None:
    mistral = byte_tokenizer(
        "{% for m in messages %}{% if m.role == 'user' %}[INST] "
        "{% if loop.last and messages[0].role == 'system' %}{{ messages[0].content }}+{% endif %}"
        "{{ m.content }} [/INST]{% elif m.role == 'assistant' %} {{ m.content }}</s>{% endif %}"
        "{% endfor %}"
    )
    whole = "[INST] Hi, <b> & all! [/INST] Hello.</s>[INST] Be brief.+1 < 2? [/INST]"
    for prompt in (asked(mistral), asked(mistral, system_prompt="Be brief.")):
        assert prompt.text("1 < 2?", EARLIER) == whole
        assert mistral.decode(prompt.render("1 < 2?", EARLIER)) == whole
    ids = asked(mistral, system_prompt="<bos>").render("<bos>", EARLIER)
    assert ids.count(mistral.bos_token_id) == 1  # the user's own, not the data's


def test_a_template_may_leave_the_thoughts_of_earlier_answers_out() -> None:
    qwen = "m.content.split('</think>')[-1].lstrip() if m.role == 'assistant' else m.content"
    thought = EARLIER[2]._replace(content="<think>Who?</think>\n\nHello.")
    assert asked(lines(qwen)).text("1 < 2?", (*EARLIER[:2], thought)) == WHOLE
    with pytest.raises(UserError, match="changes the text of a message"):
        asked(lines(qwen.replace("if m.role == 'assistant' else m.content", ""))).render(
            "Is </think> one?"
        )


@given(st.text(min_size=1), st.booleans())
def test_a_problem_is_refused_or_stands_in_the_prompt_as_it_is(problem: str, trim: bool) -> None:
    text = asked(lines("m.content | trim" if trim else "m.content")).text(problem)
    assert text == f"<user>{problem.strip() if trim else problem}</><assistant>"


def test_the_recipes_system_message_takes_the_place_of_the_datas() -> None:
    prompt = asked(TOKENIZER, system_prompt="Think.")
    assert prompt.text("1 < 2?", EARLIER).startswith("<system>Think.</><user>Hi")
    assert "Be brief." not in prompt.text("1 < 2?", EARLIER)


def test_messages_before_the_problem_are_text_alone_and_need_chat() -> None:
    made = byte_tokenizer()
    made.add_special_tokens({"additional_special_tokens": ["<|end|>"]})
    end = made.convert_tokens_to_ids("<|end|>")
    prompt = asked(made)
    ids = prompt.render("1<|end|>", (Message("user", "a<|end|>"),))
    assert end not in ids
    assert made.decode(ids) == prompt.text("1<|end|>", (Message("user", "a<|end|>"),))
    with pytest.raises(UserError, match=r"set data\.chat=true"):
        asked(TOKENIZER, chat=False).render("1 < 2?", EARLIER)


TODAY = "Today is {{ strftime_now('%d %b %Y') }}. "


def test_todays_date_is_the_recipes() -> None:
    with_date = byte_tokenizer(TODAY + CHAT)
    first, other = asked(with_date), asked(with_date, date="2024-07-26")
    assert first.text("1+1").startswith("Today is 01 Jan 2026. <user>")
    assert other.text("1+1").startswith("Today is 26 Jul 2024. <user>")
    assert (first.format.date, other.format.date) == ("2026-01-01", "2024-07-26")
    assert first.version != other.version
    assert asked(TOKENIZER).format.date is None
    assert asked(TOKENIZER).version == asked(TOKENIZER, date="2024-07-26").version


def test_a_date_that_cannot_be_pinned_is_refused() -> None:
    unknown = byte_tokenizer("{% set f = '%Y' %}{{ strftime_now( f ) }}" + CHAT)
    with pytest.raises(UserError, match=r"cannot be data\.date"):
        asked(unknown)
    asked_for = byte_tokenizer(
        "{% if strftime_now is defined %}{{ strftime_now('%Y') }}{% endif %}" + CHAT
    )
    assert asked(asked_for).text("1+1").startswith("2026<user>")


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
