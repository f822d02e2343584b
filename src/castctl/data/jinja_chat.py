"""A tokenizer's chat template, as the process that renders templates runs it."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.util import find_spec, module_from_spec
from typing import Any, NamedTuple


class Talk(NamedTuple):
    """A conversation, and whether its prompt goes on to where the answer begins."""

    turns: list[dict[str, Any]]
    generation: bool


class ChatTemplate(NamedTuple):
    """A template, and the values that it may use beside the conversation."""

    text: str
    values: dict[str, Any]


class RenderChats:
    """What `apply_chat_template` makes of each conversation.

    Imports transformers where it arrives, before the clock of the call starts.
    """

    def __reduce__(self) -> tuple[Any, ...]:
        return _arrived, ()

    def __call__(self, template: ChatTemplate, talks: Sequence[Talk]) -> list[str]:
        from transformers.utils.chat_template_utils import render_jinja_template

        return [
            render_jinja_template(
                conversations=[talk.turns],
                chat_template=template.text,
                add_generation_prompt=talk.generation,
                **template.values,
            )[0][0]
            for talk in talks
        ]


def _arrived() -> RenderChats:
    load_renderer()
    return RenderChats()


def load_renderer() -> None:
    """Import what of transformers renders, without the rest: a quarter of the time, in a process
    that needs no more. All of it, in a release where that does not work."""
    if "transformers" not in sys.modules:
        for package in ("transformers", "transformers.utils"):
            spec = find_spec(package)
            assert spec is not None
            sys.modules[package] = module_from_spec(spec)  # empty, but its modules are found
        try:
            import transformers.utils.chat_template_utils
        except (ImportError, AttributeError):
            for name in [each for each in sys.modules if each.split(".")[0] == "transformers"]:
                del sys.modules[name]
    import transformers.utils.chat_template_utils  # noqa: F401
