"""The prompt of bilateral context conditioning: a problem with other attempts at it
(BICC, arXiv 2603.13134; template and order are ours)."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from castctl.data.conversation import Earlier
from castctl.data.templates import PromptTemplate, version_of
from castctl.errors import UserError
from castctl.methods.conditioning import Bilateral
from castctl.recipe.recipe import DataSettings

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

VERSION = 1
"""Raised whenever the words below change."""

HEADS = {
    True: "Here are attempts at this problem that reached a wrong answer:",
    False: "Here are attempts at this problem that reached the correct answer:",
}
"""By whether the completion that is read after them is correct."""


class BilateralTemplate:
    """The student's prompt followed by the opposite completions of its group.

    They fill at most `share` of what prompt and completion leave of the context: in sample order,
    whole while they fit, the last one cut at its end. Raises UserError for a context longer than
    the model's, `context_tokens`.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        data: DataSettings,
        settings: Bilateral,
        context_tokens: int,
    ) -> None:
        self._tokenizer: Any = tokenizer
        self._student = PromptTemplate(tokenizer, data)
        self._share = settings.share
        # The completions of one verdict have the same opposite.
        self._render = functools.lru_cache(64)(self._ids)
        self._context = settings.context_tokens or context_tokens
        if self._context > context_tokens:
            raise UserError(
                f"method.conditioning.context_tokens={self._context} passes the model's "
                f"{context_tokens} positions; lower it, or leave it out"
            )

    @property
    def version(self) -> str:
        """16 hex digits of the SHA-256 of all that shapes the prompt beside the vocabulary."""
        return version_of(
            {
                "student": self._student.version,
                "words": VERSION,
                "share": self._share,
                "context": self._context,
            }
        )

    def render(
        self,
        problem: str,
        prompt_ids: Sequence[int],
        completion_tokens: int,
        correct: bool,
        opposite: Sequence[str],
        earlier: Earlier = (),
    ) -> list[int]:
        """Token ids of the prompt; `prompt_ids` themselves where no opposite completion fits.

        `opposite` are the texts of the group's completions of the other verdict, in sample order.
        """
        render = functools.partial(self._render, earlier)
        budget = int(self._share * (self._context - len(prompt_ids) - completion_tokens))
        head = self._student.user_text(problem) + "\n\n" + HEADS[correct]
        openings = [f"\n\nAttempt {number}:\n" for number in range(1, len(opposite) + 1)]
        attempts = [a + b for a, b in zip(openings, opposite, strict=True)]
        if attempts and len(whole := render(head, *attempts)) - len(prompt_ids) <= budget:
            return list(whole)
        chosen: list[str] = []
        for opening, text in zip(openings, opposite, strict=True):
            ids = render(head, *chosen, opening + text)
            if len(ids) - len(prompt_ids) > budget:
                most = len(prompt_ids) + budget
                cut = self._cut(functools.partial(render, head, *chosen), opening, text, most)
                chosen += [] if cut is None else [opening + cut]
                break
            chosen.append(opening + text)
        return list(render(head, *chosen)) if chosen else list(prompt_ids)

    def _cut(
        self, render: Callable[[str], list[int]], opening: str, text: str, most: int
    ) -> str | None:
        """The longest beginning of `text`, by its tokens, with which the prompt has at most `most`
        tokens; None where not even one fits."""
        ids = self._tokenizer.encode(text, add_special_tokens=False)
        low, high = 0, len(ids)  # `low` tokens fit, `high` may not
        while low < high:
            middle = (low + high + 1) // 2
            piece = self._tokenizer.decode(ids[:middle])
            if len(render(opening + piece)) <= most:
                low = middle
            else:
                high = middle - 1
        return self._tokenizer.decode(ids[:low]) if low else None

    def _ids(self, earlier: Earlier, head: str, *attempts: str) -> list[int]:
        return self._student.format.ids(head + "".join(attempts), earlier)
