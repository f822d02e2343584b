"""The tokens and contexts that carry most of a cell's gap."""

from __future__ import annotations

from typing import Any

import numpy as np

from castctl.diagnose.pool import CELLS, Pool
from castctl.diagnose.spelled import surroundings
from castctl.inspection.tokens import TokenTexts
from castctl.ragged import sums

MOST = 12
"""Tokens of the vocabulary, and places, told of each cell."""


def carrying_tokens(pool: Pool, texts: TokenTexts) -> dict[str, list[dict[str, Any]]]:
    """For each cell the tokens of the vocabulary with the largest sum of |g|: `id`, `text` (None
    without a tokenizer), `count` in the cell, `mass_share` of the cell's sum, `mean` gap in nats,
    and `share` of all its occurrences that fall in the cell."""
    cell_N = pool.cell_N()
    vocabulary = int(pool.ids_N.max(initial=0)) + 1
    everywhere = np.bincount(pool.ids_N, minlength=vocabulary)
    found = {}
    for number, name in enumerate(CELLS):
        inside = cell_N == number
        ids, gap = pool.ids_N[inside], pool.gap_N[inside].astype(np.float64)
        count = np.bincount(ids, minlength=vocabulary)
        total = sums(gap, ids, vocabulary)
        mass = np.abs(total)
        first = np.argsort(-mass, kind="stable")[:MOST]
        found[name] = [
            {
                "id": int(id),
                "text": texts.text(int(id)),
                "count": int(count[id]),
                "mass_share": float(mass[id] / mass.sum()),
                "mean": float(total[id] / count[id]),
                "share": float(count[id] / everywhere[id]),
            }
            for id in first
            if count[id]
        ]
    return found


def carrying_contexts(pool: Pool, texts: TokenTexts) -> dict[str, list[dict[str, Any]]]:
    """For each cell the places with the largest |g|, at most one of a prompt: `step`, `prompt_id`,
    `sample`, `gap`, and what `surroundings` tells."""
    cell_N = pool.cell_N()
    row_N = pool.row_N
    found = {}
    for number, name in enumerate(CELLS):
        places = np.flatnonzero(cell_N == number)
        size = np.abs(pool.gap_N[places])
        # Enough of the largest that twelve prompts are among them, without sorting millions.
        some = min(len(places), MOST * 64)
        largest = places[np.argpartition(-size, some - 1)[:some]] if some else places
        largest = largest[np.lexsort((largest, -np.abs(pool.gap_N[largest])))]
        prompts = pool.prompt_R[row_N[largest]]
        first = np.sort(np.unique(prompts, return_index=True)[1])[:MOST]
        found[name] = [_context(pool, texts, int(place), int(row_N[place]))
                       for place in largest[first]]  # fmt: skip
    return found


def _context(pool: Pool, texts: TokenTexts, place: int, row: int) -> dict[str, Any]:
    start, stop = int(pool.offsets[row]), int(pool.offsets[row + 1])

    return {
        "step": int(pool.step_R[row]),
        "prompt_id": pool.prompt_ids[row],
        "sample": int(pool.samples_R[row]),
        "gap": float(pool.gap_N[place]),
        **surroundings(pool.ids_N, start, stop, place, texts),
    }
