"""The FLOPs that benchmarks divide by, against what torch counts of the real passes."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from castctl.explain.model_shape import ModelShape, model_shape
from castctl.models import attention
from castctl.models.adapter import fresh_adapter
from castctl.models.head import fused_loss, score_tokens
from castctl.models.language_model import LanguageModel
from castctl.models.packing import PackedBatch, pack
from castctl.models.policy import AdapterWeights, FullWeights, Policy
from castctl.recipe.model import LoraSettings, ModelSettings
from models import VOCABULARY, tiny


def script() -> ModuleType:
    file = Path(__file__).parents[1] / "benchmarks" / "flops.py"
    spec = importlib.util.spec_from_file_location("flops", file)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def packed() -> PackedBatch:
    """Two prompts, each with completions of several lengths."""
    rng = np.random.default_rng(0)
    prompts = [rng.integers(0, VOCABULARY, length) for length in (9, 9, 9, 5, 5)]
    prompts[1] = prompts[2] = prompts[0]
    prompts[4] = prompts[3]
    return pack(prompts, [rng.integers(0, VOCABULARY, length) for length in (40, 7, 23, 1, 31)])


def shape_of(model: LanguageModel, folder: Path, **settings: Any) -> ModelShape:
    model.model.config.save_pretrained(folder)
    return model_shape(ModelSettings(path=str(folder), **settings))


@pytest.fixture(autouse=True)
def plain_masks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Masks as plain tensors: torch cannot make its causal bias while it counts."""

    def lower_right(queries: int, keys: int) -> Tensor:
        return torch.ones(queries, keys, dtype=torch.bool).tril(keys - queries)

    monkeypatch.setattr(attention, "causal_lower_right", lower_right)


def counted(work: Any) -> int:
    """What torch counts; a product added in place is none that it knows."""

    def added(into: Any, left: Any, right: Any, *_: Any, **__: Any) -> int:
        return 2 * left[0] * left[1] * right[1]

    counter = FlopCounterMode(display=False, custom_mapping={torch.ops.aten.addmm_: added})
    with counter, sdpa_kernel(SDPBackend.MATH):  # as products, which are counted
        work()
    return counter.get_total_flops()


def masked(shape: ModelShape, batch: PackedBatch) -> int:
    """FLOPs of a forward pass at the keys that the causal mask hides, which that attention has."""
    hidden = sum(segment.length * (segment.length - 1) // 2 for segment in batch.segments)
    return 4 * shape.layers * shape.queries * hidden


def trained(policy: Policy, batch: PackedBatch) -> None:
    """A forward and backward pass of the policy loss."""
    targets = torch.from_numpy(batch.targets_N)

    def loss(learner: LanguageModel) -> tuple[Tensor, ...]:
        head = learner.head(1.0, 16)
        hidden = learner.hidden_states(batch)
        return fused_loss(head, hidden, targets, lambda part, logprobs, *_: -logprobs)

    policy.differentiate(loss)


def test_a_scoring_pass(tmp_path: Path) -> None:
    model, batch = tiny(), packed()
    shape = shape_of(model, tmp_path)

    def score() -> None:
        with torch.no_grad():
            hidden = model.hidden_states(batch)
            score_tokens(model.head(1.0, 16), hidden, torch.from_numpy(batch.targets_N))

    expected = script().pass_flops(shape, batch, trains=False)
    assert counted(score) - masked(shape, batch) == pytest.approx(expected, rel=2e-3)


def test_an_update_of_all_weights(tmp_path: Path) -> None:
    model, batch = tiny(), packed()
    shape = shape_of(model, tmp_path)
    expected = script().pass_flops(shape, batch, trains=True)
    assert expected == 3 * script().pass_flops(shape, batch, trains=False)
    found = counted(lambda: trained(FullWeights(model), batch))
    assert found - 3 * masked(shape, batch) == pytest.approx(expected, rel=2e-3)


def test_an_update_of_an_adapter(tmp_path: Path) -> None:
    model, batch, lora = tiny(), packed(), LoraSettings(r=4)
    shape = shape_of(model, tmp_path, lora=lora)
    policy = AdapterWeights(model, fresh_adapter(model, lora, 0), tmp_path, ModelSettings())
    # Nothing below the first layer's queries, keys and values trains: they pass no gradient down,
    # nor do their first factors.
    wide = shape.queries + 2 * shape.keys
    unneeded = 2 * len(batch.input_ids_L) * shape.hidden * (wide + 3 * lora.r)
    expected = script().pass_flops(shape, batch, trains=True) - unneeded
    found = counted(lambda: trained(policy, batch))
    assert found - 3 * masked(shape, batch) == pytest.approx(expected, rel=2e-3)


@pytest.mark.parametrize(
    ("name", "tflops"),
    [
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H100 NVL", 835),
        ("NVIDIA H200", 989),
        ("NVIDIA H200 NVL", 835),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA A100 80GB PCIe", 312),
        ("NVIDIA B200", 2250),
        ("cpu", None),
    ],
)
def test_the_peak_of_a_gpu_by_its_name(name: str, tflops: float | None) -> None:
    assert script().peak_of(name) == (tflops and tflops * 1e12)
