"""What ends a completion: tokens, and texts, whatever tokens spell them."""

from __future__ import annotations

import bisect
import logging
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from castctl.errors import UserError

if TYPE_CHECKING:
    from castctl.engines import Completion
    from castctl.models.language_model import LanguageModel

log = logging.getLogger(__name__)

BROKEN = "\ufffd"
"""What decoding writes for bytes that are no character, or not yet."""

MOST_WINDOWS = 8
"""A window this many times its usual length is halved, whatever its text."""


def stop_token_ids(model: LanguageModel) -> list[int]:
    """Tokens that end a completion: the generation config's and the tokenizer's."""
    config = model.model.generation_config
    wanted = getattr(config, "eos_token_id", None)
    ids = set(wanted if isinstance(wanted, list) else [wanted])
    ids.add(getattr(model.tokenizer, "eos_token_id", None))
    found = sorted(i for i in ids if i is not None)
    if not found:
        log.warning(
            "neither the model's generation_config.json nor its tokenizer names a token that "
            "ends a text: completions end at max_tokens, or at a text of sampling.stop"
        )
    return found


class StopSearch:
    """Follows rows of tokens as they grow, and says of each when its text holds a stop.

    A row is decoded from a recent token on, which moves along where that changes no text.
    """

    def __init__(self, tokenizer: Any, stops: Sequence[str], rows: int) -> None:
        self._tokenizer = tokenizer
        self._stops = stops
        self._longest = max(map(len, stops), default=0)
        # A byte is the least that a token spells; a few more make whole characters likely.
        self._window = 2 * max((len(stop.encode()) for stop in stops), default=0) + 8
        self._starts = np.zeros(rows, np.int64)

    def ends(self, row: int, ids: NDArray[np.int32]) -> bool:
        """Whether a row's tokens, one more than when last asked, now spell a stop."""
        start = self._starts[row]
        text = spelled(self._tokenizer, ids[start:])
        if any(stop in text for stop in self._stops):
            return True
        if len(ids) - start > self._window:
            middle = (start + len(ids)) // 2
            tail = spelled(self._tokenizer, ids[middle:])
            # All that a stop may have begun with stays, in characters that no byte will change.
            enough = len(tail) - tail.count(BROKEN) > self._longest
            same = enough and text.endswith(tail)
            if same or len(ids) - start > MOST_WINDOWS * self._window:
                self._starts[row] = middle
        return False


def first_stop(tokenizer: Any, ids: NDArray[np.int32], stops: Sequence[str]) -> int | None:
    """How many tokens first spell a stop; None where they spell none."""

    def spells(count: int) -> bool:
        text = spelled(tokenizer, ids[:count])
        return any(stop in text for stop in stops)

    if not stops or not spells(len(ids)):
        return None
    return 1 + bisect.bisect_left(range(1, len(ids) + 1), True, key=spells)


def check_stops(completions: Iterable[Completion], stops: Sequence[str], tokenizer: Any) -> None:
    """Raise `UserError` where an engine went on after a stop, or does not say that it stopped."""
    if not stops:
        return
    for completion in completions:
        ids = completion.token_ids
        kept = ids[:-1] if completion.finish_reason == "stop" else ids
        text = spelled(tokenizer, kept)
        for stop in stops:
            if stop in text:
                raise UserError(
                    f"the engine went on after {stop!r} of sampling.stop; no such completion is "
                    "kept: choose another engine.kind, or leave the stop out"
                )


def spelled(tokenizer: Any, ids: NDArray[np.int32]) -> str:
    """The text of tokens, special ones too, with nothing tidied."""
    return tokenizer.decode(
        ids.tolist(), skip_special_tokens=False, clean_up_tokenization_spaces=False
    )
