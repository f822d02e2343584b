"""Log-probs of groups that share their prompt: castctl's packed rows against a padded batch."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import measure
import numpy as np
import random_qwen3
import torch
from numpy.typing import NDArray

from castctl.models import attention
from castctl.models.language_model import LanguageModel

N = 8
VOCABULARY = 1024
TOLERANCE = 1e-4

Rows = list[NDArray[np.int32]]


def main() -> None:
    parser = measure.options(__doc__, repeats=7)
    parser.add_argument("--prompt", type=int, nargs="+", default=[128, 512], help="tokens")
    parser.add_argument("--tokens", type=int, default=256, help="of the longest completion")
    parser.add_argument("--groups", type=int, default=2, help="of 8 completions")
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--layers", type=int, default=4)
    options = measure.parse(parser)
    if options.quick:
        options.prompt, options.tokens, options.hidden = [16, 32], 32, 64

    plain = random_qwen3.make_model(VOCABULARY, options.hidden, layers=options.layers)
    twin = copy.deepcopy(plain)
    twin.set_attn_implementation(attention.NAME)
    packed = LanguageModel(twin, None, torch.float32)
    rng = np.random.default_rng(0)
    cases = []
    for length in options.prompt:
        prompts, completions = make_rows(rng, options.groups, length, options.tokens)
        works = {
            "packed": partial(packed_logprobs, packed, prompts, completions),
            "padded": partial(padded_logprobs, plain, prompts, completions),
        }
        difference = check_equal(works)
        seconds = measure.interleaved(
            {name: measure.timed(work) for name, work in works.items()}, options.repeats
        )
        cases.append(
            {
                "prompt": length,
                "completion_tokens": sum(map(len, completions)),
                "packed_seconds": measure.median(seconds["packed"]),
                "padded_seconds": measure.median(seconds["padded"]),
                **measure.ratio(seconds["padded"], seconds["packed"]),
                "largest_difference": difference,
            }
        )
    measure.report(
        "packing",
        options.repeats,
        groups=options.groups,
        n=N,
        longest=options.tokens,
        hidden=options.hidden,
        layers=options.layers,
        cases=cases,
    )


def make_rows(
    rng: np.random.Generator, groups: int, prompt: int, longest: int
) -> tuple[Rows, Rows]:
    """Groups of completions of a quarter of the longest to the longest."""
    prompts, completions = [], []
    for _ in range(groups):
        shared = rng.integers(0, VOCABULARY, prompt).astype(np.int32)
        for length in rng.integers(longest // 4, longest + 1, N):
            prompts.append(shared)
            completions.append(rng.integers(0, VOCABULARY, length).astype(np.int32))
    return prompts, completions


def packed_logprobs(model: LanguageModel, prompts: Rows, completions: Rows) -> NDArray[np.float32]:
    """Every group in one row, each prompt once."""
    return model.score(prompts, completions, 1.0, microbatch_tokens=16384, chunk_tokens=256)[0]


def padded_logprobs(model: Any, prompts: Rows, completions: Rows) -> NDArray[np.float32]:
    """Group by group in one batch, padded on the right, where causal attention needs no mask.

    Logits are computed from the last prompt token on. Spares the entropies that `score` gives.
    """
    found = []
    for start in range(0, len(prompts), N):
        group = completions[start : start + N]
        prompt = len(prompts[start])
        longest = max(map(len, group))
        ids = np.zeros((N, prompt + longest), np.int64)
        for row, completion in enumerate(group):
            ids[row, :prompt] = prompts[start]
            ids[row, prompt : prompt + len(completion)] = completion
        tokens = torch.from_numpy(ids)
        with torch.no_grad():
            logits = model(input_ids=tokens[:, :-1], use_cache=False, logits_to_keep=longest).logits
            picked = torch.log_softmax(logits, -1).gather(2, tokens[:, prompt:, None])[..., 0]
        found += [picked[row, : len(completion)].numpy() for row, completion in enumerate(group)]
    return np.concatenate(found)


def check_equal(works: Mapping[str, Callable[[], NDArray[np.float32]]]) -> float:
    """The largest difference of the two forms' log-probs, in nats."""
    difference = float(np.abs(works["packed"]() - works["padded"]()).max())
    if not difference < TOLERANCE:
        raise SystemExit(f"packed and padded log-probs differ by {difference}")
    return difference


if __name__ == "__main__":
    main()
