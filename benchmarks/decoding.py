"""Tokens a second of castctl's decode loop against transformers' `generate`, on equal prompts.

`--lengths` compares it with itself over transformers' own cache instead, which is copied for every
token: CPU seconds, and what both need beyond the model at the longest.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from typing import Any

import measure
import numpy as np
import random_qwen3
import torch
from numpy.typing import NDArray
from transformers import DynamicCache

from castctl.data.prompts import load_prompts
from castctl.data.templates import PromptTemplate
from castctl.engines import Request, transformers_engine
from castctl.engines.cache import cache_in_blocks
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
SMALL_VOCABULARY = 4096
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
CACHES: dict[str, Callable[[Any, int], DynamicCache]] = {
    "blocks": cache_in_blocks,
    "joined": lambda config, limit: DynamicCache(config=config),
}


def main() -> None:
    parser = measure.options(__doc__, repeats=5)
    parser.add_argument("--rows", type=int, nargs=2, default=[128, 32], help="of either model")
    parser.add_argument("-n", type=int, default=8, help="completions of a prompt")
    parser.add_argument("--tokens", type=int, nargs=2, default=[160, 64], help="longest completion")
    parser.add_argument("--vocabulary", type=int, default=random_qwen3.VOCABULARY)
    parser.add_argument("--lengths", type=int, nargs="+", help="new tokens of every row")
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="under --lengths")
    options = measure.parse(parser)
    if options.quick:
        options.rows, options.n, options.tokens, options.vocabulary = [8, 4], 2, [24, 8], 4096
        options.lengths = options.lengths and [24, 80]
    if options.lengths:
        caches(options.lengths, options.dtype, options.rows[1], options.n, options.repeats)
        return

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


def caches(lengths: Sequence[int], dtype: str, rows: int, n: int, repeats: int) -> None:
    """Report the loop over a cache in blocks beside the same over transformers'."""
    extra = {
        name: measure.peak_extra_gb(caching, name, dtype, rows, n, max(lengths)) for name in CACHES
    }
    cases = []
    for length in lengths:
        works = {name: cpu(caching(name, dtype, rows, n, length)) for name in CACHES}
        spent = measure.interleaved(works, repeats)
        cases.append(
            {
                "new_tokens": length,
                "blocks_cpu_seconds": measure.median(spent["blocks"]),
                "joined_cpu_seconds": measure.median(spent["joined"]),
                **measure.ratio(spent["joined"], spent["blocks"]),
            }
        )
    measure.report(
        "decoding", repeats, dtype=dtype, rows=rows, cases=cases,
        extra_gb_of_the_longest=extra,
    )  # fmt: skip


def caching(cache: str, dtype: str, rows: int, n: int, length: int) -> Callable[[], object]:
    """The loop, over one of the caches, until every row of a small random model is so long."""
    model, prompts = random_model(max(1, rows // n), SMALL_VOCABULARY)
    engine = TransformersEngine(LanguageModel(model.model, None, DTYPES[dtype]))
    engine.stop_ids = []
    sampling = SamplingSettings(n=n, max_tokens=length, max_rows=rows)
    asked = requests(prompts, n)

    def run() -> object:
        transformers_engine.cache_in_blocks = CACHES[cache]  # type: ignore[attr-defined]
        return list(engine.generate({0: asked}, sampling, lambda count: None))

    return run


def cpu(work: Callable[[], object]) -> Callable[[], float]:
    """CPU seconds of all threads."""

    def run() -> float:
        began = time.process_time()
        work()
        return time.process_time() - began

    return run


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
    asked = requests(prompts, n)
    sampling = SamplingSettings(n=n, max_tokens=max_tokens, max_rows=len(asked))

    def run() -> float:
        began = time.perf_counter()
        ((_, completions),) = engine.generate({0: asked}, sampling, lambda count: None)
        return (time.perf_counter() - began) / sum(len(c.token_ids) for c in completions)

    return run


def requests(prompts: Prompts, n: int) -> list[Request]:
    return [
        Request(prompt, row_key(0, 0, str(number), sample))
        for number, prompt in enumerate(prompts)
        for sample in range(n)
    ]


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
