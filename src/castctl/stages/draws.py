"""Random numbers of a step's tokens, which depend on no part."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from castctl.ragged import Ints


def token_draws(
    prompt_ids: Sequence[str],
    samples: Sequence[int],
    lengths_R: Ints,
    seed: int,
    step: int,
    purpose: str,
) -> NDArray[np.uint64]:
    """A random number for each token (N) of completions of these lengths (R), in their order.

    Those of a completion come from Philox with the first 8 bytes of the SHA-256 of
    `SEED/STEP/PROMPT_ID/SAMPLE/PURPOSE` as its key, so they can be made again from the shards.
    """
    drawn = [np.zeros(0, np.uint64)]
    for id, sample, length in zip(prompt_ids, samples, lengths_R.tolist(), strict=True):
        digest = hashlib.sha256(f"{seed}/{step}/{id}/{sample}/{purpose}".encode()).digest()
        key = int.from_bytes(digest[:8], "little")
        drawn.append(np.random.Philox(key=key).random_raw(length))
    return np.concatenate(drawn)
