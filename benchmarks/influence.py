"""OAR's influence scores: OAR-P against a plain forward pass per token, OAR-G against scoring."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import measure
import numpy as np
import random_qwen3
import torch
from numpy.typing import NDArray

from castctl.models import attention
from castctl.models.language_model import LanguageModel
from castctl.models.perturbation import perturbation_scores
from castctl.models.sensitivity import gradient_scores
from castctl.verify.spans import AnswerSpan

PAD = 0
ANSWER = 4
"""Tokens of an answer, which a brace and a stop token follow; its box and brace take three."""
N = 8
TOLERANCE = 1e-4

Rows = list[NDArray[np.int32]]


def main() -> None:
    parser = measure.options(__doc__, repeats=5)
    parser.add_argument("--prompt", type=int, default=100, help="tokens")
    parser.add_argument("--tokens", type=int, nargs="+", default=[128, 256], help="of a completion")
    parser.add_argument("--vocabulary", type=int, default=4096)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--layers", type=int, default=4)
    options = measure.parse(parser)
    if options.quick:
        options.prompt, options.tokens, options.hidden, options.vocabulary = 10, [16, 32], 64, 128

    plain = random_qwen3.make_model(options.vocabulary, options.hidden, layers=options.layers)
    twin = copy.deepcopy(plain)
    twin.set_attn_implementation(attention.NAME)
    model = LanguageModel(twin, None, torch.float32)
    rng = np.random.default_rng(0)
    cases = []
    for tokens in options.tokens:
        prompt, *completions = (
            rng.integers(1, options.vocabulary, length).astype(np.int32)
            for length in (options.prompt, *[tokens] * N)
        )
        span = AnswerSpan(tokens - ANSWER - 5, tokens - ANSWER - 2, tokens - 2)
        works = {
            "shared": partial(perturbations, model, prompt, completions[0], span),
            "plain": partial(plain_perturbations, plain, prompt, completions[0], span),
            "gradient": partial(gradients, model, prompt, completions, span),
            "scoring": partial(logprobs, model, prompt, completions),
        }
        difference = float(np.abs(works["shared"]() - works["plain"]()).max())
        if not difference < TOLERANCE:
            raise SystemExit(f"shared and plain perturbations differ by {difference}")
        seconds = measure.interleaved(
            {name: measure.timed(work) for name, work in works.items()}, options.repeats
        )
        cases.append(
            {
                "completion": tokens,
                "perturbed_tokens": span.reasoning_end,
                "plain_over_perturbation": measure.ratio(seconds["plain"], seconds["shared"]),
                "gradient_over_scoring": measure.ratio(seconds["gradient"], seconds["scoring"]),
                "seconds": {name: measure.median(spent) for name, spent in seconds.items()},
                "largest_difference": difference,
            }
        )
    measure.report(
        "influence",
        options.repeats,
        prompt=options.prompt,
        n=N,
        vocabulary=options.vocabulary,
        hidden=options.hidden,
        layers=options.layers,
        cases=cases,
    )


def perturbations(
    model: LanguageModel, prompt: NDArray, completion: NDArray, span: AnswerSpan
) -> NDArray[np.float32]:
    """OAR-P of one completion: what precedes a perturbed token is shared."""
    scores = perturbation_scores(
        model,
        [prompt],
        [completion],
        [span],
        score="last",
        pad_id=PAD,
        temperature=1.0,
        microbatch_tokens=4096,
        chunk_tokens=256,
    )
    return scores[: span.reasoning_end]


def plain_perturbations(
    model: Any, prompt: NDArray, completion: NDArray, span: AnswerSpan
) -> NDArray[np.float32]:
    """The same by a forward pass over the row for each token, its logits at one position."""
    row = torch.from_numpy(np.concatenate([prompt, completion[: span.answer_end - 1]]))
    rows = [row, *row.repeat(span.reasoning_end, 1)]
    for position, perturbed in enumerate(rows[1:]):
        perturbed[len(prompt) + position] = PAD
    with torch.no_grad():
        clean, *others = (
            model(input_ids=ids[None].long(), use_cache=False, logits_to_keep=1)
            .logits[0, 0]
            .log_softmax(-1)
            for ids in rows
        )
    return np.array([float((clean.exp() * (clean - other)).sum()) for other in others])


def gradients(model: LanguageModel, prompt: NDArray, completions: Rows, span: AnswerSpan) -> None:
    """OAR-G of a group."""
    gradient_scores(
        model,
        [prompt] * N,
        completions,
        [span] * N,
        range(N),
        score="last",
        noise_std=1e-3,
        temperature=1.0,
        microbatch_tokens=4096,
        chunk_tokens=256,
    )


def logprobs(model: LanguageModel, prompt: NDArray, completions: Rows) -> None:
    """A scoring pass over the same group."""
    model.score(
        [prompt] * N,
        completions,
        1.0,
        microbatch_tokens=4096,
        chunk_tokens=256,
        with_entropies=False,
    )


if __name__ == "__main__":
    main()
