"""Templates are programs: they are rendered elsewhere, within bounds, and as they always were."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import time
from typing import Any

import pytest
from psutil import Process
from transformers import PreTrainedTokenizerBase

from castctl.data.conversation import Message
from castctl.data.lengths import CHARACTERS_A_TOKEN
from castctl.data.teacher_template import TeacherTemplate
from castctl.data.templates import PromptTemplate
from castctl.errors import UserError
from castctl.methods.teacher import Teacher
from castctl.recipe.recipe import DataSettings
from test_templates import CHAT, byte_tokenizer

SECONDS = 60
"""Two tries of two seconds each, and what a busy machine adds."""

HOSTILE = {
    "loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "multiplies": "{{ 'a' * 10 ** 11 }}",
    "multiplies late": "{% set n = 10 ** 11 %}{% if n %}{{ 'a' * n }}{% endif %}",
    "pads": "{{ 'a' | center(10 ** 11) }}",
    "formats": "{{ '%99999999999d' % 1 }}",
    "calls itself": "{% macro m() %}{{ m() }}{{ m() }}{% endmacro %}{{ m() }}",
    "nests": "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "writes much": "{{ 'a' * 2 * 10 ** 7 }}",
}

FRAME = "<user></><assistant><quiet>"
"""What CHAT writes around the text, a token a character."""
SPOKEN = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<assistant>"


def asked(text: str, tokenizer: PreTrainedTokenizerBase, **more: Any) -> PromptTemplate:
    return PromptTemplate(tokenizer, DataSettings(prompt_template=text, **more))


@pytest.mark.parametrize(
    ("of", "attack"),
    [
        *(("prompt", attack) for attack in HOSTILE),
        ("chat", "loops"),
        ("teacher", "multiplies late"),
    ],
)
def test_a_hostile_template_is_refused_in_time_and_takes_no_memory(of: str, attack: str) -> None:
    hostile = HOSTILE[attack]
    start, memory = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UserError) as caught:
        if of == "chat":
            asked("{{ problem }}", byte_tokenizer(SPOKEN + hostile)).render("1 + 1")
        elif of == "prompt":
            asked("{{ problem }}" + hostile, byte_tokenizer()).render("1 + 1")
        else:
            data = DataSettings(teacher_template="{{ prompt }}{{ answer }}" + hostile)
            teacher = Teacher(kind="current", context="answer")
            TeacherTemplate(byte_tokenizer(), data, teacher).render("1 + 1", "2", None)
    line = str(caught.value)
    assert "\n" not in line and len(line) < 500
    assert {"chat": "chat template", "prompt": "data.prompt_template"}.get(of, "teacher") in line
    assert time.monotonic() - start < SECONDS
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory  # in kilobytes
    assert grown < 300_000
    assert asked("{{ problem }}", byte_tokenizer()).text("1 + 1").startswith("<user>1 + 1</>")


CHATS = {
    "tags": CHAT,
    "blocks": "{%- for m in messages %}\n    {%- if m.role == 'user' %}\n"
    "        {{- '<|user|>\\n' + m.content }}\n    {%- else %}\n{{ m.content }}\n{% endif %}\n"
    "{%- endfor %}\n{%- if add_generation_prompt %}\n<|assistant|>\n{% endif %}",
    "spaces": "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}"
    "{% if ns.n > 9 %}{% break %}{% endif %}[{{ m.role }}] {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}{{ bos_token }}[assistant]{% endif %}",
    "json": "{% for m in messages %}{{ m.role | tojson }}: {{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}{{ {'a': [1, 'ü']} | tojson(indent=2) }}{% endif %}",
}


@pytest.mark.parametrize("chat", CHATS)
@pytest.mark.parametrize("options", [{}, {"enable_thinking": True}])
def test_prompts_are_those_of_the_tokenizers_own_method(chat: str, options: dict[str, Any]) -> None:
    tokenizer = byte_tokenizer(CHATS[chat])
    prompt = asked("{{ problem }}", tokenizer, chat_template_options=options)
    earlier = (Message("user", "Hi & <b>, \u202e ü!"), Message("assistant", "Hello."))
    problems = [("1 < 2?", ()), ("Is \n{{ x }} this?", earlier), ("a  b", earlier[:1])]
    for problem, before in problems:
        turns = [*(message._asdict() for message in before), {"role": "user", "content": problem}]
        whole = tokenizer.apply_chat_template(
            turns, add_generation_prompt=True, tokenize=False, **options
        )
        assert prompt.text(problem, before) == whole
    lengths = [len(prompt.render(problem, before)) for problem, before in problems]
    assert prompt.lengths(problems * 50) == lengths * 50


RENDERED = """
import sys
from castctl.data.jinja_chat import ChatTemplate, RenderChats, Talk, load_renderer
{before}
load_renderer()
talk = Talk([{{"role": "user", "content": "1 < 2"}}], True)
[text] = RenderChats()(ChatTemplate({chat!r}, {{}}), [talk])
print(text, "transformers.utils.hub" in sys.modules)
"""


@pytest.mark.parametrize("whole", [False, True])
def test_the_renderer_alone_is_loaded_and_all_where_that_fails(whole: bool) -> None:
    before = 'sys.modules["transformers.utils.logging"] = None  # refuses to load' if whole else ""
    code = RENDERED.format(before=before, chat=CHAT)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[0] == f"<user>1 < 2</><assistant><quiet> {whole}"


def test_a_text_of_far_too_many_characters_is_not_tokenised() -> None:
    prompt = asked("{{ problem * 4000 }}", byte_tokenizer())
    assert prompt.lengths([("a", ()), ("a" * 1000, ())], 64) == [4000 + len(FRAME), 65]
    assert len("a" * 1000 * 4000) > CHARACTERS_A_TOKEN * 64


def test_ctrl_c_leaves_the_process_of_templates_alone() -> None:
    prompt = asked("{{ problem }}!", byte_tokenizer())
    assert "before!" in prompt.text("before")
    workers = [
        each for each in Process().children() if "castctl.verify" in " ".join(each.cmdline())
    ]
    assert workers
    for worker in workers:
        worker.send_signal(signal.SIGINT)
    assert "after!" in prompt.text("after")
    assert all(worker.is_running() for worker in workers)


def test_a_fork_renders_in_a_process_of_its_own() -> None:
    prompt = asked("{{ problem }}!", byte_tokenizer())
    assert "before!" in prompt.text("before")
    child = os.fork()
    if child == 0:
        right = all(f"child {n}!" in prompt.text(f"child {n}") for n in range(200))
        os._exit(0 if right else 1)
    right = all(f"parent {n}!" in prompt.text(f"parent {n}") for n in range(200))
    assert os.waitpid(child, 0)[1] == 0 and right
