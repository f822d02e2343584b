"""What castctl gets right of other architectures, and what it refuses in place of wrong numbers."""

from __future__ import annotations

import copy
import importlib.util
import logging
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    LlamaConfig,
    MixtralConfig,
    ModernBertDecoderConfig,
    Phi3Config,
    PhimoeConfig,
    PreTrainedTokenizerFast,
    Qwen2MoeConfig,
    Qwen3Config,
    Starcoder2Config,
)

from castctl.engines import Request
from castctl.engines.transformers_engine import TransformersEngine
from castctl.errors import UserError
from castctl.models import attention
from castctl.models.compatibility import check_architecture, check_weights, refuse_unpackable
from castctl.models.language_model import LanguageModel
from castctl.models.loading import load_language_model
from castctl.models.positions import context_of
from castctl.models.twin import CONTEXT, WINDOW, shrunken, still
from castctl.recipe.model import ModelSettings
from castctl.recipe.recipe import SamplingSettings
from models import SHAPE, Rows, packed_hidden, plain_logits, random_ids, tokenizer

ROOT = Path(__file__).parents[1]
SETTINGS = ModelSettings(device="cpu", dtype="float32")
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}


def longrope(original: int) -> Phi3Config:
    return Phi3Config(
        **SHAPE,
        original_max_position_embeddings=original,
        rope_parameters={
            "rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 4,
            "long_factor": [9.0] * 4, "original_max_position_embeddings": original,
        },
    )  # fmt: skip


CAPPED = Gemma2Config(
    **SHAPE, head_dim=16, query_pre_attn_scalar=24, sliding_window=WINDOW,
    layer_types=["sliding_attention", "full_attention"],
    attn_logit_softcapping=2.0, final_logit_softcapping=6.0,
)  # fmt: skip
"""Both caps low enough to matter, and a scale that is not that of the heads."""
WINDOWED = {
    "qwen2_moe": Qwen2MoeConfig(
        **SHAPE, **EXPERTS, use_sliding_window=True, sliding_window=WINDOW, max_window_layers=1,
        shared_expert_intermediate_size=16,
    ),
    "phimoe": PhimoeConfig(
        **SHAPE, sliding_window=WINDOW, num_local_experts=4, num_experts_per_tok=2
    ),
}  # fmt: skip
DROPPING = Starcoder2Config(
    **SHAPE, residual_dropout=0.4, embedding_dropout=0.4, attention_dropout=0.4
)


def built(config: Any, implementation: str) -> Any:
    """A model of peaked answers, the same for one configuration."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        config = copy.deepcopy(config)
        model = AutoModelForCausalLM.from_config(config, attn_implementation=implementation)
        for parameter in model.parameters():
            if parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


def ours_and_theirs(config: Any) -> tuple[LanguageModel, Any]:
    return LanguageModel(built(config, attention.NAME), tokenizer(), torch.float32), built(
        config, "eager"
    )


def saved(folder: Path, config: Any, words: Any = None) -> Path:
    built(config, "eager").save_pretrained(folder)
    (words or tokenizer()).save_pretrained(folder)
    return folder


def rows(longest: int = 40) -> tuple[Rows, Rows]:
    """A short row, one that shares its prompt with a long one, and one alone."""
    rng = np.random.default_rng(4)
    first, second = random_ids(rng, 2), random_ids(rng, 9)
    lengths = (3, longest - 9, 5, longest - 2)
    prompts = [first, second, second, first]
    return prompts, [random_ids(rng, length) for length in lengths]


def plain_logprobs(model: Any, prompts: Rows, completions: Rows) -> torch.Tensor:
    """Log-probs by the model's own logits, a row at a time."""
    found = []
    for prompt, completion in zip(prompts, completions, strict=True):
        targets = torch.from_numpy(completion.astype(np.int64))[:, None]
        logits = plain_logits(model, prompt, completion)
        found.append(logits.log_softmax(-1).gather(1, targets)[:, 0])
    return torch.cat(found)


def packed_logprobs(model: LanguageModel, prompts: Rows, completions: Rows) -> torch.Tensor:
    _, hidden, targets = packed_hidden(model, prompts, completions)
    logits = model.head(1.0, 64).logits(hidden)
    return logits.log_softmax(-1).gather(1, targets[:, None])[:, 0]


def sampled(model: LanguageModel, prompts: Rows, tokens: int) -> tuple[Rows, np.ndarray]:
    asked = [Request(prompt, key) for key, prompt in enumerate(prompts)]
    sampling = SamplingSettings(max_tokens=tokens)
    ((_, done),) = TransformersEngine(model).generate({0: asked}, sampling, lambda count: None)
    return [c.token_ids for c in done], np.concatenate([c.logprobs for c in done])


@pytest.mark.parametrize("config", [CAPPED, *WINDOWED.values()], ids=lambda c: c.model_type)
def test_soft_caps_and_windows_of_the_mask_are_those_of_eager_attention(config: Any) -> None:
    ours, theirs = ours_and_theirs(config)
    expected = plain_logprobs(theirs, *rows())
    found = packed_logprobs(ours, *rows())
    scale = max(1.0, float(expected.detach().abs().max()))
    assert float((found - expected).detach().abs().max()) < 1e-5 * scale
    weights = torch.linspace(-1, 1, len(found)).roll(11)
    (weights * found.exp()).sum().backward()
    (weights * expected.exp()).sum().backward()
    own = dict(theirs.named_parameters())
    for name, parameter in ours.model.named_parameters():
        if own[name].grad is not None:
            off = (parameter.grad - own[name].grad).abs().max()
            assert float(off) < 1e-5 * max(1, float(own[name].grad.abs().max())), name
    prompts, _ = rows()
    completions, logprobs = sampled(ours, prompts, 20)
    with torch.no_grad():
        expected = plain_logprobs(theirs, prompts, completions)
    np.testing.assert_allclose(logprobs, expected.numpy(), rtol=1e-5, atol=5e-5)


@pytest.mark.parametrize("setting", ["attn_logit_softcapping", "sliding_window"])
def test_the_cap_and_the_window_of_these_tests_matter(setting: str) -> None:
    other = copy.deepcopy(CAPPED)
    setattr(other, setting, type(getattr(other, setting))(1000))
    with torch.no_grad():
        one, two = (plain_logprobs(built(c, "eager"), *rows()) for c in (CAPPED, other))
    assert float((one - two).abs().max()) > 0.1


# Positions


def test_rows_end_where_longrope_would_change_them(tmp_path: Path) -> None:
    model = load_language_model(saved(tmp_path / "phi", longrope(24)), SETTINGS)
    theirs = built(longrope(24), "eager")
    prompts, completions = rows(longest=24)
    assert model.context_tokens == 24
    with torch.no_grad():
        expected = plain_logprobs(theirs, prompts, completions)
        beyond = plain_logits(theirs, prompts[0], rows(40)[1][3])[:8]
    found, _ = model.score(prompts, completions, 1.0, 10**6, 64)
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-4)
    # The reason for the end: the same tokens read otherwise once the row is longer.
    within = plain_logits(theirs, prompts[0], rows(40)[1][3][:8])
    assert (within - beyond).abs().max().item() > 0.1
    for ask in (
        lambda: model.score(*rows(longest=26), 1.0, 10**6, 64),
        lambda: sampled(model, prompts, 16),
    ):
        with pytest.raises(UserError, match="the model's 24 positions, after which its longrope"):
            ask()
    completions, logprobs = sampled(model, prompts, 24 - 9)
    with torch.no_grad():
        expected = plain_logprobs(theirs, prompts, completions)
    np.testing.assert_allclose(logprobs, expected.numpy(), atol=1e-4)


def test_the_boundary_is_read_off_every_way_to_write_it() -> None:
    dynamic = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0}
    assert context_of(LlamaConfig(**SHAPE, rope_parameters=dynamic))[1].endswith("of a row")
    assert context_of(LlamaConfig(**SHAPE)) == (256, "positions")
    yarn = {**dynamic, "rope_type": "yarn", "original_max_position_embeddings": 64}
    assert context_of(LlamaConfig(**SHAPE, rope_parameters=yarn)) == (256, "positions")


# The check at load


def refusal(config: Any) -> str:
    with pytest.raises(UserError) as refused:
        refuse_unpackable(config)
        check_architecture(type(built(config, "eager")), config)
    assert "\n" not in str(refused.value)
    return str(refused.value)


def test_a_layer_before_the_head_is_refused(tmp_path: Path) -> None:
    unknown = ("num_key_value_heads", "initializer_range", "bos_token_id")
    config = ModernBertDecoderConfig(
        **{k: v for k, v in SHAPE.items() if k not in unknown},
        cls_token_id=1, sep_token_id=2,
    )  # fmt: skip
    assert "stands more than a linear map and a soft-cap" in refusal(config)
    with pytest.raises(UserError, match="modernbert-decoder"):
        load_language_model(saved(tmp_path / "model", config), SETTINGS)


class Broken:
    """A fault that is put into a sound architecture."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.monkeypatch = monkeypatch
        self.config = LlamaConfig(**SHAPE)
        self.kind = type(built(self.config, "eager"))
        self.base = type(built(self.config, "eager").model)

    def wrap(self, cls: type, change: Any) -> str:
        forward = cls.forward  # type: ignore[attr-defined]
        self.monkeypatch.setattr(cls, "forward", lambda *a, **k: change(forward(*a, **k), *a, **k))
        return refusal(self.config)


def test_the_whole_kind_of_fault_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = Broken(monkeypatch)
    check_architecture(broken.kind, broken.config)

    def neighbours(output: Any, *_: Any, **__: Any) -> Any:
        output.last_hidden_state = output.last_hidden_state * (1 + 1e-2 * len(output[0][0]))
        return output

    assert "depend on what follows" in broken.wrap(broken.base, neighbours)
    monkeypatch.undo()

    def scaled(output: Any, *_: Any, **__: Any) -> Any:
        output.logits = output.logits * 1.1
        return output

    assert "linear map" in broken.wrap(broken.kind, scaled)
    monkeypatch.undo()

    def noisy(output: Any, model: Any, *_: Any, **__: Any) -> Any:
        if model.training:
            output.last_hidden_state = output.last_hidden_state + 1e-2 * torch.randn(1)
        return output

    assert "in train mode" in broken.wrap(broken.base, noisy)


def test_a_neighbour_that_changes_a_row_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Positions of the whole batch choose the rotation, and nobody says where."""
    monkeypatch.setattr("castctl.models.language_model.context_of", lambda config: (64, ""))
    refused = refusal(longrope(4096))
    assert "depend on what follows" in refused
    monkeypatch.setattr("castctl.models.compatibility.LONG", WINDOW + 4)
    check_architecture(type(built(longrope(24), "eager")), longrope(4096))


def test_random_state_and_weights_are_left_alone() -> None:
    model = built(LlamaConfig(**SHAPE), attention.NAME)
    before = copy.deepcopy(model.state_dict())
    torch.manual_seed(1)
    state = torch.get_rng_state()
    check_architecture(type(model), model.config)
    check_weights(model)
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert not model.training


def test_a_twin_keeps_every_kind_of_layer_and_passes_every_boundary() -> None:
    config = Qwen3Config(
        num_hidden_layers=36, use_sliding_window=True, sliding_window=4096, max_window_layers=28,
        rope_parameters={"rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0,
                         "original_max_position_embeddings": 32768},
    )  # fmt: skip
    small = shrunken(config)
    assert small.layer_types == ["full_attention"] * 4 + ["sliding_attention"]
    assert small.num_hidden_layers == 5 and small.sliding_window == WINDOW
    assert small.max_position_embeddings == CONTEXT
    assert small.rope_parameters["original_max_position_embeddings"] == 16


# Dropout


def test_dropout_inside_functions_stays_off_where_activations_are_recomputed(
    tmp_path: Path,
) -> None:
    model = load_language_model(saved(tmp_path / "model", DROPPING), SETTINGS)
    expected = packed_logprobs(model, *rows()).detach()
    model.recompute_activations()
    with model.recomputing():
        assert any(module.training for module in model.model.modules())
        again, once_more = (packed_logprobs(model, *rows()) for _ in range(2))
    assert torch.equal(again, once_more) and torch.equal(again.detach(), expected)
    assert not any(module.training for module in model.model.modules())


def test_a_routers_noise_stays_off_where_activations_are_recomputed() -> None:
    config = MixtralConfig(**SHAPE, num_local_experts=4, router_jitter_noise=0.5)
    model = LanguageModel(built(config, attention.NAME), tokenizer(), torch.float32)
    expected = packed_logprobs(model, *rows()).detach()
    model.recompute_activations()
    with model.recomputing():
        assert torch.equal(packed_logprobs(model, *rows()).detach(), expected)


def test_every_probability_to_drop_is_zero() -> None:
    model = built(DROPPING, "eager").train()
    loose = [plain_logprobs(model, *rows()) for _ in range(2)]
    assert not torch.equal(*loose)
    still(model)
    assert torch.equal(*(plain_logprobs(model, *rows()) for _ in range(2)))


# The end of a text


def test_a_model_without_an_end_of_text_is_named_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    words = PreTrainedTokenizerFast(tokenizer_object=tokenizer().backend_tokenizer, pad_token="0")
    config = LlamaConfig(**{**SHAPE, "eos_token_id": None})
    endless = load_language_model(saved(tmp_path / "model", config, words), SETTINGS)
    with caplog.at_level(logging.WARNING):
        engine = TransformersEngine(endless)
        for _ in range(2):
            next(engine.generate({0: []}, SamplingSettings(max_tokens=2), lambda count: None))
    [warning] = [r.getMessage() for r in caplog.records if r.name.startswith("castctl")]
    assert "a token that ends a text" in warning
    caplog.clear()
    TransformersEngine(LanguageModel(endless.model, tokenizer(), torch.float32))
    assert not caplog.records


# The page


def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        "architectures", ROOT / "benchmarks" / "architectures.py"
    )
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["architectures"] = module
    spec.loader.exec_module(module)
    return module


def without_numbers(reason: str) -> str:
    return re.sub(r"[\d.]+(e-?\d+)?", "#", reason)


def test_the_page_of_models_says_what_the_code_does() -> None:
    architectures = script()
    page = architectures.read_table((ROOT / "docs" / "models.md").read_text(encoding="utf-8"))
    assert set(page) == set(architectures.names()) and len(page) > 150
    assert {verdict for verdict, _ in page.values()} == {"right", "refused", "untested"}
    for name in (
        "gemma2", "llama", "qwen3", "phi3, LongRoPE", "qwen2_moe, window", "starcoder2",
        "modernbert-decoder", "gpt_oss", "mamba", "granite, scaled logits",
    ):  # fmt: skip
        verdict, reason = architectures.verdict(name)
        assert (verdict, without_numbers(reason)) == (
            page[name][0], without_numbers(page[name][1]),
        ), name  # fmt: skip
