"""The tokens and contexts that carry most of a cell's gap."""

from __future__ import annotations

from typing import Any

import numpy as np

from castctl.diagnosis.pool import CELLS, Pool
from castctl.diagnosis.spelled import surroundings
from castctl.inspection.tokens import TokenTexts
from castctl.ragged import sums

MOST = 12
"""Tokens of the vocabulary, and places, told of each cell."""


def carrying_tokens(pool: Pool, texts: TokenTexts) -> dict[str, list[dict[str, Any]]]:
    """For each cell the tokens of the vocabulary with the largest sum of |g|: `id`, `text` (None
    without a tokenizer), `count` in the cell, `mass_share` of the cell's sum, `mean` gap in nats,
    and `share` of all its occurrences that fall in the cell."""
    cell_N = pool.cell_N()
    known, place_N = np.unique(pool.ids_N, return_inverse=True)  # ids made elsewhere may be any
    everywhere = np.bincount(place_N, minlength=len(known))
    found = {}
    for number, name in enumerate(CELLS):
        inside = cell_N == number
        places, gap = place_N[inside], pool.gap_N[inside].astype(np.float64)
        count = np.bincount(places, minlength=len(known))
        total = sums(gap, places, len(known))
        mass = np.abs(total)
        first = np.argsort(-mass, kind="stable")[:MOST]
        found[name] = [
            {
                "id": int(known[place]),
                "text": texts.text(int(known[place])),
                "count": int(count[place]),
                "mass_share": float(mass[place] / mass.sum()),
                "mean": float(total[place] / count[place]),
                "share": float(count[place] / everywhere[place]),
            }
            for place in first
            if count[place]
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
        # Some of the largest, of many prompts as a rule, without sorting millions.
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
