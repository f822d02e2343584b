"""From characters of a completion back to the tokens that were sampled."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, cast

from tokenizers.decoders import DecodeStream

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_BOX = re.compile(r"\\(?:boxed|fbox)\s*\{")


def token_span(
    tokenizer: PreTrainedTokenizerFast, token_ids: Sequence[int], start: int, end: int
) -> tuple[int, int] | None:
    """The half-open span of the tokens that overlap characters `start` to `end`.

    Characters count in `tokenizer.decode(token_ids, skip_special_tokens=True)`. The ids
    are decoded one by one and never re-tokenised; tokens that make up a character
    together are taken together. None for an empty span, and where the tokens' own texts
    do not add up to the decoded text, as after the clean-up of spaces.
    """
    if start >= end:
        return None
    first_token = None
    for piece in _pieces(tokenizer, token_ids, _text(tokenizer, token_ids)):
        if first_token is None and piece.end > start:
            first_token = piece.first_token
        if first_token is not None and piece.end >= end:
            return first_token, piece.end_token
    return None


def last_begins(tokenizer: PreTrainedTokenizerFast, token_ids: Sequence[int], share: float) -> int:
    """The character with which the last `share` of the tokens begins.

    What begins there or later begins within them: a token i of T is, where T - i <= share * T.
    """
    kept = math.floor(round(share * len(token_ids), 6))  # 0.07 of 100 is 7
    before = _text(tokenizer, token_ids[: len(token_ids) - kept])
    return len(before.rstrip("\ufffd"))  # the part of a character that a later token completes


@dataclass(frozen=True)
class AnswerSpan:
    """Where a completion reasons and where it answers, in tokens, half-open.

    0 <= `reasoning_end` <= `answer_start` < `answer_end`; the reasoning starts at 0.
    """

    reasoning_end: int
    answer_start: int
    answer_end: int


def answer_parts(
    tokenizer: PreTrainedTokenizerFast,
    token_ids: Sequence[int],
    answer_start: int | None,
    answer_end: int | None,
    conclude: str | None = None,
) -> AnswerSpan | None:
    """The reasoning that leads to the answer in tokens `answer_start` to `answer_end`.

    It ends where the last `conclude` before the answer begins; without one, at the box that
    the answer stands in; without a box, at the answer. A token across that border is no
    reasoning. None without an answer, and where the tokens' own texts do not add up to the
    decoded text before it.
    """
    if answer_start is None or answer_end is None:
        return None
    if not 0 <= answer_start < answer_end <= len(token_ids):
        return None
    text = _text(tokenizer, token_ids)
    pieces = list(_pieces(tokenizer, token_ids, text))
    answer = next((piece for piece in pieces if piece.end_token > answer_start), None)
    if answer is None:
        return None
    border = opened = answer.start
    for box in _BOX.finditer(text, 0, answer.end):
        # The answer's first token may hold the box's brace too.
        border, opened = box.start(), max(box.end(), answer.start)
    phrase = text.rfind(conclude, 0, opened) if conclude else -1
    if phrase >= 0:
        border = phrase
    reasoning_end = next(piece.first_token for piece in pieces if piece.end > border)
    return AnswerSpan(reasoning_end, answer_start, answer_end)


class _Piece(NamedTuple):
    """Tokens that make up whole characters together, and those characters; both half-open."""

    first_token: int
    end_token: int
    start: int
    end: int


def _text(tokenizer: PreTrainedTokenizerFast, token_ids: Sequence[int]) -> str:
    return cast(str, tokenizer.decode(list(token_ids), skip_special_tokens=True))


def _pieces(
    tokenizer: PreTrainedTokenizerFast, token_ids: Sequence[int], text: str
) -> Iterator[_Piece]:
    """The tokens' pieces of the text, special tokens left out, as far as they add up to it."""
    backend = tokenizer.backend_tokenizer
    special = {id for id, token in backend.get_added_tokens_decoder().items() if token.special}
    stream = DecodeStream(skip_special_tokens=True)
    first_token = None
    position = 0
    for index, token_id in enumerate(token_ids):
        if token_id in special:
            continue
        if first_token is None:
            first_token = index
        piece = stream.step(backend, int(token_id))
        if not piece:  # the character is not complete yet
            continue
        if not text.startswith(piece, position):
            return
        yield _Piece(first_token, index + 1, position, position + len(piece))
        position += len(piece)
        first_token = None
