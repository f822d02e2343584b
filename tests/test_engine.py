"""Sampling: the draw of a token, its random numbers, and the decode loop around them."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats
from transformers import DynamicCache

from castctl.engines import Completion, Request, transformers_engine
from castctl.engines import cache as caches
from castctl.engines.sampling import BLOCK, RowUniforms, draw, next_token_scores, row_key
from castctl.engines.stops import stop_token_ids
from castctl.engines.transformers_engine import TransformersEngine
from castctl.models.language_model import LanguageModel
from castctl.recipe.recipe import SamplingSettings
from models import (
    CONFIGS,
    EOS,
    VOCABULARY,
    WINDOW,
    Rows,
    ids,
    plain,
    plain_logits,
    plain_scores,
    random_ids,
    tiny,
)

ALMOST_ONE = float(np.nextafter(1.0, 0.0))
BOUNDARY = 1e-6
"""Uniforms nearer than this to a cumulative probability may fall on either side: the
probabilities are float32, their sums float64."""


def cumulative(logprobs: torch.Tensor) -> NDArray[np.float64]:
    """The cumulative probabilities (V) of one row, ending at exactly 1."""
    sums = np.cumsum(torch.exp(logprobs).numpy().astype(np.float64))
    return sums / sums[-1]


def distribution(size: int, seed: int, zeros: float = 0.0) -> torch.Tensor:
    """Log-probs (V) of a peaked distribution, a share of its tokens impossible."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 3, size)
    logits[rng.random(size) < zeros] = -np.inf
    if np.isinf(logits).all():
        logits[rng.integers(size)] = 0
    return torch.log_softmax(torch.from_numpy(logits).float(), dim=-1)


def draw_many(logprobs: torch.Tensor, uniforms: NDArray[np.float64]) -> NDArray[np.int64]:
    """One token of the same distribution for each uniform."""
    rows = logprobs.expand(len(uniforms), -1)
    return draw(rows, torch.from_numpy(uniforms))[0].numpy()


# One draw


@pytest.mark.parametrize("zeros", [0.0, 0.9])
@pytest.mark.parametrize("size", [1, 7, BLOCK, 1000, 1500])
def test_a_draw_is_the_inverse_of_the_cumulative_distribution(size: int, zeros: float) -> None:
    logprobs = distribution(size, seed=size, zeros=zeros)
    sums = cumulative(logprobs)
    uniforms = np.random.default_rng(1).random(3000)
    inner = sums[:-1][(sums[:-1] > 1e-5) & (sums[:-1] < 1 - 1e-5)]
    near = np.concatenate([[0.0, ALMOST_ONE], inner[:400] - 4e-6, inner[:400] + 4e-6])
    uniforms = np.concatenate([uniforms, near])
    clear = np.abs(uniforms[:, None] - sums[None, :-1]).min(1, initial=1) > BOUNDARY
    assert clear.mean() > 0.95
    found = draw_many(logprobs, uniforms)
    expected = np.searchsorted(sums, uniforms, side="right")
    assert (found[clear] == expected[clear]).all()


def test_rows_of_one_batch_are_drawn_each_from_their_own() -> None:
    rows = torch.stack([distribution(1500, seed) for seed in range(40)])
    uniforms = np.random.default_rng(2).random(40)
    found = draw(rows, torch.from_numpy(uniforms))[0].tolist()
    assert found == [draw_many(row, uniforms[i : i + 1])[0] for i, row in enumerate(rows)]


@given(
    size=st.integers(1, 3 * BLOCK),
    possible=st.lists(st.integers(0, 3 * BLOCK - 1), min_size=1, max_size=4),
    seed=st.integers(0, 1000),
)
@settings(max_examples=150, deadline=None)
def test_an_impossible_token_is_never_drawn(size: int, possible: list[int], seed: int) -> None:
    logits = torch.full((size,), -torch.inf)
    rng = np.random.default_rng(seed)
    for token in possible:
        logits[token % size] = float(rng.normal(0, 8))
    logprobs = torch.log_softmax(logits, dim=-1)
    sums = cumulative(logprobs)
    edges = np.concatenate([sums, np.nextafter(sums, 0), np.nextafter(sums, 1), [0, ALMOST_ONE]])
    found = draw_many(logprobs, np.unique(edges[(edges >= 0) & (edges < 1)]))
    assert (logprobs[found] > -torch.inf).all()
    assert draw_many(logprobs, np.zeros(1))[0] == np.flatnonzero(torch.exp(logprobs))[0]


def test_rounding_leads_to_no_impossible_token() -> None:
    """At the seams of blocks, whose sums are rounded one way and another, lie such tokens."""
    for seed in range(20):
        logits = torch.from_numpy(np.random.default_rng(seed).normal(0, 8, 12 * BLOCK)).float()
        logits[::BLOCK] = -torch.inf
        logprobs = torch.log_softmax(logits, dim=-1)
        seams = cumulative(logprobs)[BLOCK - 1 : -1 : BLOCK]
        near = [seams + ulps * np.spacing(seams) for ulps in range(-4, 5)]
        found = draw_many(logprobs, np.concatenate([*near, [0.0, ALMOST_ONE]]))
        assert (logprobs[found] > -torch.inf).all()


@pytest.mark.parametrize("size", [7, 1500])
def test_draws_have_the_frequencies_of_the_distribution(size: int) -> None:
    logprobs = torch.log_softmax(distribution(size, seed=4) / 3, dim=-1)
    found = draw_many(logprobs, np.random.default_rng(6).random(20_000))
    expected = np.exp(logprobs.double().numpy())
    # Rare tokens share a cell: the test wants a handful of draws in each.
    cell = np.cumsum(np.where(expected * 20_000 < 10, 0, 1)) * (expected * 20_000 >= 10)
    observed = np.bincount(cell[found], minlength=cell.max() + 1)
    wanted = np.bincount(cell, weights=expected)
    assert len(observed) >= 7
    if wanted[0] == 0:
        observed, wanted = observed[1:], wanted[1:]
    assert stats.chisquare(observed, wanted / wanted.sum() * 20_000).pvalue > 1e-3


# Random numbers of rows


def numbers(keys: list[int], row: int, positions: int, block: int = 64) -> list[float]:
    """One row's numbers in a batch of all `keys`, whose other rows leave along the way."""
    uniforms = RowUniforms(keys, block)
    rows = np.arange(len(keys))
    result = []
    for position in range(positions):
        if position % 10 == 9 and len(rows) > 1:
            rows = np.delete(rows, 0 if rows[0] != row else 1)
        result.append(float(uniforms.at(position, rows)[np.flatnonzero(rows == row)[0]]))
    return result


def test_a_rows_numbers_depend_on_its_key_and_the_position_alone() -> None:
    key = row_key(1, 2, "abc", 3)
    alone = numbers([key], 0, 150)
    assert numbers([5, key, 7, 11], 1, 150) == alone
    assert numbers([*range(20), key], 20, 150) == alone
    assert numbers([key], 0, 150, block=8) == alone
    assert len(set(alone)) == 150 and all(0 <= number < 1 for number in alone)


def test_numbers_of_neighbouring_rows_are_uniform_and_independent() -> None:
    keys = [row_key(0, 0, "prompt", sample) for sample in range(400)]
    uniforms = RowUniforms(keys)
    table = np.stack([uniforms.at(t, np.arange(400)) for t in range(70)])
    assert stats.kstest(table.ravel(), "uniform").pvalue > 1e-3
    assert np.abs(np.corrcoef(table) - np.eye(70)).max() < 0.25


coordinates = st.tuples(
    st.integers(0, 20), st.integers(0, 20), st.text("0123/ab", max_size=4), st.integers(0, 20)
)


@given(coordinates, coordinates)
def test_every_coordinate_changes_the_key(one: tuple[Any, ...], other: tuple[Any, ...]) -> None:
    assert (row_key(*one) == row_key(*other)) == (one == other)
    for axis in range(4):
        changed = list(one)
        changed[axis] = other[axis]
        assert (row_key(*changed) == row_key(*one)) == (changed[axis] == one[axis])
    assert 0 <= row_key(*one) < 2**128


def test_coordinates_do_not_run_into_one_another() -> None:
    assert row_key(1, 11, "a", 0) != row_key(11, 1, "a", 0)
    assert row_key(0, 1, "2a", 0) != row_key(0, 12, "a", 0)
    assert row_key(0, 0, "a1", 1) != row_key(0, 0, "a", 11)


# The distribution to draw from


def sampling(**settings: Any) -> SamplingSettings:
    return SamplingSettings.model_validate({"temperature": 1.3, "max_tokens": 30, **settings})


def truncated(logits: torch.Tensor, settings: SamplingSettings) -> torch.Tensor:
    """Log-probs (V) by definition: at T, then top-k, then top-p, then min-p of what is left."""
    probs = torch.softmax(logits.double() / settings.temperature, dim=-1)

    def keep(mask: torch.Tensor) -> torch.Tensor:
        kept = torch.where(mask, probs, 0.0)
        return kept / kept.sum()

    if settings.top_k:
        probs = keep(probs >= probs.sort(descending=True).values[settings.top_k - 1])
    if settings.top_p < 1:
        ordered, order = probs.sort(descending=True)
        before = ordered.cumsum(0) - ordered
        mask = torch.zeros(len(probs), dtype=torch.bool)
        mask[order] = before < settings.top_p
        probs = keep(mask)
    if settings.min_p:
        probs = keep(probs >= settings.min_p * probs.max())
    return probs.log()


TRUNCATIONS = [{}, {"top_k": 4}, {"top_p": 0.7}, {"min_p": 0.2}, {"top_k": 9, "top_p": 0.8}]


@pytest.mark.parametrize("settings", TRUNCATIONS, ids=str)
def test_truncation_leaves_the_wanted_tokens_in_their_proportions(settings: dict) -> None:
    logits = torch.randn(50, 30, generator=torch.Generator().manual_seed(0)) * 2
    wanted = sampling(**settings)
    scores = next_token_scores(logits, 1.3, wanted.top_p, wanted.top_k, wanted.min_p)
    found = torch.log_softmax(scores, dim=-1)
    for row, expected in zip(found, (truncated(row, wanted) for row in logits), strict=True):
        assert (row.isinf() == expected.isinf()).all()
        assert (expected.isinf().sum() > 0) == bool(settings)
        torch.testing.assert_close(row.double(), expected, rtol=1e-5, atol=1e-5)


# The decode loop


def prompts() -> list[NDArray[np.int32]]:
    """Shorter and longer than the window, and some more than once."""
    rng = np.random.default_rng(3)
    first, second, third = (random_ids(rng, length) for length in (WINDOW - 2, 3 * WINDOW, 1))
    return [first, second, first, third, second, second, third, first, random_ids(rng, 10), first]


def requests(rows: Rows, first_key: int = 0) -> list[Request]:
    return [Request(row, row_key(0, 0, "x", first_key + i)) for i, row in enumerate(rows)]


def generate(
    model: LanguageModel, asked: list[Request], settings: SamplingSettings
) -> list[Completion]:
    finished: list[int] = []
    ((_, completions),) = TransformersEngine(model).generate({0: asked}, settings, finished.append)
    assert sum(finished) == len(asked) and min(finished, default=0) >= 0
    assert len(completions) == len(asked)
    return completions


def tokens(completions: list[Completion]) -> list[list[int]]:
    return [completion.token_ids.tolist() for completion in completions]


@cache
def shared_model(name: str) -> LanguageModel:
    return tiny(name)


@cache
def sampled(name: str) -> tuple[list[Request], list[Completion]]:
    asked = requests(prompts() * 2)
    return asked, generate(shared_model(name), asked, sampling())


ARCHITECTURES = sorted(CONFIGS)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_rows_finish_at_different_times(name: str) -> None:
    _, completions = sampled(name)
    lengths = [len(completion.token_ids) for completion in completions]
    assert min(lengths) < 20 and max(lengths) == 30 and len(set(lengths)) > 4
    for completion in completions:
        *before, last = completion.token_ids.tolist()
        assert EOS not in before
        assert completion.finish_reason == ("stop" if last == EOS else "length")
        assert last == EOS or len(before) == 29
        assert completion.token_ids.dtype == np.int32
        assert completion.logprobs is not None and completion.logprobs.dtype == np.float32
        assert completion.logprobs.shape == completion.token_ids.shape


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_sampled_log_probs_are_those_of_scoring(name: str) -> None:
    asked, completions = sampled(name)
    logprobs, _ = shared_model(name).score(
        [request.prompt for request in asked], [c.token_ids for c in completions], 1.3, 10**6, 100
    )
    found = np.concatenate([completion.logprobs for completion in completions])
    assert np.abs(found - logprobs).max() < 1e-4


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_token_is_the_draw_of_its_rows_number(name: str) -> None:
    """From the plain model's logits, a row at a time: the policy's distribution, exactly."""
    asked, completions = sampled(name)
    model = plain(shared_model(name))
    decided = total = 0
    for request, completion in zip(asked, completions, strict=True):
        with torch.no_grad():
            logits = plain_logits(model, request.prompt, completion.token_ids)
        uniforms = RowUniforms([request.key])
        for position, token in enumerate(completion.token_ids):
            sums = cumulative(torch.log_softmax(logits[position] / 1.3, dim=-1))
            uniform = uniforms.at(position, np.zeros(1, np.int64))[0]
            total += 1
            if np.abs(sums - uniform).min() > 1e-4:
                decided += 1
                assert token == np.searchsorted(sums, uniform, side="right")
    assert decided > 0.9 * total > 200


def test_first_tokens_have_the_policys_frequencies() -> None:
    prompt = prompts()[1]
    asked = requests([prompt] * 4000)
    model = shared_model("qwen3-tied")
    first = np.concatenate(tokens(generate(model, asked, sampling(max_tokens=1, max_rows=4000))))
    with torch.no_grad():
        logits = plain_logits(plain(model), prompt, ids(1))[0]
    expected = 4000 * torch.softmax(logits.double() / 1.3, dim=-1).numpy()
    often = expected >= 10
    observed = np.bincount(first, minlength=VOCABULARY)
    cells = [np.append(counts[often], counts[~often].sum()) for counts in (observed, expected)]
    assert often.sum() >= 7
    assert stats.chisquare(*cells).pvalue > 1e-3


@pytest.mark.parametrize("name", ["qwen3-tied", "mistral-window", "qwen2-half-window"])
def test_a_request_alone_gives_what_it_gives_in_a_batch(name: str) -> None:
    asked, together = sampled(name)
    for index in (0, 1, 3, 8, 15):
        (alone,) = generate(shared_model(name), [asked[index]], sampling())
        assert alone.token_ids.tolist() == together[index].token_ids.tolist()
        assert alone.finish_reason == together[index].finish_reason
        np.testing.assert_allclose(alone.logprobs, together[index].logprobs, atol=1e-4)
    backwards = generate(shared_model(name), asked[::-1], sampling())
    assert tokens(backwards)[::-1] == tokens(together)


@pytest.mark.parametrize("max_rows", [1, 3, 20])
def test_rows_side_by_side_change_no_token(max_rows: int) -> None:
    asked, together = sampled("qwen2-half-window")
    split = generate(shared_model("qwen2-half-window"), asked, sampling(max_rows=max_rows))
    assert tokens(split) == tokens(together)


def test_other_keys_give_other_tokens_and_the_same_keys_the_same() -> None:
    model = shared_model("qwen3-tied")
    asked, together = sampled("qwen3-tied")
    assert tokens(generate(model, asked, sampling())) == tokens(together)
    others = generate(model, requests(prompts() * 2, first_key=100), sampling())
    assert sum(a == b for a, b in zip(tokens(others), tokens(together), strict=True)) == 0


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_greedy_decoding_is_that_of_generate(name: str) -> None:
    model = shared_model(name)
    rows = [*prompts()[:4], *(random_ids(np.random.default_rng(seed), 5) for seed in range(12))]
    completions = generate(model, requests(rows), sampling(temperature=0, n=1, max_tokens=25))
    reference = plain(model)
    for row, completion in zip(rows, completions, strict=True):
        expected = reference.generate(
            input_ids=torch.from_numpy(row.astype(np.int64))[None],
            attention_mask=torch.ones(1, len(row), dtype=torch.int64),
            max_new_tokens=25,
            do_sample=False,
        )
        assert completion.token_ids.tolist() == expected[0, len(row) :].tolist()
        assert completion.logprobs is None


@pytest.mark.parametrize("settings", TRUNCATIONS[1:], ids=str)
def test_truncated_sampling_draws_from_the_truncated_distribution(settings: dict) -> None:
    model = shared_model("qwen3-tied")
    asked = requests(prompts())
    wanted = sampling(**settings)
    completions = generate(model, asked, wanted)
    assert tokens(completions) != tokens(generate(model, asked, sampling()))
    reference = plain(model)
    for request, completion in zip(asked, completions, strict=True):
        with torch.no_grad():
            logits = plain_logits(reference, request.prompt, completion.token_ids)
        expected = [
            float(truncated(row, wanted)[token])
            for row, token in zip(logits, completion.token_ids, strict=True)
        ]
        assert np.isfinite(expected).all()
        np.testing.assert_allclose(completion.logprobs, expected, atol=1e-4)


def test_every_stop_token_stops() -> None:
    model = tiny("qwen3-tied")
    assert stop_token_ids(model) == [EOS]
    model.model.generation_config.eos_token_id = [7, 30]
    assert stop_token_ids(model) == [7, 30, EOS]
    model.model.generation_config.eos_token_id = 30
    assert stop_token_ids(model) == [30, EOS]
    endings = {
        completion.token_ids[-1]
        for completion in generate(model, requests(prompts() * 8), sampling())
        if completion.finish_reason == "stop"
    }
    assert endings == {30, EOS}


def test_a_stop_on_the_last_allowed_token_is_a_stop() -> None:
    asked, together = sampled("qwen3-tied")
    index, length = next(
        (i, len(completion.token_ids))
        for i, completion in enumerate(together)
        if completion.finish_reason == "stop" and len(completion.token_ids) > 1
    )
    model = shared_model("qwen3-tied")
    (cut,) = generate(model, [asked[index]], sampling(max_tokens=length))
    assert cut.finish_reason == "stop" and len(cut.token_ids) == length
    (cut,) = generate(model, [asked[index]], sampling(max_tokens=length - 1))
    assert cut.finish_reason == "length" and len(cut.token_ids) == length - 1


def test_no_requests_give_no_completions() -> None:
    assert generate(shared_model("qwen3-tied"), [], sampling()) == []


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_bfloat16_decoding_stays_near_float32_scores(name: str) -> None:
    model = shared_model(name)
    low = LanguageModel(model.model, model.tokenizer, torch.bfloat16)
    rows = prompts()
    completions = generate(low, requests(rows), sampling())
    with torch.no_grad():
        expected = plain_scores(plain(model), rows, [c.token_ids for c in completions], 1.3)
    found = np.concatenate([completion.logprobs for completion in completions])
    assert np.abs(found - expected.logprobs.numpy()).mean() < 0.1


# The cache


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_cache_in_blocks_changes_no_bit(
    name: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against the cache of transformers, which joins all it has with each token."""
    held = shared_model(name)
    model = LanguageModel(held.model, held.tokenizer, dtype)
    asked = requests(prompts() * 2)
    monkeypatch.setattr(caches, "BLOCK", 3)
    blocks = generate(model, asked, sampling())
    monkeypatch.setattr(
        transformers_engine, "cache_in_blocks", lambda config, limit: DynamicCache(config=config)
    )
    joined = generate(model, asked, sampling())
    assert tokens(blocks) == tokens(joined)
    for one, other in zip(blocks, joined, strict=True):
        np.testing.assert_array_equal(one.logprobs, other.logprobs)


def layers_of(name: str, limit: int) -> list[Any]:
    return caches.cache_in_blocks(shared_model(name).model.config, limit).layers


def states(tokens: int, seed: int, rows: int = 2) -> torch.Tensor:
    return torch.randn(rows, 2, tokens, 4, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("window", [None, 24])
def test_a_layer_is_copied_once_a_block(
    window: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And holds room for no more than a block, or than the longest row."""
    monkeypatch.setattr(caches, "BLOCK", 10)
    monkeypatch.setattr(caches, "SHARE", 2)
    limit, block = 64, 10
    layer: Any = (
        caches.BlockLayer(limit) if window is None else caches.SlidingBlockLayer(limit, window)
    )
    keys, values = states(40, 0), states(40, 1)
    layer.update(keys, values)
    layer.batch_select_indices(torch.tensor([1, 0, 1]))
    keys, values = keys[[1, 0, 1]], values[[1, 0, 1]]
    places = []
    for token in range(limit - 40):
        new = states(1, 2 + token, rows=3), states(1, 99 + token, rows=3)
        keys, values = torch.cat([keys, new[0]], 2), torch.cat([values, new[1]], 2)
        seen = keys.shape[2] if window is None else window
        found = layer.update(*new)
        assert torch.equal(found[0], keys[:, :, -seen:])
        assert torch.equal(found[1], values[:, :, -seen:])
        assert layer.get_seq_length() == keys.shape[2]
        places.append(found[0].untyped_storage().data_ptr())
        room = found[0].untyped_storage().nbytes() // found[0][:, :, :1].nbytes
        assert room <= min(limit, seen + block)
    assert len(set(places)) <= 1 + (limit - 40) // block


def test_what_a_cache_in_blocks_cannot_do_is_refused() -> None:
    layer = layers_of("qwen3-tied", 9)[0]
    layer.update(states(4, 0), states(4, 1))
    layer.crop(-1)
    with pytest.raises(RuntimeError, match="can only grow, and drop rows"):
        layer.update(states(1, 2), states(1, 3))


def test_every_layer_of_these_models_is_in_blocks() -> None:
    kinds = {type(layer) for name in ARCHITECTURES for layer in layers_of(name, 9)}
    assert kinds == {caches.BlockLayer, caches.SlidingBlockLayer}
