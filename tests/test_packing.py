"""The packed forward pass gives what the plain model gives, one row at a time."""

from __future__ import annotations

import copy
import math
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    AutoModelForCausalLM,
    GptOssConfig,
    LlamaConfig,
    NemotronConfig,
    Qwen3MoeConfig,
    StableLmConfig,
)

from castctl.errors import UserError
from castctl.models.head import fused_loss
from castctl.models.language_model import LanguageModel
from castctl.models.loading import load_language_model
from castctl.models.packing import Layout, flattened, microbatches, pack, rows_of
from castctl.models.policy import FullWeights
from castctl.ragged import offsets_of
from castctl.recipe.model import ModelSettings
from castctl.recipe.optimizer import OptimizerSettings
from castctl.recipe.recipe import Recipe
from castctl.stages.train.batch import TrainBatch
from castctl.stages.train.optimizer import Optimizer
from castctl.stages.train.update import update
from models import (
    CONFIGS,
    SHAPE,
    VOCABULARY,
    Rows,
    Scores,
    ids,
    packed_hidden,
    plain,
    plain_logits,
    plain_scores,
    random_ids,
    tiny,
    tokenizer,
)

# float64 is for tests alone: autocast steps aside, and says so.
pytestmark = pytest.mark.filterwarnings("ignore:In CPU autocast")

ARCHITECTURES = sorted(CONFIGS)
TEMPERATURES = (0.7, 1.0, 1.6)


def awkward_rows() -> tuple[Rows, Rows]:
    """Shared prompts, one inside another, one that comes back; completions of every kind."""
    rng = np.random.default_rng(5)
    long, short, lone = random_ids(rng, 11), random_ids(rng, 4), random_ids(rng, 1)
    extended = np.concatenate([short, random_ids(rng, 3)])
    prompts = [long, long, long, short, extended, extended, short, lone, long, lone, lone]
    lengths = [0, 17, 1, 9, 2, 12, 1, 14, 6, 0, 0]
    return prompts, [random_ids(rng, length) for length in lengths]


@cache
def exact_model(name: str) -> LanguageModel:
    return tiny(name, torch.float64)


@cache
def reference(name: str, temperature: float) -> Scores:
    with torch.no_grad():
        return plain_scores(plain(exact_model(name)), *awkward_rows(), temperature)


def packed_scores(
    model: LanguageModel, prompts: Rows, completions: Rows, temperature: float, chunk: int = 7
) -> Scores:
    """The scores in the model's own precision, out of the head's differentiable form."""
    _, hidden, targets = packed_hidden(model, prompts, completions)
    entropies = torch.empty(len(targets), dtype=hidden.dtype)

    def note_entropies(
        part: slice, logprobs: torch.Tensor, entropy: torch.Tensor, _: torch.Tensor
    ) -> torch.Tensor:
        entropies[part] = entropy.detach()
        return logprobs

    head = model.head(temperature, chunk)
    _, logprobs, _ = fused_loss(head, hidden, targets, note_entropies, with_entropies=True)
    return Scores(logprobs, entropies)


def largest(a: Any, b: Any) -> float:
    return float(np.abs(np.asarray(a, np.float64) - np.asarray(b, np.float64)).max())


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_models_of_these_tests_can_tell_right_from_wrong(name: str) -> None:
    peaked = reference(name, 1.0)
    assert peaked.entropies.mean() < 0.8 * math.log(VOCABULARY)
    # A completion scored after another prompt of the same length is something else.
    prompts, completions = awkward_rows()
    swapped = [prompt[::-1].copy() for prompt in prompts]
    with torch.no_grad():
        other = plain_scores(plain(exact_model(name)), swapped, completions, 1.0)
    assert largest(peaked.logprobs, other.logprobs) > 0.5


@pytest.mark.parametrize("name", ["mistral-window", "qwen2-half-window", "gemma3-softcap"])
def test_the_sliding_window_of_these_tests_matters(name: str) -> None:
    model = plain(exact_model(name))
    model.config.sliding_window = 1000
    for module in model.modules():
        if getattr(module, "sliding_window", None) is not None:
            module.sliding_window = 1000
    with torch.no_grad():
        wide = plain_scores(model, *awkward_rows(), 1.0)
    assert largest(wide.logprobs, reference(name, 1.0).logprobs) > 0.1


def test_the_soft_cap_of_these_tests_matters() -> None:
    model = plain(exact_model("gemma3-softcap"))
    model.config.final_logit_softcapping = None
    with torch.no_grad():
        uncapped = plain_scores(model, *awkward_rows(), 1.0)
    assert largest(uncapped.logprobs, reference("gemma3-softcap", 1.0).logprobs) > 0.5


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_packed_scores_are_the_plain_ones_in_float64(name: str, temperature: float) -> None:
    packed = packed_scores(exact_model(name), *awkward_rows(), temperature)
    expected = reference(name, temperature)
    assert largest(packed.logprobs, expected.logprobs) < 1e-9
    assert largest(packed.entropies, expected.entropies) < 1e-9


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_packed_scores_are_the_plain_ones_in_float32(name: str, temperature: float) -> None:
    expected = reference(name, temperature)
    for microbatch_tokens, chunk in ((10**6, 1000), (30, 4), (1, 1)):
        logprobs, entropies = tiny(name).score(
            *awkward_rows(), temperature, microbatch_tokens, chunk
        )
        assert logprobs.dtype == entropies.dtype == np.float32
        # A log-prob of -16 has an ulp of 2e-6; processors sum in other orders, up to 8 ulp apart.
        np.testing.assert_allclose(logprobs, expected.logprobs, rtol=2e-6, atol=1e-5)
        np.testing.assert_allclose(entropies, expected.entropies, rtol=2e-6, atol=1e-5)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_bfloat16_arithmetic_stays_near_and_keeps_float32_weights(name: str) -> None:
    model = tiny(name)
    low = LanguageModel(model.model, model.tokenizer, torch.bfloat16)
    logprobs, entropies = low.score(*awkward_rows(), 1.0, 10**6, 7)
    expected = reference(name, 1.0)
    assert np.abs(logprobs - expected.logprobs.numpy()).mean() < 0.15
    assert np.abs(entropies - expected.entropies.numpy()).mean() < 0.15
    _, hidden, targets = packed_hidden(low, *awkward_rows())
    assert hidden.dtype == torch.bfloat16
    fused_loss(low.head(1.0, 7), hidden, targets, lambda _, logps, *__: logps)[0].backward()
    assert {p.grad.dtype for p in low.model.parameters()} == {torch.float32}


short_rows = st.lists(
    st.tuples(
        st.lists(st.integers(1, 3), min_size=1, max_size=9),
        st.lists(st.integers(1, VOCABULARY - 1), max_size=11),
    ),
    min_size=1,
    max_size=6,
)


@given(short_rows, st.sampled_from(["qwen2-half-window", "qwen3-tied"]))
@settings(max_examples=30, deadline=None)
def test_any_rows_score_as_they_do_alone(rows: list[tuple[list, list]], name: str) -> None:
    prompts = [ids(*prompt) for prompt, _ in rows]
    completions = [ids(*completion) for _, completion in rows]
    model = exact_model(name)
    logprobs, entropies = model.score(prompts, completions, 1.0, 10**6, 5)
    assert len(logprobs) == len(entropies) == sum(map(len, completions))
    if len(logprobs):
        with torch.no_grad():
            expected = plain_scores(plain(model), prompts, completions, 1.0)
        assert largest(logprobs, expected.logprobs.float()) < 1e-5
        packed = packed_scores(model, prompts, completions, 1.0)
        assert largest(packed.logprobs, expected.logprobs) < 1e-9


def test_nothing_to_score_gives_empty_arrays() -> None:
    model = tiny()
    for prompts, completions in (([], []), ([ids(1, 2)] * 2, [ids(), ids()])):
        for scores in model.score(prompts, completions, 1.0, 100, 10):
            assert scores.shape == (0,) and scores.dtype == np.float32


# Gradients


def loss_weights() -> torch.Tensor:
    """A coefficient a token: positive, negative and zero."""
    count = sum(map(len, awkward_rows()[1]))
    return torch.linspace(-1, 1, count, dtype=torch.float64).roll(17)


def packed_gradients(model: LanguageModel) -> dict[str, torch.Tensor]:
    weights = loss_weights().to(model.dtype)
    _, hidden, targets = packed_hidden(model, *awkward_rows())
    total, *_ = fused_loss(
        model.head(0.8, 13), hidden, targets, lambda part, logps, *_: weights[part] * logps.exp()
    )
    model.model.zero_grad(set_to_none=True)
    total.backward()
    return {name: p.grad.clone() for name, p in model.model.named_parameters()}


def relative_error(found: dict[str, Any], expected: dict[str, Any]) -> float:
    """The largest difference over the largest gradient of the same parameter."""
    assert found.keys() == expected.keys()
    return max(
        float((found[name] - expected[name]).abs().max() / expected[name].abs().max())
        for name in found
        if not name.endswith("k_proj.bias")  # moves all scores of a row alike: zero but for noise
    )


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_packed_gradients_are_the_plain_ones(name: str) -> None:
    model = exact_model(name)
    alone = plain(model)
    alone.zero_grad(set_to_none=True)
    scores = plain_scores(alone, *awkward_rows(), 0.8)
    (loss_weights() * scores.logprobs.exp()).sum().backward()
    expected = {name: p.grad for name, p in alone.named_parameters()}
    assert relative_error(packed_gradients(model), expected) < 1e-9


@pytest.mark.parametrize("name", ["qwen3-tied", "qwen2-half-window"])
def test_gradient_checkpointing_changes_no_gradient(name: str) -> None:
    expected = packed_gradients(exact_model(name))
    model = tiny(name, torch.float64)
    model.recompute_activations()
    model.model.train()
    layers = [m for m in model.model.modules() if getattr(m, "gradient_checkpointing", False)]
    assert layers, "no layer recomputes anything"
    assert relative_error(packed_gradients(model), expected) < 1e-12


def train_batch() -> TrainBatch:
    prompts, completions = awkward_rows()
    rng = np.random.default_rng(8)
    offsets = offsets_of([len(row) for row in completions])
    count = int(offsets[-1])
    kept = np.ones(len(prompts), np.bool_)
    kept[3] = False
    return TrainBatch(
        prompts=list(prompts),
        teacher_prompts=list(prompts),
        completions=list(completions),
        group_of_row=np.array([0, 0, 0, 1, 2, 2, 3, 4, 5, 6, 6]),
        kept_R=kept,
        offsets=offsets,
        advantages=rng.normal(size=count).astype(np.float32),
        loss_weights=rng.uniform(0.5, 1, count).astype(np.float32),
        old_logprobs=rng.normal(-3, 1, count).astype(np.float32),
        ref_logprobs=rng.normal(-3, 1, count).astype(np.float32),
    )


def update_gradients(slots: dict[str, Any], **train: Any) -> tuple[float, dict[str, Any]]:
    """The loss of one optimizer step, and the gradient it left behind."""
    model = tiny("qwen3-tied", torch.float64)
    recipe = Recipe.model_validate(
        {
            "method": {"name": "grpo", **slots},
            "optimizer": {"max_grad_norm": 1e12},
            "sampling": {"max_tokens": 20},
            "train": train,
        }
    )
    optimizer = Optimizer(FullWeights(model).trained(), OptimizerSettings(), 10)
    if recipe.train.gradient_checkpointing:
        model.recompute_activations()
    stats = update(FullWeights(model), model, optimizer, train_batch(), recipe, 0)
    return stats.losses[0], {name: p.grad for name, p in model.model.named_parameters()}


@pytest.mark.parametrize(
    "slots",
    [
        {"surrogate": {"aggregation": "token_mean"}},
        {"surrogate": {"aggregation": "sequence_mean", "entropy_bonus": 0.1}},
        {
            "surrogate": {"aggregation": "constant"},
            "anchor": {"kind": "ufkl", "coefficient": 0.1},
        },
    ],
    ids=["token_mean", "entropy", "anchor"],
)
def test_micro_batches_change_no_gradient(slots: dict[str, Any]) -> None:
    loss, whole = update_gradients(slots, microbatch_tokens=10**6, head_chunk_tokens=10**6)
    for microbatch_tokens, chunk in ((1, 1), (25, 5), (40, 1000)):
        split_loss, split = update_gradients(
            slots, microbatch_tokens=microbatch_tokens, head_chunk_tokens=chunk
        )
        assert split_loss == pytest.approx(loss, rel=1e-10)
        assert relative_error(split, whole) < 1e-10
    _, recomputed = update_gradients(slots, gradient_checkpointing=True)
    assert relative_error(recomputed, whole) < 1e-10


def test_an_update_has_the_gradient_of_its_formula() -> None:
    """Over all logits with autograd: -min(rho A, clip(rho) A) w, a mean over kept tokens."""
    batch = train_batch()
    alone = plain(exact_model("qwen3-tied"))
    alone.zero_grad(set_to_none=True)
    losses = []
    for row, (prompt, completion) in enumerate(zip(*awkward_rows(), strict=True)):
        if not batch.kept_R[row]:
            continue
        values = slice(batch.offsets[row], batch.offsets[row + 1])
        log_softmax = torch.log_softmax(plain_logits(alone, prompt, completion), dim=-1)
        targets = torch.from_numpy(completion.astype(np.int64))[:, None]
        old, advantage, weight = (
            torch.from_numpy(stream[values]).double()
            for stream in (batch.old_logprobs, batch.advantages, batch.loss_weights)
        )
        ratio = (log_softmax.gather(1, targets)[:, 0] - old).exp()
        gain = torch.minimum(ratio * advantage, ratio.clamp(0.8, 1.28) * advantage)
        losses.append(-gain * weight)
    expected_loss = torch.cat(losses).mean()
    expected_loss.backward()
    expected = {name: p.grad for name, p in alone.named_parameters()}
    loss, found = update_gradients({"surrogate": {"aggregation": "token_mean", "clip_high": 0.28}})
    # The streams are float32.
    assert loss == pytest.approx(expected_loss.item(), rel=1e-6)
    assert relative_error(found, expected) < 1e-6


# The layout


def test_a_shared_prompt_is_computed_once() -> None:
    prompt = ids(1, 2, 3)
    batch = pack([prompt, prompt.copy(), prompt], [ids(4, 5), ids(6), ids(7, 8, 9)])
    assert batch.input_ids_L.tolist() == [1, 2, 3, 4, 7, 8]
    assert batch.position_ids_L.tolist() == [0, 1, 2, 3, 3, 4]
    assert batch.targets_N.tolist() == [4, 5, 6, 7, 8, 9]
    assert batch.predictor_N.tolist() == [2, 3, 2, 2, 4, 5]


def test_a_prompt_that_comes_back_later_is_computed_again() -> None:
    batch = pack([ids(1), ids(2), ids(1)], [ids(3), ids(4), ids(5)])
    assert batch.input_ids_L.tolist() == [1, 2, 1]
    assert batch.predictor_N.tolist() == [0, 1, 2]


@pytest.mark.parametrize("name", ["qwen3-tied", "mistral-window", "gemma3-softcap"])
def test_a_segment_may_follow_pieces_of_others(name: str) -> None:
    """A branch off a branch equals its whole row, and so do the gradients."""
    model, rng = exact_model(name), np.random.default_rng(1)
    trunk, branch, twig = (random_ids(rng, length) for length in (8, 9, 10))
    layout = Layout()
    assert layout.add(trunk) == (0, 0)
    assert layout.add(branch, ((0, 8),)) == (1, 8)
    number, start = layout.add(twig, ((0, 8), (1, 5)))
    assert (number, start) == (2, 17)
    batch = layout.batch([start + np.arange(len(twig))], [twig])
    assert batch.position_ids_L[start:].tolist() == list(range(13, 23))
    embeddings = model.embeddings(batch).detach().requires_grad_()
    hidden = model.hidden_states(batch, embeddings)

    alone = plain(model).base_model
    row = torch.from_numpy(np.concatenate([trunk, branch[:5], twig]).astype(np.int64))
    inputs = alone.get_input_embeddings()(row).detach().requires_grad_()
    expected = alone(inputs_embeds=inputs[None], use_cache=False).last_hidden_state[0, 13:]
    assert largest(hidden.detach(), expected.detach()) < 1e-9

    weights = torch.linspace(-1, 1, hidden.numel(), dtype=torch.float64).view_as(hidden)
    [found] = torch.autograd.grad((hidden * weights).sum(), embeddings)
    [gradient] = torch.autograd.grad((expected * weights).sum(), inputs)
    used = [*range(13), *range(17, 27)]
    assert largest(found[used], gradient) < 1e-9
    assert not found[13:17].any()


def test_an_empty_prompt_is_no_row() -> None:
    with pytest.raises(ValueError, match="empty prompt"):
        pack([ids(1), ids()], [ids(2), ids(3)])


@given(short_rows, st.integers(1, 60))
def test_micro_batches_keep_rows_in_order_and_within_the_budget(
    rows: list[tuple[list, list]], budget: int
) -> None:
    prompts = [ids(*prompt) for prompt, _ in rows]
    completions = [ids(*completion) for _, completion in rows]
    batches = list(microbatches(prompts, completions, budget))
    assert np.concatenate(batches).tolist() == list(range(len(rows)))
    for batch in batches:
        packed = pack([prompts[r] for r in batch], [completions[r] for r in batch])
        assert len(batch) == 1 or len(packed.input_ids_L) <= budget
    assert len(list(microbatches(prompts, completions, 10**6))) == 1
    busy = [np.append(row, 1) for row in completions]
    assert len(list(microbatches(prompts, busy, 1))) == len(rows)


@given(st.lists(st.lists(st.integers(0, 2**31 - 1), max_size=4), max_size=6))
def test_flattened_rows_come_back(rows: list[list[int]]) -> None:
    flat, offsets = flattened([ids(*row) for row in rows])
    assert flat.dtype == np.int32
    assert [row.tolist() for row in rows_of(flat, offsets)] == rows


# Copies and loading


def test_a_frozen_copy_stays_where_it_is() -> None:
    model = tiny()
    packed_gradients(model)
    twin = model.frozen_copy()
    before = copy.deepcopy(twin.model.state_dict())
    with torch.no_grad():
        for parameter in model.model.parameters():
            parameter.add_(1.0)
    assert all(
        torch.equal(before[name], tensor) for name, tensor in twin.model.state_dict().items()
    )
    assert not any(p.requires_grad or p.grad is not None for p in twin.model.parameters())
    assert all(p.grad is not None for p in model.model.parameters())


def saved(folder: Path, config: Any) -> Path:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    for name, parameter in model.named_parameters():
        if name.endswith("sinks"):
            torch.nn.init.normal_(parameter, std=2.0)
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


SETTINGS = ModelSettings(device="cpu", dtype="float32")


@pytest.mark.parametrize(
    "config",
    [
        LlamaConfig(**SHAPE),
        Qwen3MoeConfig(
            **SHAPE, head_dim=8, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16
        ),
    ],
    ids=lambda config: config.model_type,
)
def test_a_model_read_from_its_folder_scores_as_transformers_does(
    tmp_path: Path, config: Any
) -> None:
    folder = saved(tmp_path / "model", config)
    loaded = load_language_model(folder, SETTINGS)
    reference = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="sdpa")
    logprobs, _ = loaded.score(*awkward_rows(), 1.0, 10**6, 100)
    with torch.no_grad():
        expected = plain_scores(reference, *awkward_rows(), 1.0)
    assert largest(logprobs, expected.logprobs) < 1e-5


@pytest.mark.parametrize(
    "config",
    [
        # Layers that hand the packing on to no attention.
        StableLmConfig(**SHAPE),
        NemotronConfig(**SHAPE),
        # An extra logit in every softmax, which SDPA does not know.
        GptOssConfig(**SHAPE, head_dim=8, num_local_experts=4, num_experts_per_tok=2),
    ],
    ids=lambda config: config.model_type,
)
def test_an_architecture_is_scored_right_or_refused(tmp_path: Path, config: Any) -> None:
    folder = saved(tmp_path / "model", config)
    try:
        loaded = load_language_model(folder, SETTINGS)
        logprobs, _ = loaded.score(*awkward_rows(), 1.0, 10**6, 100)
    except UserError as error:
        assert config.model_type in str(error) and "\n" not in str(error)
        return
    reference = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")
    with torch.no_grad():
        expected = plain_scores(reference, *awkward_rows(), 1.0)
    assert largest(logprobs, expected.logprobs) < 1e-4
