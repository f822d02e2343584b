"""Which tokens a diagnosis speaks of: counts by token id, and single ones in their context."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from castctl.diagnosis.data import StepData
from castctl.inspection.tokens import TokenTexts
from castctl.ragged import sums

BEFORE, AFTER = 12, 6
"""Tokens shown on either side of a token in its context."""

ENOUGH = 64
"""How many times the wanted number of tokens is looked at in a step to find different prompts."""

Flags = NDArray[np.bool_]


class TokenTally:
    """Named sums by token id, over all steps that are added."""

    def __init__(self, *names: str) -> None:
        self._names = names
        self._places: dict[int, int] = {}
        self._sums = np.zeros((0, len(names)))

    def add(self, ids_V: NDArray[np.int32], **values_V: NDArray) -> None:
        """Add values (V) to the sums of their ids; one array for each name."""
        encoded = pa.array(ids_V).dictionary_encode()
        local = encoded.indices.to_numpy()
        ids = encoded.dictionary.to_pylist()
        places = [self._places.setdefault(id, len(self._places)) for id in ids]
        new = len(self._places) - len(self._sums)
        self._sums = np.pad(self._sums, ((0, new), (0, 0)))
        for column, name in enumerate(self._names):
            self._sums[places, column] += sums(values_V[name], local, len(ids))

    def top(self, by: str, count: int, texts: TokenTexts) -> list[dict[str, Any]]:
        """The ids with the largest sums under a name, above 0: id, text and all sums."""
        column = self._sums[:, self._names.index(by)]
        ids = list(self._places)
        found = [n for n in np.argsort(-column, kind="stable")[:count] if column[n] > 0]
        return [
            {"id": ids[n], "text": texts.text(ids[n])}
            | dict(zip(self._names, self._sums[n].tolist(), strict=True))
            for n in found
        ]


class Extremes:
    """The tokens of all steps for which a value is largest, one a prompt, each in its context."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._found: dict[str, tuple[float, dict[str, Any]]] = {}

    def add(
        self, data: StepData, tokens: NDArray[np.integer], values: NDArray, texts: TokenTexts,
        **told_N: NDArray,
    ) -> None:  # fmt: skip
        """Consider `tokens` (places in the step, V) with these values (V); of the chosen each of
        `told_N` is told."""
        for place in _largest(values, self._count * ENOUGH):
            value, token = float(values[place]), int(tokens[place])
            row = int(np.searchsorted(data.offsets, token, side="right")) - 1
            prompt = data.prompt_ids[row]
            if prompt in self._found and self._found[prompt][0] >= value:
                continue
            if len(self._found) >= self._count and value <= min(v for v, _ in self._found.values()):
                break
            told = {name: float(each[token]) for name, each in told_N.items()}
            self._found[prompt] = value, excerpt(data, row, token, texts) | told
            if len(self._found) > self._count:
                del self._found[min(self._found, key=lambda name: self._found[name][0])]

    def told(self) -> list[dict[str, Any]]:
        """Excerpts, the largest value first."""
        return [each for _, each in sorted(self._found.values(), key=lambda found: -found[0])]


def _largest(values: NDArray, count: int) -> NDArray[np.int64]:
    """Places of the `count` largest values, the largest first, without sorting millions."""
    some = (
        np.argpartition(-values, count)[:count] if len(values) > count else np.arange(len(values))
    )
    return some[np.lexsort((some, -values[some]))]


def excerpt(data: StepData, row: int, token: int, texts: TokenTexts) -> dict[str, Any]:
    """A token (its place in the step) with what stands before and after it in its completion."""
    start, end = int(data.offsets[row]), int(data.offsets[row + 1])
    return {
        "step": data.step,
        "prompt_id": data.prompt_ids[row],
        "sample": int(data.samples_R[row]),
        **surroundings(data.ids_N, start, end, token, texts),
    }


def surroundings(
    ids_N: NDArray[np.int32], start: int, end: int, token: int, texts: TokenTexts
) -> dict[str, Any]:
    """A token of the completion ids_N[start:end]: its place from 0, id and text, and the texts
    about it."""
    id = int(ids_N[token])
    return {
        "position": token - start,
        "id": id,
        "before": _text(ids_N[max(start, token - BEFORE) : token], texts),
        "token": texts.text(id),
        "after": _text(ids_N[token + 1 : min(end, token + 1 + AFTER)], texts),
    }


def _text(ids: NDArray[np.int32], texts: TokenTexts) -> str:
    """A stretch of tokens as text; as ids where there is no tokenizer."""
    together = texts.together(ids.tolist())
    return " ".join(map(str, ids)) if together is None else together
