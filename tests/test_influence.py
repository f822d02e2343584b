"""Both influence scores against their definitions, one completion and one forward at a time."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from castctl.models import answers, perturbation
from castctl.models.language_model import LanguageModel
from castctl.models.perturbation import perturbation_scores, strides
from castctl.models.sensitivity import gradient_scores
from castctl.ragged import offsets_of
from castctl.verify.spans import AnswerSpan
from models import CONFIGS, Rows, ids, plain, random_ids, tiny

# float64 is for tests alone: autocast steps aside, and says so.
pytestmark = pytest.mark.filterwarnings("ignore:In CPU autocast")

ARCHITECTURES = sorted(CONFIGS)
SCORES = ("first", "last", "answer_mean", "answer_joint")
PAD = 0
T = 0.7
NOISE = 1e-3
SEEDS = [11, 12, 13, 14, 15, 16, 17]
Spans = list[AnswerSpan | None]
EXACT = {"rtol": 2e-7, "atol": 1e-9}
"""Scores are stored as float32, whatever they were computed in."""


def rows() -> tuple[Rows, Rows, Spans]:
    """Shared prompts and lone ones; answers at the end and before it, of one token and of many;
    rows without an answer and without reasoning."""
    rng = np.random.default_rng(3)
    long, short = random_ids(rng, 9), random_ids(rng, 3)
    prompts = [long, long, long, short, short, long, short]
    spans = [
        AnswerSpan(9, 11, 14),
        None,
        AnswerSpan(5, 5, 6),
        AnswerSpan(0, 2, 4),
        AnswerSpan(1, 3, 8),
        AnswerSpan(12, 13, 15),
        None,
    ]
    lengths = [16, 7, 6, 5, 8, 19, 0]
    return prompts, [random_ids(rng, length) for length in lengths], spans


@cache
def exact_model(name: str) -> LanguageModel:
    return tiny(name, torch.float64)


@cache
def exact_plain(name: str) -> Any:
    return plain(exact_model(name))


# By definition


def answer_distances(
    clean: torch.Tensor, other: torch.Tensor, answer: torch.Tensor, score: str
) -> torch.Tensor:
    """The distance of two answers' logits over T (A, V)."""
    if score == "answer_joint":
        gone = [row.log_softmax(-1).gather(1, answer[:, None]) for row in (clean, other)]
        return gone[0].sum() - gone[1].sum()
    # Row 0 predicts the answer's first token, and the last row its last.
    told = {"first": lambda row: row[0], "last": lambda row: row[-1]}
    read = told.get(score, lambda row: row.mean(0))
    p, q = (read(row).log_softmax(-1) for row in (clean, other))
    return (p.exp() * (p - q)).sum()


def whole_row(prompt: NDArray, completion: NDArray) -> torch.Tensor:
    return torch.from_numpy(np.concatenate([prompt, completion]).astype(np.int64))


def predicting(prompt: NDArray, span: AnswerSpan) -> slice:
    """Where a whole row's logits predict its answer."""
    return slice(len(prompt) + span.answer_start - 1, len(prompt) + span.answer_end - 1)


def plain_perturbation(model: Any, prompts: Rows, completions: Rows, spans: Spans, score: str):
    """A forward pass over the whole row for each reasoning token."""
    scores = []
    for prompt, completion, span in zip(prompts, completions, spans, strict=True):
        of_row = np.full(len(completion), np.nan)
        if span:
            row = whole_row(prompt, completion)
            answer = row[len(prompt) + span.answer_start : len(prompt) + span.answer_end]
            where = predicting(prompt, span)
            clean = model(input_ids=row[None], use_cache=False).logits[0, where] / T
            for position in range(span.reasoning_end):
                perturbed = row.clone()
                perturbed[len(prompt) + position] = PAD
                other = model(input_ids=perturbed[None], use_cache=False).logits[0, where] / T
                of_row[position] = answer_distances(clean, other, answer, score)
        scores.append(of_row)
    return np.concatenate(scores)


def plain_gradients(
    model: Any, prompts: Rows, completions: Rows, spans: Spans, seeds: list[int], score: str
):
    """Autograd through all logits of one row at a time."""
    scores = []
    embed = model.get_input_embeddings()
    for prompt, completion, span, seed in zip(prompts, completions, spans, seeds, strict=True):
        of_row = np.full(len(completion), np.nan)
        if span:
            row = whole_row(prompt, completion)
            reasoning = slice(len(prompt), len(prompt) + span.reasoning_end)
            answer = row[len(prompt) + span.answer_start : len(prompt) + span.answer_end]
            where = predicting(prompt, span)
            noisy = embed(row).detach().clone()
            draws = torch.Generator("cpu").manual_seed(seed)
            size = span.reasoning_end, noisy.shape[1]
            noisy[reasoning] += NOISE * torch.randn(size, generator=draws)
            noisy.requires_grad_()
            with torch.no_grad():
                clean = model(input_ids=row[None], use_cache=False).logits[0, where] / T
            other = model(inputs_embeds=noisy[None], use_cache=False).logits[0, where] / T
            answer_distances(clean, other, answer, score).backward()
            of_row[: span.reasoning_end] = (noisy.grad * noisy).detach().sum(1).abs()[reasoning]
        scores.append(of_row)
    return np.concatenate(scores)


@cache
def expected_perturbation(name: str, score: str) -> NDArray[np.float64]:
    with torch.no_grad():
        return plain_perturbation(exact_plain(name), *rows(), score)


@cache
def expected_gradients(name: str, score: str) -> NDArray[np.float64]:
    return plain_gradients(exact_plain(name), *rows(), SEEDS, score)


# As castctl computes them


def perturbed(model: LanguageModel, given: tuple[Rows, Rows, Spans], score: str, **options: Any):
    options = {"microbatch_tokens": 10**6, "chunk_tokens": 1000} | options
    return perturbation_scores(model, *given, score=score, pad_id=PAD, temperature=T, **options)


def sensitive(
    model: LanguageModel,
    given: tuple[Rows, Rows, Spans],
    score: str,
    seeds: list[int] = SEEDS,
    **options: Any,
):
    options = {"microbatch_tokens": 10**6, "chunk_tokens": 1000, "noise_std": NOISE} | options
    return gradient_scores(model, *given, seeds, score=score, temperature=T, **options)


# OAR-P


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_perturbation_is_a_plain_forward_per_token(name: str, score: str) -> None:
    expected = expected_perturbation(name, score)
    assert np.nanmax(expected) > 0.1  # the models of these tests listen to their reasoning
    found = perturbed(exact_model(name), rows(), score)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, **EXACT)


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_neither_batches_nor_chunks_change_a_perturbation(name: str, score: str) -> None:
    for microbatch_tokens, chunk_tokens in ((1, 1), (60, 2), (100, 7)):
        found = perturbed(
            exact_model(name),
            rows(),
            score,
            microbatch_tokens=microbatch_tokens,
            chunk_tokens=chunk_tokens,
        )
        np.testing.assert_allclose(found, expected_perturbation(name, score), **EXACT)


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_perturbation_in_float32(name: str, score: str) -> None:
    found = perturbed(tiny(name), rows(), score, microbatch_tokens=80, chunk_tokens=5)
    np.testing.assert_allclose(found, expected_perturbation(name, score), rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("name", ["qwen3-tied", "gemma3-softcap"])
def test_scores_in_bfloat16_stay_near(name: str) -> None:
    low = LanguageModel(tiny(name).model, None, torch.bfloat16)
    for found, expected in (
        (perturbed(low, rows(), "last"), expected_perturbation(name, "last")),
        (sensitive(low, rows(), "answer_joint"), expected_gradients(name, "answer_joint")),
    ):
        scored = np.isfinite(expected)
        assert np.array_equal(np.isfinite(found), scored)
        assert np.corrcoef(found[scored], expected[scored])[0, 1] > 0.9


def test_a_token_that_is_the_pad_token_already_has_no_influence() -> None:
    prompts, completions, spans = rows()
    completions[0][4] = PAD
    for score in SCORES:
        found = perturbed(exact_model("qwen3-tied"), (prompts, completions, spans), score)
        assert abs(found[4]) < 1e-12 < abs(found[3])


@pytest.mark.parametrize(
    ("stride", "budget", "used", "scored"),
    [
        (1, None, [1, 1, 1, 1, 1, 1, 1], [9, 5, 1, 12]),
        (4, None, [4, 4, 4, 4, 4, 4, 4], [3, 2, 1, 3]),
        (1, 5, [2, 1, 1, 1, 1, 3, 1], [5, 5, 1, 4]),
        (2, 3, [3, 2, 2, 2, 2, 4, 2], [3, 3, 1, 3]),
        (100, 1, [100] * 7, [1, 1, 1, 1]),
    ],
)
def test_strides_leave_tokens_out(
    stride: int, budget: int | None, used: list[int], scored: list[int]
) -> None:
    _, completions, spans = rows()
    assert strides(spans, stride, budget).tolist() == used
    expected = expected_perturbation("qwen3-tied", "last").copy()
    offsets = offsets_of([len(row) for row in completions])
    for row, step in enumerate(used):
        of_row = expected[offsets[row] : offsets[row + 1]]
        of_row[np.arange(len(of_row)) % step != 0] = np.nan
    found = perturbed(exact_model("qwen3-tied"), rows(), "last", stride=stride, budget=budget)
    np.testing.assert_allclose(found, expected, **EXACT)
    counts = np.add.reduceat(np.isfinite(found), [0, 23, 34, 42])
    assert counts.tolist() == scored


@given(st.integers(0, 500), st.integers(1, 30), st.integers(1, 60))
def test_no_more_tokens_are_scored_than_the_budget_allows(
    length: int, stride: int, budget: int
) -> None:
    [step] = strides([AnswerSpan(length, length, length + 1)], stride, budget)
    assert step >= stride
    assert len(range(0, length, step)) <= budget
    if step > stride:  # no more is left out than needs be
        assert len(range(0, length, step - 1)) > budget


@given(st.integers(1, 200))
@settings(deadline=None, max_examples=25)
def test_batches_stay_within_the_budget(budget: int) -> None:
    given_rows = answers.answered_rows(*rows())
    steps = np.ones(7, np.int64)
    seen = []
    for batch in perturbation._batches(given_rows, steps, budget):
        packed = perturbation._pack(batch, PAD)
        places = [(v.row.number, position) for v in batch for position in v.positions]
        assert len(places) == 1 or len(packed.input_ids_L) <= budget
        seen += places
    assert seen == [(r.number, p) for r in given_rows for p in range(r.span.reasoning_end)]


def test_a_variant_starts_behind_the_clean_tokens_before_it() -> None:
    given_rows = answers.answered_rows([ids(1, 2)], [ids(3, 4, 5, 6, 7, 8)], [AnswerSpan(2, 3, 5)])
    [batch] = perturbation._batches(given_rows, np.array([1]), 100)
    packed = perturbation._pack(batch, 50)
    assert packed.input_ids_L.tolist() == [1, 2, 3, 4, 5, 6, 50, 4, 5, 6, 50, 5, 6]
    assert packed.position_ids_L.tolist() == [0, 1, 2, 3, 4, 5, 2, 3, 4, 5, 3, 4, 5]
    assert packed.predictor_N.tolist() == [4, 5, 8, 9, 11, 12]
    assert packed.targets_N.tolist() == 3 * [6, 7]


# OAR-G


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_one_backward_gives_the_gradients_of_plain_rows(name: str, score: str) -> None:
    expected = expected_gradients(name, score)
    assert np.nanmax(expected) > 1e-4
    for microbatch_tokens, chunk_tokens in ((10**6, 1000), (40, 2), (1, 1)):
        found = sensitive(
            exact_model(name),
            rows(),
            score,
            microbatch_tokens=microbatch_tokens,
            chunk_tokens=chunk_tokens,
        )
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, expected, **EXACT)


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_gradients_in_float32(name: str, score: str) -> None:
    found = sensitive(tiny(name), rows(), score, microbatch_tokens=80, chunk_tokens=5)
    expected = expected_gradients(name, score)
    scale = np.nanmax(expected)
    # The divergence is flat at the clean embeddings: its slope is a small difference of logits.
    np.testing.assert_allclose(found, expected, rtol=5e-3, atol=1e-3 * scale)


@pytest.mark.parametrize("score", SCORES)
def test_a_row_scores_alone_as_in_a_batch(score: str) -> None:
    model = exact_model("qwen2-half-window")
    prompts, completions, spans = rows()
    together = sensitive(model, (prompts, completions, spans), score)
    alone = [
        sensitive(model, ([prompt], [completion], [span]), score, seeds=[seed])
        for prompt, completion, span, seed in zip(prompts, completions, spans, SEEDS, strict=True)
    ]
    np.testing.assert_allclose(together, np.concatenate(alone), rtol=2e-7, atol=1e-12)


def test_noise_follows_the_seed() -> None:
    model, given_rows = exact_model("qwen3-tied"), rows()
    first = sensitive(model, given_rows, "last")
    assert np.array_equal(first, sensitive(model, given_rows, "last"), equal_nan=True)
    other = sensitive(model, given_rows, "last", seeds=[99, *SEEDS[1:]])
    changed = ~np.isclose(first, other, equal_nan=True)
    assert changed[:9].all() and not changed[9:].any()


def test_without_noise_nothing_is_to_be_learned_from_a_divergence() -> None:
    """KL has its minimum at the clean distribution; the joint log-prob has a slope there."""
    model = exact_model("qwen3-tied")
    for score in ("last", "answer_mean"):
        assert np.nanmax(sensitive(model, rows(), score, noise_std=0.0)) < 1e-12
    assert np.nanmax(sensitive(model, rows(), "answer_joint", noise_std=0.0)) > 0.1


def computes_layers_again(model: LanguageModel) -> bool:
    """Whether scoring runs a layer more often than its two forward passes."""
    runs = []
    layer = model.model.model.layers[0].self_attn
    hook = layer.register_forward_hook(lambda *_: runs.append(1))
    sensitive(model, rows(), "last")
    hook.remove()
    return len(runs) > 2


@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_parameters_are_left_as_they_were(checkpointing: bool) -> None:
    model = tiny()
    if checkpointing:
        model.recompute_activations()
    first, second, *_ = model.model.parameters()
    first.grad = torch.ones_like(first)
    second.requires_grad_(False)
    before = [p.detach().clone() for p in model.model.parameters()]
    recomputed = computes_layers_again(model)
    found = sensitive(model, rows(), "last")
    assert np.isfinite(found).sum() == 27
    for old, parameter in zip(before, model.model.parameters(), strict=True):
        assert torch.equal(old, parameter)
        assert parameter.requires_grad is (parameter is not second)
        assert parameter.grad is None or parameter is first
    assert torch.equal(first.grad, torch.ones_like(first))
    assert not model.model.training
    assert recomputed == checkpointing
    np.testing.assert_allclose(found, sensitive(tiny(), rows(), "last"), rtol=1e-3, atol=1e-7)


# Both


def test_rows_that_do_not_answer_cost_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    prompts, completions, _ = rows()
    silent: Spans = [None, AnswerSpan(0, 0, 3), *[None] * 5]
    model = LanguageModel(tiny().model, None, torch.float32)
    passes = []
    monkeypatch.setattr(model, "hidden_states", lambda *given: passes.append(given))
    for scored in (perturbed, sensitive):
        told: list[int] = []
        found = scored(model, (prompts, completions, silent), "last", advance=told.append)
        assert np.isnan(found).all() and len(found) == sum(map(len, completions))
        assert sum(told) == 7
    assert not passes
    assert len(perturbed(model, ([], [], []), "last")) == 0
    assert len(sensitive(model, ([], [], []), "last", seeds=[])) == 0


@pytest.mark.parametrize("microbatch_tokens", [1, 70, 10**6])
def test_each_completion_is_told_once(microbatch_tokens: int) -> None:
    for scored, options in ((perturbed, {}), (perturbed, {"stride": 5}), (sensitive, {})):
        told: list[int] = []
        scored(
            tiny(),
            rows(),
            "last",
            microbatch_tokens=microbatch_tokens,
            advance=told.append,
            **options,
        )
        assert sum(told) == 7
