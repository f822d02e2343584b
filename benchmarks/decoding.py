"""Tokens a second of castctl's decode loop against transformers' `generate`, on equal prompts."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from typing import Any

import measure
import numpy as np
import random_qwen3
import torch
from numpy.typing import NDArray

from castctl.data.prompts import load_prompts
from castctl.data.templates import PromptTemplate
from castctl.engines import Request
from castctl.engines.sampling import row_key
from castctl.engines.transformers_engine import TransformersEngine
from castctl.models import attention
from castctl.models.language_model import LanguageModel
from castctl.recipe.files import default_recipe_path
from castctl.recipe.reader import load_recipe
from castctl.recipe.recipe import SamplingSettings
from castctl.stages.policies import named_policy

Prompts = list[NDArray[np.int32]]

PAD, STOP = 0, 1
"""Of the random model, which has no tokenizer."""


def main() -> None:
    parser = measure.options(__doc__, repeats=5)
    parser.add_argument("--rows", type=int, nargs=2, default=[128, 32], help="of either model")
    parser.add_argument("-n", type=int, default=8, help="completions of a prompt")
    parser.add_argument("--tokens", type=int, nargs=2, default=[160, 64], help="longest completion")
    parser.add_argument("--vocabulary", type=int, default=random_qwen3.VOCABULARY)
    options = measure.parse(parser)
    if options.quick:
        options.rows, options.n, options.tokens, options.vocabulary = [8, 4], 2, [24, 8], 4096

    makers = (embedded_model, lambda prompts: random_model(prompts, options.vocabulary))
    cases = []
    for make, rows, tokens in zip(makers, options.rows, options.tokens, strict=True):
        model, prompts = make(rows // options.n)
        spent = measure.interleaved(
            {
                "castctl": own_loop(model, prompts, options.n, tokens),
                "generate": generate(model, prompts, options.n, tokens),
            },
            options.repeats,
        )
        cases.append(
            {
                "vocabulary": model.model.config.vocab_size,
                "rows": len(prompts) * options.n,
                "max_tokens": tokens,
                "castctl_tokens_per_second": 1 / measure.median(spent["castctl"]),
                "generate_tokens_per_second": 1 / measure.median(spent["generate"]),
                **measure.ratio(spent["generate"], spent["castctl"]),
            }
        )
    measure.report("decoding", options.repeats, n=options.n, cases=cases)


def embedded_model(count: int) -> tuple[LanguageModel, Prompts]:
    """The embedded model and prompts of its own task."""
    recipe = load_recipe(default_recipe_path())
    model = named_policy(recipe).load(recipe.model).model
    template = PromptTemplate(model.tokenizer, recipe.data)
    problems = load_prompts(recipe.data.model_copy(update={"limit": count})).table["problem"]
    return model, [np.array(template.render(p), np.int32) for p in problems.to_pylist()]


def random_model(count: int, vocabulary: int) -> tuple[LanguageModel, Prompts]:
    """A random model of a real vocabulary and random prompts of about a hundred tokens."""
    model = random_qwen3.make_model(vocabulary, eos_token_id=STOP, pad_token_id=PAD)
    model.set_attn_implementation(attention.NAME)
    rng = np.random.default_rng(0)
    lengths = rng.integers(64, 129, count)
    prompts = [rng.integers(2, vocabulary, length).astype(np.int32) for length in lengths]
    return LanguageModel(model, None, torch.float32), prompts


def own_loop(
    model: LanguageModel, prompts: Prompts, n: int, max_tokens: int
) -> Callable[[], float]:
    """Seconds a generated token of castctl's engine."""
    engine = TransformersEngine(model)
    requests = [
        Request(prompt, row_key(0, 0, str(number), sample))
        for number, prompt in enumerate(prompts)
        for sample in range(n)
    ]
    sampling = SamplingSettings(n=n, max_tokens=max_tokens, max_rows=len(requests))

    def run() -> float:
        began = time.perf_counter()
        ((_, completions),) = engine.generate({0: requests}, sampling, lambda count: None)
        return (time.perf_counter() - began) / sum(len(c.token_ids) for c in completions)

    return run


def generate(
    model: LanguageModel, prompts: Prompts, n: int, max_tokens: int
) -> Callable[[], float]:
    """Seconds a generated token, up to each row's stop token, of transformers."""
    plain = copy.deepcopy(model.model)
    plain.set_attn_implementation("sdpa")
    width = max(map(len, prompts))
    ids = torch.full((len(prompts), width), PAD)
    mask = torch.zeros((len(prompts), width), dtype=torch.long)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :] = torch.from_numpy(prompt.astype(np.int64))
        mask[row, width - len(prompt) :] = 1
    stops = TransformersEngine(model).stop_ids
    settings: dict[str, Any] = {
        "do_sample": True,
        "temperature": 1.0,
        "top_k": 0,
        "top_p": 1.0,
        "num_return_sequences": n,
        "max_new_tokens": max_tokens,
        "eos_token_id": stops,
        "pad_token_id": PAD,
    }

    def run() -> float:
        torch.manual_seed(0)
        began = time.perf_counter()
        with torch.no_grad():
            output = plain.generate(input_ids=ids, attention_mask=mask, **settings)
        spent = time.perf_counter() - began
        stopped = torch.isin(output[:, width:], torch.tensor(stops))
        return spent / int((stopped.cumsum(1) - stopped.long() == 0).sum())

    return run


if __name__ == "__main__":
    main()
