"""Render a problem to the token ids of the student's prompt."""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, cast

from jinja2 import StrictUndefined, TemplateError, meta
from jinja2.sandbox import ImmutableSandboxedEnvironment

from castctl.errors import UserError, one_line
from castctl.recipe.recipe import DataSettings

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_ENVIRONMENT = ImmutableSandboxedEnvironment(undefined=StrictUndefined, keep_trailing_newline=True)


PROBE = "castctl asks"
"""Stands for the user's text where only its frame is asked for."""


class TextTemplate:
    """A Jinja template of the user's, over named values that stay inert text.

    `used` are the values it uses. Raises UserError, naming the setting, for a template that does
    not parse, that uses other values than `values`, or that leaves the problem out.
    """

    def __init__(self, text: str, setting: str, values: Iterable[str]) -> None:
        self.setting = setting
        try:
            used = meta.find_undeclared_variables(_ENVIRONMENT.parse(text))
            self._template = _ENVIRONMENT.from_string(text)
        except TemplateError as error:
            raise self._broken(error) from error
        values = set(values)
        if unknown := used - values - _ENVIRONMENT.globals.keys():
            raise UserError(
                f"{setting} uses {', '.join(sorted(unknown))}; "
                f"it can only use {', '.join(sorted(values))}"
            )
        self.used = frozenset(used)
        if not used & {"problem", "prompt"}:
            raise UserError(f"{setting} leaves the problem out; write {{{{ problem }}}} into it")

    def render(self, **values: str) -> str:
        try:
            return self._template.render(values)
        except Exception as error:  # Whatever a template runs into is the template's mistake.
            raise self._broken(error) from error

    def _broken(self, error: Exception) -> UserError:
        return UserError(
            f"{self.setting} is not a working Jinja template ({one_line(error)}); mend it"
        )


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
        if not data.chat and data.system_prompt is not None:
            raise UserError("data.system_prompt needs the chat template; set data.chat=true")
        if data.chat and not tokenizer.chat_template:
            raise UserError("the tokenizer has no chat template; set data.chat=false")
        reserved = {"messages", *inspect.signature(tokenizer.apply_chat_template).parameters}
        if clash := sorted(reserved & options.keys()):
            raise UserError(
                f"{setting} cannot set {', '.join(clash)}, which castctl sets "
                "itself; name only values that the chat template uses"
            )

    @property
    def settings(self) -> dict[str, Any]:
        """All of the frame that shapes a prompt, beside the vocabulary."""
        return {
            "chat": self._data.chat,
            "system_prompt": self._data.system_prompt,
            "chat_template_options": self._options,
            "chat_template": self._tokenizer.chat_template if self._data.chat else None,
        }

    @property
    def ending(self) -> str:
        """What follows the user's text."""
        return self.text(PROBE).rpartition(PROBE)[2]

    def ids(self, user: str) -> list[int]:
        """Token ids of a prompt, ready to be continued by the model's answer.

        Within a chat template the user's text is text alone: one that reads `<|im_end|>` does not
        end the message.
        """
        if not self._data.chat:
            return cast(list[int], self._tokenizer(user, add_special_tokens=True).input_ids)
        special = self._tokenizer.get_added_vocab()
        if not any(word in user for word in special):
            return cast(list[int], self._apply(user, tokenize=True, return_dict=False))
        before, _, after = self.text(PROBE).partition(PROBE)
        return [
            *self._tokenizer(before, add_special_tokens=False).input_ids,
            *self._tokenizer(user, add_special_tokens=False, split_special_tokens=True).input_ids,
            *self._tokenizer(after, add_special_tokens=False).input_ids,
        ]

    def text(self, user: str) -> str:
        """The prompt for people: what `ids` turns into token ids."""
        return cast(str, self._apply(user, tokenize=False)) if self._data.chat else user

    def _apply(self, user: str, **how: Any) -> Any:
        messages = [{"role": "user", "content": user}]
        if self._data.system_prompt is not None:
            messages.insert(0, {"role": "system", "content": self._data.system_prompt})
        try:
            return self._tokenizer.apply_chat_template(
                messages, add_generation_prompt=True, **how, **self._options
            )
        except TemplateError as error:
            raise UserError(
                f"the tokenizer's chat template refuses the prompt ({one_line(error)}); mend "
                "data.system_prompt and data.chat_template_options, or set data.chat=false"
            ) from error


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

    def user_text(self, problem: str) -> str:
        """What the user says, without the frame of the chat template."""
        return self._user.render(problem=problem)

    def render(self, problem: str) -> list[int]:
        """Token ids of the prompt, ready to be continued by the model's answer."""
        return self.format.ids(self.user_text(problem))

    def text(self, problem: str) -> str:
        """The prompt for people: what `render` turns into token ids."""
        return self.format.text(self.user_text(problem))


def version_of(shape: dict[str, Any]) -> str:
    """16 hex digits of the SHA-256 of what shapes a prompt."""
    text = json.dumps(shape, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
