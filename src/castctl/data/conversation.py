"""The messages of a conversation that stand before the problem."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from castctl.errors import UserError
from castctl.recipe.recipe import DataSettings


class Message(NamedTuple):
    role: str
    """`system`, `user` or `assistant`."""
    content: str


Earlier = tuple[Message, ...]
"""What was said before the problem, in order; nothing where the problem stands alone."""


def earlier_in(cell: Iterable[Mapping[str, str]] | None) -> Earlier:
    """A cell of the column `earlier`."""
    return tuple(Message(turn["role"], turn["content"]) for turn in cell or ())


def conversation(user: str, earlier: Earlier, system_prompt: str | None) -> list[Message]:
    """What is said up to the problem, in `user`; a `system_prompt` takes the place of the data's
    own system messages."""
    messages = [*earlier, Message("user", user)]
    if system_prompt is None:
        return messages
    own = Message("system", system_prompt)
    return [own, *(message for message in messages if message.role != "system")]


def require_chat(data: DataSettings) -> None:
    """Raise UserError for a system prompt where there is no chat."""
    if not data.chat and data.system_prompt is not None:
        raise UserError("data.system_prompt needs the chat template; set data.chat=true")


def require_alone(earlier: Earlier) -> None:
    """Raise UserError for messages before a problem where there is no chat."""
    if earlier:
        raise UserError(
            "the data has messages before its problems, which need the chat template; set "
            "data.chat=true, or take them out of the data"
        )
