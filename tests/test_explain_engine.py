"""The memory that an engine of its own is said to take, and what is said to fit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Qwen3Config

from castctl.engines.vllm_launch import CPU_CACHE
from castctl.explain.engine import EngineMemory, engine_memory
from castctl.explain.estimate import estimate_memory
from castctl.explain.footprint import Arithmetic
from castctl.explain.gpu import COMMON, CONTEXT
from castctl.explain.model_shape import shape_of
from castctl.recipe.reader import load_recipe
from conftest import Cli

GIB = 2**30
PARAMETERS = 1_720_574_976
CONFIG = Qwen3Config(
    vocab_size=151_936, hidden_size=2048, intermediate_size=6144, num_hidden_layers=28,
    num_attention_heads=16, num_key_value_heads=8, head_dim=128, tie_word_embeddings=True,
    max_position_embeddings=40_960,
)  # fmt: skip
"""Qwen3-1.7B as published."""

ON_GPU = Arithmetic(on_gpu=True, width=2)

without_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="this machine tells of its own")


def engine(*overrides: str, training: Arithmetic = ON_GPU, held: int = 30 * GIB) -> EngineMemory:
    """What is said of the recipe of CAST, with 1,024 tokens of prompt and 4,096 of completion."""
    device = [f"model.device={'cuda' if training.on_gpu else 'cpu'}", "engine.kind=vllm"]
    longest = "sampling.max_tokens=4096"
    recipe = load_recipe("cast-qwen3-1.7b", [*device, longest, *overrides])
    return engine_memory(recipe, shape_of(CONFIG, PARAMETERS), training, held, held + 10 * GIB)


def test_weights_and_cache_are_those_of_the_published_shape() -> None:
    memory = engine()
    assert memory.arithmetic == "bfloat16" and memory.longest == 1024 + 4096
    assert memory.weights == 2 * PARAMETERS
    assert memory.completion == (1024 + 4096) * 28 * 2 * (8 * 128) * 2
    assert engine("engine.kv_cache_dtype=fp8").completion == memory.completion // 2
    assert engine("eval.max_tokens=32768").longest == 1024 + 32768
    assert engine("engine.max_model_len=50000").longest == 40_960  # what the model reads
    pair = engine("engine.tensor_parallel_size=2")
    assert (pair.weights, pair.completion) == (memory.weights // 2, memory.completion // 2)
    full = engine("engine.dtype=float32")
    assert (full.weights, full.completion) == (2 * memory.weights, 2 * memory.completion)


@pytest.mark.parametrize(
    ("where", "shares"),
    [
        ((), True),
        (("engine.device=cuda",), True),
        (("engine.device=cuda:0",), True),
        (("engine.device=cuda:1",), False),
        (("model.device=cuda:1", "engine.device=cuda", "engine.replicas=2"), True),
        (("model.device=cuda:2", "engine.device=cuda", "engine.replicas=2"), False),
        (("engine.device=cpu",), False),
    ],
)
def test_the_gpus_memory_is_shared_where_training_is_on_it(
    where: tuple[str, ...], shares: bool
) -> None:
    memory = engine(*where)
    assert memory.shares == shares
    assert memory.utilization == (0.3 if shares else 0.9)
    assert (memory.beside > 30 * GIB) == shares and (memory.beside == 0) != shares
    assert ("weights of the resting engine" in memory.host) == shares


@without_gpu
@pytest.mark.parametrize("where", ["engine.device=cuda:0", "engine.device=cuda:1"])
def test_the_largest_share_fits_and_the_next_does_not(where: str) -> None:
    fits = engine(where).fits
    assert [fit.gpu for fit in fits] == list(COMMON)
    found = {fit.gpu: fit.most for fit in fits}
    assert found["80 GB"] is not None and found["80 GB"] < 1
    for gpu in ("40 GB", "80 GB"):
        for share in (most := found[gpu] or 0, most + 0.05):
            if 0 < share < 1:
                assert fitting(where, share)[gpu] == (share == most)
    assert not fitting(where, 0.05)["24 GB"]  # the weights alone take more
    if where == "engine.device=cuda:0":
        assert found["24 GB"] is None and found["141 GB"] > found["80 GB"]
        assert [fit.trains for fit in fits] == [False, False, True, True]


def fitting(where: str, share: float) -> dict[str, bool]:
    fits = engine(where, f"engine.gpu_memory_utilization={share:.2f}").fits
    return {fit.gpu: fit.samples for fit in fits}


@without_gpu
def test_sampling_adds_up() -> None:
    memory = engine("engine.gpu_memory_utilization=0.4")
    fit = next(fit for fit in memory.fits if fit.gpu == "80 GB")
    assert fit.sampling == int(0.4 * fit.total) + memory.beside + 2 * CONTEXT
    assert fit.training == 40 * GIB + 2 * CONTEXT
    free = 0.4 * fit.total - memory.weights - memory.one_pass
    assert fit.completions == free // memory.completion > 30
    few = engine("engine.gpu_memory_utilization=0.4", "engine.max_num_seqs=7")
    assert all(fit.completions <= 7 for fit in few.fits)
    apart = engine("engine.device=cuda:1")
    assert all(fit.training == 40 * GIB + CONTEXT for fit in apart.fits)
    assert all(fit.sampling == int(0.9 * fit.total) + CONTEXT for fit in apart.fits)
    alone = engine("engine.device=cuda", training=Arithmetic(on_gpu=False, width=4))
    assert not alone.shares and all(fit.training == 0 for fit in alone.fits)


def test_on_the_cpu_all_of_it_is_the_hosts(monkeypatch: pytest.MonkeyPatch) -> None:
    on_cpu = Arithmetic(on_gpu=False, width=4)
    monkeypatch.delenv(CPU_CACHE, raising=False)
    memory = engine(training=on_cpu)
    assert memory.arithmetic == "float32" and not memory.fits and memory.beside == 0
    assert memory.host["the engine"] == memory.weights + memory.one_pass + GIB
    monkeypatch.setenv(CPU_CACHE, "4")
    twice = engine("engine.replicas=2", training=on_cpu)
    assert twice.host["the engine"] == 2 * (memory.weights + memory.one_pass + 4 * GIB)


@without_gpu
def test_explain_says_both_sums_and_what_fits(castctl: Cli, tmp_path: Path) -> None:
    CONFIG.save_pretrained(tmp_path / "model")
    asked = ("grpo-qwen3-1.7b", "--model", "./model", "--device", "cuda")
    memory: Any = json.loads(castctl("explain", *asked, "--engine", "vllm", "--json").stdout)
    memory = memory["memory"]
    assert memory["parameters"] == PARAMETERS
    assert not {"sampling", "reading prompts"} & memory["phases"].keys()
    [_, _, fit, _] = memory["engine"]["fits"]
    assert fit["training"] == memory["together"] + 2 * CONTEXT
    assert memory["engine"]["beside"] > sum(memory["held"].values())

    page = " ".join(castctl("explain", *asked, "--engine", "vllm").stdout.split())
    most = fit["most"]
    assert "it rests while completions are scored and trained on" in page
    assert f"79.2 GiB: training takes {fit['training'] / GIB:.1f}; sampling" in page
    assert f"a share of up to {most:g} fits" in page and "(does not fit)" in page


def test_the_loop_in_this_process_has_no_engine_of_its_own() -> None:
    memory = estimate_memory(load_recipe(None, ["model.device=cpu"], method={"name": "grpo"}))
    assert memory.engine is None and "sampling" in memory.phases
