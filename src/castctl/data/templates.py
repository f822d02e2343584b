"""Render a problem to the token ids of the student's prompt."""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from castctl.data.chat_template import MEND, PLAIN, chat_template, dated
from castctl.data.conversation import (
    Earlier,
    Message,
    conversation,
    require_alone,
    require_chat,
)
from castctl.data.jinja_chat import ChatTemplate, RenderChats, Talk
from castctl.data.lengths import surely_longer
from castctl.data.rendering import Refused, TooCostly, render
from castctl.data.text_template import TextTemplate
from castctl.errors import UserError, one_line
from castctl.recipe.recipe import DataSettings
from castctl.verify.visible import CLOSED, OPENED, opens_thoughts

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PROBE = "castctl asks:\n1 < 2"
"""Stands for a message's text where only its frame is asked for; escaped it is another text."""

ALONE = "leave data.system_prompt and the data's messages before the problem out"

Asked = tuple[str, Earlier]
"""What the user says, and what was said before."""
Turns = list[dict[str, Any]]
"""A conversation as chat templates take it."""


class Frame(NamedTuple):
    """What a chat template writes around the messages of a conversation."""

    pieces: tuple[str, ...]
    """Before, between and after the messages' texts: one more than there are messages."""
    parts: bool
    """Whether the template takes a text as a list of parts."""
    order: tuple[int, ...]
    """The messages as they stand in the prompt: Mistral's has the system's before the problem."""

    def texts_in(self, prompt: str, messages: Sequence[Message]) -> list[str] | None:
        """The messages' texts as they stand in a prompt, which may trim their ends; None where the
        prompt holds another text, or more."""
        first, *others = self.pieces
        if not prompt.startswith(first):
            return None
        found, at = [], len(first)
        for (role, text), piece in zip([messages[n] for n in self.order], others, strict=True):
            forms = [text, text.strip(), text.rstrip(), text.lstrip()]
            if role == "assistant" and CLOSED in text:  # templates leave earlier thoughts out
                said = text.rpartition(CLOSED)[2]
                forms += [said, said.lstrip("\n"), said.strip(), said.rstrip(), said.lstrip()]
            form = next((form for form in forms if prompt.startswith(form + piece, at)), None)
            if form is None:
                return None
            found.append(form)
            at += len(form) + len(piece)
        return found if at == len(prompt) else None


class Rendered(NamedTuple):
    """A prompt, its frame (None without a chat template), and the messages' texts as they stand
    in it."""

    text: str
    frame: Frame | None
    messages: list[str]


class ChatFormat:
    """The frame around a user text: the tokenizer's chat template, or nothing with `data.chat` off.

    `options` are handed to the chat template; `setting` is where they come from. Raises
    UserError for settings that cannot be rendered with this tokenizer.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        data: DataSettings,
        options: dict[str, Any],
        setting: str = "data.chat_template_options",
    ) -> None:
        self._tokenizer = tokenizer
        self._data = data
        self._options = options
        require_chat(data)
        reserved = {"messages", *inspect.signature(tokenizer.apply_chat_template).parameters}
        if clash := sorted(reserved & options.keys()):
            raise UserError(
                f"{setting} cannot set {', '.join(clash)}, which castctl sets "
                "itself; name only values that the chat template uses"
            )
        written = chat_template(tokenizer) if data.chat else None
        self._template = None if written is None else dated(written, data.date)
        self.date = None if self._template == written else data.date.isoformat()
        """The day that the chat template writes into prompts; None where it writes none."""
        self._special = tuple(tokenizer.get_added_vocab())
        self._frames: dict[tuple[str, ...], Frame] = {}

    @property
    def settings(self) -> dict[str, Any]:
        """All of the frame that shapes a prompt, beside the vocabulary."""
        return {
            "chat": self._data.chat,
            "system_prompt": self._data.system_prompt,
            "chat_template_options": self._options,
            "chat_template": self._template,
        }

    @property
    def ending(self) -> str:
        """What follows the user's text."""
        if not self._data.chat:
            return ""
        return self._frame([role for role, _ in self._messages("", ())]).pieces[-1]

    def ids(self, user: str, earlier: Earlier = ()) -> list[int]:
        """Token ids of a prompt, ready to be continued by the model's answer.

        Within a chat template the messages of the data are text alone: one that reads
        `<|im_end|>` does not end the message. Raises UserError where the chat template does not
        hold each message once and as it is, or does not end where an answer begins.
        """
        return self.all_ids([(user, earlier)])[0]

    def all_ids(self, asked: Sequence[Asked]) -> list[list[int]]:
        """`ids` of each prompt; a process of templates is asked for many at once."""
        return [self._ids(prompt) for prompt in self._rendered(asked)]

    def lengths(self, asked: Sequence[Asked], most: int | None = None) -> list[int]:
        """How many token ids each prompt has; `most + 1` where its text is surely longer than
        `most` tokens, which is not counted."""
        prompts = self._rendered(asked)
        return [
            most + 1
            if most is not None and surely_longer(prompt.text, most)
            else len(self._ids(prompt))
            for prompt in prompts
        ]

    def _ids(self, rendered: Rendered) -> list[int]:
        prompt, frame, texts = rendered
        if frame is None:
            return self._encode(prompt, add_special_tokens=True)
        pieces, own = list(frame.pieces), frame.order.index(0)
        if self._data.system_prompt is not None:  # the user's own words, not the data's
            pieces[own : own + 2] = [pieces[own] + texts[own] + pieces[own + 1]]
            del texts[own]
        if not any(word in text for text in texts for word in self._special):
            return self._encode(prompt)
        ids = self._encode(pieces[0])
        for text, piece in zip(texts, pieces[1:], strict=True):
            ids += self._encode(text, split_special_tokens=True) + self._encode(piece)
        return ids

    def text(self, user: str, earlier: Earlier = ()) -> str:
        """The prompt for people: what `ids` turns into token ids."""
        [prompt] = self._rendered([(user, earlier)])
        return prompt.text

    def _messages(self, user: str, earlier: Earlier) -> list[Message]:
        return conversation(user, earlier, self._data.system_prompt)

    def _rendered(self, asked: Sequence[Asked]) -> list[Rendered]:
        if not self._data.chat:
            return [self._plain(user, earlier) for user, earlier in asked]
        talks = [self._messages(user, earlier) for user, earlier in asked]
        frames = [self._frame([role for role, _ in messages]) for messages in talks]
        turns = [_turns(*each) for each in zip(talks, [f.parts for f in frames], strict=True)]
        prompts = []
        for prompt, frame, messages in zip(self._apply(turns), frames, talks, strict=True):
            texts = frame.texts_in(prompt, messages)
            if texts is None:
                raise UserError(
                    "the tokenizer's chat template changes the text of a message, in the prompt of "
                    f"{one_line(messages[-1].content[:60])!r}; {PLAIN}"
                )
            prompts.append(Rendered(prompt, frame, texts))
        return prompts

    def _plain(self, user: str, earlier: Earlier) -> Rendered:
        require_alone(earlier)
        return Rendered(user, None, [])

    def _frame(self, roles: Sequence[str]) -> Frame:
        """The frame of messages by these roles, asked for once."""
        key = tuple(roles)
        if key not in self._frames:
            self._frames[key] = self._framed(key)
        return self._frames[key]

    def _framed(self, roles: tuple[str, ...]) -> Frame:
        refused: list[UserError] = []
        for parts in (False, True):
            try:
                return self._probed(roles, parts)
            except UserError as error:
                if isinstance(error.__cause__, TooCostly):
                    raise
                refused.append(error)
        raise refused[0]  # of the two, plain text is what a template is known to take

    def _probed(self, roles: tuple[str, ...], parts: bool) -> Frame:
        """The frame, with texts in it that are easy to find."""
        probes = [Message(role, f"{PROBE} {number}?") for number, role in enumerate(roles)]
        [prompt] = self._apply([_turns(probes, parts)])
        rest = prompt
        pieces = []
        order = sorted(range(len(probes)), key=lambda n: prompt.find(probes[n].content))
        spoken = [n for n in order if roles[n] != "system"]
        if spoken != sorted(spoken) or order[-1] != len(roles) - 1:  # only a system's may move
            order = list(range(len(probes)))
        for role, probe in [probes[n] for n in order]:
            before, found, rest = rest.partition(probe)
            if not found or prompt.count(probe) > 1:
                does = "repeats" if found else "leaves out, moves or changes"
                raise UserError(
                    f"the tokenizer's chat template {does} the {role} message; "
                    + (PLAIN if len(probes) == 1 else MEND.format(ALONE))
                )
            pieces.append(before)
        self._require_end(probes, parts, prompt, rest)
        if OPENED in rest.rpartition(CLOSED)[2] and not opens_thoughts(prompt):
            raise UserError(
                f"the tokenizer's chat template writes words of thought after its {OPENED}, which "
                f"hide that the completion begins in thoughts; {PLAIN}"
            )
        return Frame((*pieces, rest), parts, tuple(order))

    def _require_end(self, probes: list[Message], parts: bool, prompt: str, ending: str) -> None:
        """Raise UserError unless the prompt ends where the assistant's answer begins."""
        [bare] = self._apply([_turns(probes, parts)], generation=False)
        if prompt.startswith(bare) and prompt != bare:
            return
        # Right too where the same words stand between the problem and an answer that follows:
        # nothing is added after Mistral's [/INST], Phi-3 ends a conversation with its own token.
        answer = Message("assistant", f"{PROBE} no more")
        [talk] = self._apply([_turns([*probes, answer], parts)], generation=False)
        before, found, _ = talk.partition(answer.content)
        if found and before.rpartition(probes[-1].content)[2].rstrip() == ending.rstrip():
            return
        raise UserError(
            "the tokenizer's chat template does not end the prompt where an answer begins "
            f"(add_generation_prompt); {PLAIN}"
        )

    def _apply(self, talks: Iterable[Turns], generation: bool = True) -> list[str]:
        assert self._template is not None
        values = {**self._tokenizer.special_tokens_map, **self._options}
        template = ChatTemplate(self._template, values)
        try:
            return render(RenderChats(), template, [Talk(each, generation) for each in talks])
        except Refused as error:  # Whatever a template runs into is the template's mistake.
            raise UserError(
                f"the tokenizer's chat template refuses the prompt ({one_line(error)}); mend "
                "data.system_prompt and data.chat_template_options, or set data.chat=false"
            ) from error

    def _encode(self, text: str, add_special_tokens: bool = False, **how: Any) -> list[int]:
        ids = self._tokenizer(text, add_special_tokens=add_special_tokens, **how).input_ids
        return cast(list[int], ids)


def _turns(messages: Iterable[Message], parts: bool) -> Turns:
    return [
        {"role": role, "content": [{"type": "text", "text": text}] if parts else text}
        for role, text in messages
    ]


class PromptTemplate:
    """The prompt of a problem, as the data settings and the tokenizer's chat template shape it.

    Raises UserError for settings that cannot be rendered with this tokenizer.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, data: DataSettings) -> None:
        self._template = data.prompt_template
        self._user = TextTemplate(data.prompt_template, "data.prompt_template", ["problem"])
        self.format = ChatFormat(tokenizer, data, data.chat_template_options)

    @property
    def version(self) -> str:
        """16 hex digits of the SHA-256 of all that shapes the prompt beside the vocabulary."""
        return version_of({"prompt_template": self._template, **self.format.settings})

    @property
    def date(self) -> str | None:
        """The day that the chat template writes into prompts; None where it writes none."""
        return self.format.date

    def user_text(self, problem: str) -> str:
        """What the user says, without the frame of the chat template."""
        return self.user_texts([problem])[0]

    def user_texts(self, problems: Sequence[str]) -> list[str]:
        """`user_text` of each problem."""
        return self._user.render([{"problem": problem} for problem in problems])

    def render(self, problem: str, earlier: Earlier = ()) -> list[int]:
        """Token ids of the prompt, ready to be continued by the model's answer."""
        return self.render_all([(problem, earlier)])[0]

    def render_all(self, problems: Sequence[Asked]) -> list[list[int]]:
        """`render` of each problem after what was said before."""
        return self.format.all_ids(self._asked(problems))

    def lengths(self, problems: Sequence[Asked], most: int | None = None) -> list[int]:
        """How many token ids the prompt of each problem, after what was said before, has;
        `most + 1` where it is surely longer than `most`."""
        return self.format.lengths(self._asked(problems), most)

    def _asked(self, problems: Sequence[Asked]) -> list[Asked]:
        users = self.user_texts([problem for problem, _ in problems])
        return [(user, earlier) for user, (_, earlier) in zip(users, problems, strict=True)]

    def text(self, problem: str, earlier: Earlier = ()) -> str:
        """The prompt for people: what `render` turns into token ids."""
        return self.format.text(self.user_text(problem), earlier)


def version_of(shape: dict[str, Any]) -> str:
    """16 hex digits of the SHA-256 of what shapes a prompt."""
    text = json.dumps(shape, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
