"""Render a problem to the prompt's token ids."""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from jinja2 import StrictUndefined, TemplateError, meta
from jinja2.sandbox import ImmutableSandboxedEnvironment

from castctl.errors import UserError, one_line
from castctl.recipe import DataSettings

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_ENVIRONMENT = ImmutableSandboxedEnvironment(undefined=StrictUndefined, keep_trailing_newline=True)


class TextTemplate:
    """A Jinja template of the user's, over named values that stay inert text.

    Raises UserError, naming the setting, for a template that does not parse, that uses
    other values than `values`, or that leaves the problem out.
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
        if "problem" not in used:
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


class PromptTemplate:
    """The prompt of a problem, as the data settings and the tokenizer's chat template shape it.

    Raises UserError for settings that cannot be rendered with this tokenizer.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, data: DataSettings) -> None:
        self._tokenizer = tokenizer
        self._data = data
        self._user = TextTemplate(data.prompt_template, "data.prompt_template", ["problem"])
        if not data.chat and data.system_prompt is not None:
            raise UserError("data.system_prompt needs the chat template; set data.chat=true")
        if data.chat and not tokenizer.chat_template:
            raise UserError("the tokenizer has no chat template; set data.chat=false")
        reserved = {"messages", *inspect.signature(tokenizer.apply_chat_template).parameters}
        if clash := sorted(reserved & data.chat_template_options.keys()):
            raise UserError(
                f"data.chat_template_options cannot set {', '.join(clash)}, which castctl sets "
                "itself; name only values that the chat template uses"
            )

    @property
    def version(self) -> str:
        """16 hex digits of the SHA-256 of all that shapes the prompt beside the vocabulary."""
        data = self._data
        shape = {
            "chat": data.chat,
            "prompt_template": data.prompt_template,
            "system_prompt": data.system_prompt,
            "chat_template_options": data.chat_template_options,
            "chat_template": self._tokenizer.chat_template if data.chat else None,
        }
        text = json.dumps(shape, sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def render(self, problem: str) -> list[int]:
        """Token ids of the prompt, ready to be continued by the model's answer."""
        user = self._user.render(problem=problem)
        if self._data.chat:
            return self._chat(user, tokenize=True, return_dict=False)
        return self._tokenizer(user, add_special_tokens=True).input_ids

    def text(self, problem: str) -> str:
        """The prompt for people: what `render` turns into token ids."""
        user = self._user.render(problem=problem)
        return self._chat(user, tokenize=False) if self._data.chat else user

    def _chat(self, user: str, **how: Any) -> Any:
        messages = [{"role": "user", "content": user}]
        if self._data.system_prompt is not None:
            messages.insert(0, {"role": "system", "content": self._data.system_prompt})
        try:
            return self._tokenizer.apply_chat_template(
                messages, add_generation_prompt=True, **how, **self._data.chat_template_options
            )
        except TemplateError as error:
            raise UserError(
                f"the tokenizer's chat template refuses the prompt ({one_line(error)}); mend "
                "data.system_prompt and data.chat_template_options, or set data.chat=false"
            ) from error
