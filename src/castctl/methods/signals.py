"""What the scoring models said of a step's tokens, as the mathematics reads it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class TokenSignals:
    """Signals of `N` flat tokens; None = not asked for.

    `offsets` (R + 1) cuts the tokens into completions. `gap_N` is l_T - l_old and `drift_N`
    l_old - l_ref, in nats; `perturb_N` and `grad_N` are OAR's scores of a token's influence on
    the answer; `logprobs_N` and `entropies_N` are the policy's, in nats. NaN where a token was not
    scored, or is not to be read. `draws_N` is a random number a token, for what is drawn.
    `taught_R` are the completions that have a teacher, None if all have.
    """

    offsets: NDArray[np.int64]
    gap_N: NDArray[np.float64] | None = None
    drift_N: NDArray[np.float64] | None = None
    perturb_N: NDArray[np.float64] | None = None
    grad_N: NDArray[np.float64] | None = None
    entropies_N: NDArray[np.float64] | None = None
    logprobs_N: NDArray[np.float64] | None = None
    draws_N: NDArray[np.uint64] | None = None
    taught_R: NDArray[np.bool_] | None = None
