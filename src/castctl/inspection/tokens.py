"""The texts of single tokens, by the tokenizer of a run."""

from __future__ import annotations

import functools
import logging
import re
from collections.abc import Sequence
from typing import Any

from castctl.errors import UserError
from castctl.runs.run import Run

log = logging.getLogger(__name__)


def run_tokenizer(run: Run | None, trust_remote_code: bool = False) -> Any | None:
    """The tokenizer of a run's newest checkpoint, or of its model; None, with a warning, where
    none is on this machine or it is code that nobody has said to run. Nothing is fetched or made.
    A run of a model at a server has no tokens, and none.
    """
    if run is None or "endpoint" in run.manifest:
        return None
    if trust_remote_code:
        model = run.recipe.model.model_copy(update={"trust_remote_code": True}).with_trust(True)
        run = Run(run.path, run.recipe.model_copy(update={"model": model}))
    try:
        return load_run_tokenizer(run)
    except UserError as error:
        log.warning("token ids are shown in place of texts: %s", error)
        return None


def load_run_tokenizer(run: Run) -> Any:
    """The tokenizer of a run's newest checkpoint, or of its model; `UserError` where none is on
    this machine or it is code that nobody has said to run."""
    from castctl.models.loading import find_model, load_tokenizer

    settings = run.recipe.model
    saved = run.checkpoints()
    folder = run.checkpoint(saved[-1]) if saved else None
    if folder is None or not (folder / "config.json").is_file():  # an adapter's has no tokenizer
        folder = find_model(settings.path, settings.revision)
    if folder is None:
        raise UserError(f"model {settings.path} is not on this machine")
    return load_tokenizer(folder, settings)


def prompt_ending(run: Run | None, tokenizer: Any | None) -> str | None:
    """What follows the problem in a run's prompts; None where nobody knows."""
    if run is None or tokenizer is None:
        return None
    from castctl.data.templates import PromptTemplate

    try:
        return PromptTemplate(tokenizer, run.recipe.data).format.ending
    except UserError:  # a run whose prompts were made with another tokenizer
        return None


class TokenTexts:
    """Texts of ids, decoded one by one; None for every id where there is no tokenizer."""

    def __init__(self, tokenizer: Any | None) -> None:
        self._tokenizer = tokenizer
        self.text = functools.lru_cache(1 << 16)(self._text)

    def together(self, ids: Sequence[int]) -> str | None:
        """What the ids decode to in one go, special tokens included."""
        if self._tokenizer is None:
            return None
        return self._tokenizer.decode(list(ids), skip_special_tokens=False)

    def _text(self, id: int) -> str | None:
        """One token alone; bytes that are no whole character as escapes such as \\xe2."""
        if self._tokenizer is None:
            return None
        raw = self._tokenizer.convert_ids_to_tokens(id) if id >= 0 else None
        if raw is None:
            return f"<no token {id}>"
        if byte := re.fullmatch(r"<0x([0-9A-Fa-f]{2})>", raw):
            return _characters(bytes([int(byte[1], 16)]))
        text = self._tokenizer.decode([id], skip_special_tokens=False)
        if "\N{REPLACEMENT CHARACTER}" in text:
            table = _byte_of_character()
            if all(character in table for character in raw):
                return _characters(bytes(table[character] for character in raw))
        if raw.startswith("\N{LOWER ONE EIGHTH BLOCK}") and not text.startswith(" "):
            return f" {text}"  # SentencePiece decoders drop the space of a first token
        return text


def _characters(raw: bytes) -> str:
    return raw.decode("utf-8", "backslashreplace")


@functools.cache
def _byte_of_character() -> dict[str, int]:
    """The alphabet in which byte-level vocabularies write bytes."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    return {character: byte for byte, character in bytes_to_unicode().items()}
