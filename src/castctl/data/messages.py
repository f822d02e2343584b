"""What a server is asked, which renders the prompt itself: messages, or a text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from castctl.data.conversation import Earlier, conversation, require_alone, require_chat
from castctl.data.templates import Asked, version_of
from castctl.data.text_template import TextTemplate
from castctl.recipe.recipe import DataSettings


class MessagesTemplate:
    """The user's text of a problem as a `PromptTemplate` makes it, in the fields of a request.

    The frame around it is the server's own. Raises UserError for settings that fit none.
    """

    date = None
    """Which day a chat template takes for today is the server's business."""

    def __init__(self, data: DataSettings) -> None:
        require_chat(data)
        self._data = data
        self._user = TextTemplate(data.prompt_template, "data.prompt_template", ["problem"])

    @property
    def version(self) -> str:
        """16 hex digits of the SHA-256 of all that shapes the question."""
        data = self._data
        return version_of(
            {
                "prompt_template": data.prompt_template,
                "chat": data.chat,
                "system_prompt": data.system_prompt,
                "chat_template_options": data.chat_template_options,
                "rendered_by": "server",
            }
        )

    def questions(self, problems: Sequence[Asked]) -> list[dict[str, Any]]:
        """For each problem after what was said before: `messages`, and `chat_template_kwargs` where
        there are any; with `data.chat` off the `prompt`."""
        users = self._user.render([{"problem": problem} for problem, _ in problems])
        return [
            self._question(user, earlier)
            for user, (_, earlier) in zip(users, problems, strict=True)
        ]

    def _question(self, user: str, earlier: Earlier) -> dict[str, Any]:
        data = self._data
        if not data.chat:
            require_alone(earlier)
            return {"prompt": user}
        messages = conversation(user, earlier, data.system_prompt)
        options = data.chat_template_options
        return {
            "messages": [message._asdict() for message in messages],
            **({"chat_template_kwargs": options} if options else {}),
        }
